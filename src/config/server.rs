//! Options of the HTTP server.

use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::values::{parse_duration, parse_shutdown_delay, parse_size, whole_number_parser};

/// The limits of one HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// The largest request body in bytes.
    pub payload_limit: usize,
    /// The longest time that a client may take to send a body.
    pub body_timeout: Duration,
    /// The number of images in one request at most.
    pub max_images: usize,
}

/// The most that `--max-images-per-request` may say. Requests are read under this bound, whatever
/// the option says.
pub const MAX_IMAGES_PER_REQUEST: usize = 1024;

/// The default of `--served-model-name`.
pub const DEFAULT_MODEL_NAME: &str = "resnet50";

/// The port if neither an option nor an environment variable names one.
const DEFAULT_PORT: u16 = 8000;

/// The options of the HTTP server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// The address to listen on
    #[arg(long, default_value = "0.0.0.0", env = "IMGCLASS_HOSTNAME")]
    pub hostname: String,

    /// The port to listen on; 0 takes a free one [default: $PORT, else 8000]
    #[arg(long, env = "IMGCLASS_PORT")]
    pub port: Option<Port>,

    /// The largest request body; a larger one is answered 413
    // The base64 of a 20 MiB image, the default of --fetch-max-bytes, is 27 MiB.
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = ByteSize::mib(32),
        value_parser = parse_size,
        env = "IMGCLASS_PAYLOAD_LIMIT"
    )]
    pub payload_limit: ByteSize,

    /// The longest time that a client may take to send a request's body
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = parse_duration,
        env = "IMGCLASS_BODY_TIMEOUT"
    )]
    pub body_timeout: humantime::Duration,

    /// The number of images in one request at most
    // 32 images are eight full batches on the CPU. More are better sent in several requests: one
    // request never has more than two batches for each forward pass in work, so that it leaves room
    // for others.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = whole_number_parser(1..=MAX_IMAGES_PER_REQUEST),
        env = "IMGCLASS_MAX_IMAGES_PER_REQUEST"
    )]
    pub max_images_per_request: usize,

    /// The model's name in the paths of the inference protocols, /v2/models/NAME and
    /// /v1/models/NAME
    #[arg(
        long,
        value_name = "NAME",
        default_value = DEFAULT_MODEL_NAME,
        value_parser = parse_model_name,
        env = "IMGCLASS_SERVED_MODEL_NAME"
    )]
    pub served_model_name: String,

    /// The path under which a proxy serves the interface, such as /vision [default: /]
    ///
    /// Requests are answered with and without it, so the proxy may leave it in place or remove it.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/",
        hide_default_value = true,
        value_parser = parse_root_path,
        env = "IMGCLASS_ROOT_PATH"
    )]
    pub root_path: String,

    /// After SIGTERM, how long requests are still accepted while /health/ready already says 503, so
    /// that load balancers stop sending requests first
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0s",
        value_parser = parse_shutdown_delay,
        env = "IMGCLASS_SHUTDOWN_DELAY"
    )]
    pub shutdown_delay: humantime::Duration,

    /// After --shutdown-delay, how long accepted requests may take to finish
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = parse_duration,
        env = "IMGCLASS_SHUTDOWN_TIMEOUT"
    )]
    pub shutdown_timeout: humantime::Duration,
}

impl ServerArgs {
    /// Returns the limits of one request.
    pub fn http_limits(&self) -> HttpLimits {
        HttpLimits {
            payload_limit: usize::try_from(self.payload_limit.as_u64()).unwrap_or(usize::MAX),
            body_timeout: *self.body_timeout,
            max_images: self.max_images_per_request,
        }
    }

    /// Returns the port: `--port`, else `IMGCLASS_PORT`, else `PORT` as hosting platforms set it,
    /// else 8000.
    ///
    /// # Errors
    ///
    /// Returns a text if `PORT` would be used but is not a port.
    pub fn port(&self) -> Result<u16, String> {
        Self::port_or_default(self.port.clone())
    }

    /// Returns the port as [`ServerArgs::port`] does, for a command that has only the option
    /// `--port`.
    ///
    /// # Errors
    ///
    /// Returns a text if `PORT` would be used but is not a port.
    pub fn port_or_default(flag: Option<Port>) -> Result<u16, String> {
        let flag = flag.and_then(|port| port.number("IMGCLASS_PORT"));
        choose_port(flag, std::env::var("PORT").ok())
    }
}

/// The value of an option for a port, or of its variable.
///
/// Kubernetes gives every pod variables for the Services of its namespace. For a Service named
/// `imgclass` one of them is `IMGCLASS_PORT=tcp://10.0.0.1:80`, which is not meant for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// A port.
    Number(u16),
    /// What Kubernetes says of a Service.
    OfService(String),
}

impl Port {
    /// Returns the port; `None` for a variable of Kubernetes, with a warning that names `variable`.
    pub fn number(self, variable: &str) -> Option<u16> {
        match self {
            Self::Number(port) => Some(port),
            Self::OfService(address) => {
                tracing::warn!(
                    "{variable} is {address}, which Kubernetes sets for a Service of that name; it is \
                     ignored. `enableServiceLinks: false` in the pod keeps such variables away"
                );
                None
            }
        }
    }
}

impl FromStr for Port {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_of_service = ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| text.starts_with(scheme));
        match text.parse() {
            Ok(port) => Ok(Self::Number(port)),
            Err(_) if is_of_service => Ok(Self::OfService(text.to_owned())),
            Err(_) => Err("expected a number from 0 to 65535"),
        }
    }
}

/// Chooses the port from the option and the value of the environment variable `PORT`.
fn choose_port(flag: Option<u16>, variable: Option<String>) -> Result<u16, String> {
    match (flag, variable.filter(|text| !text.is_empty())) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(DEFAULT_PORT),
        (None, Some(text)) => text.parse().map_err(|_| {
            format!(
                "the environment variable PORT is \"{text}\"; it must be a number from 0 to 65535"
            )
        }),
    }
}

/// Parses a model's name, which stands in URLs as one segment of the path.
///
/// A colon is refused because it has a meaning in the paths of TensorFlow Serving.
fn parse_model_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=128).contains(&text.len()) && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 letters, digits, '-', '_' and '.'".to_owned())
    }
}

/// The longest path under which the interface may be served, in bytes.
const MAX_ROOT_PATH: usize = 256;

/// Parses the path under which the interface is served; the last slash is left out.
fn parse_root_path(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    if path.is_empty() || is_root_path(path) {
        Ok(path.to_owned())
    } else {
        Err(format!(
            "expected a path such as /vision, of at most {MAX_ROOT_PATH} letters, digits, '-', '_', '.', '~' and '/'"
        ))
    }
}

/// Returns whether a text is a path under which the interface may be served: `/vision`, for
/// example, or `/a/b`.
pub fn is_root_path(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    let is_segment =
        |s: &str| !s.is_empty() && ![".", ".."].contains(&s) && s.chars().all(is_allowed);
    text.len() <= MAX_ROOT_PATH
        && text
            .strip_prefix('/')
            .is_some_and(|path| path.split('/').all(is_segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_paths_are_plain_paths() {
        for (text, expected) in [
            ("/", Some("")),
            ("", Some("")),
            ("/vision", Some("/vision")),
            ("/a/b-c.d/", Some("/a/b-c.d")),
            ("vision", None),
            ("//host", None),
            ("/a//b", None),
            ("/a/../b", None),
            ("/a b", None),
            ("/a\"b", None),
            ("https://a/b", None),
        ] {
            assert_eq!(parse_root_path(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_a_service_is_no_port() {
        for (text, expected) in [
            ("80", Ok(Some(80))),
            ("tcp://10.96.0.7:80", Ok(None)),
            ("udp://[fd00::1]:80", Ok(None)),
            ("http://a", Err(())),
            ("65536", Err(())),
        ] {
            let port = text.parse::<Port>().map_err(|_| ());
            assert_eq!(port.map(|port| port.number("X")), expected, "{text}");
        }
    }

    #[test]
    fn the_port_comes_from_the_flag_then_the_platform_then_the_default() {
        let cases = [
            (Some(1), Some("2"), Ok(1)),
            (None, Some("2"), Ok(2)),
            (None, Some(""), Ok(8000)),
            (None, None, Ok(8000)),
            (None, Some("99999"), Err(())),
            (None, Some("http"), Err(())),
        ];
        for (flag, variable, expected) in cases {
            assert_eq!(
                choose_port(flag, variable.map(str::to_owned)).map_err(|_| ()),
                expected,
                "{flag:?} {variable:?}"
            );
        }
    }
}
