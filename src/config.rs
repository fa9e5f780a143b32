//! Every limit and knob: its flag, its environment variable, its default, its bounds and its reason. Values are checked here, once, when
//! the command line is read; nothing below reads flags or variables.

mod access;
mod connections;
mod weights;

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use ipnet::IpNet;

pub use access::{
    Access, AccessArgs, AllowedOrigin, ApiKey, KeyFileError, RateLimit, caller_address,
};
pub use connections::{ConnectionArgs, ConnectionLimits};
pub use weights::{OverrideArgs, WeightsArgs};

use crate::service::ServiceOptions;
use imgclass_engine::EngineOptions;
use imgclass_fetch::FetchConfig;
use imgclass_image::Limits;
use imgclass_network::{ComputeType, DeviceChoice, ModelInfo, ModelOptions};

/// What runs the weights.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Which weights.
    #[command(flatten)]
    pub weights: WeightsArgs,
    /// The operator's word over the checkpoint's.
    #[command(flatten)]
    pub overrides: OverrideArgs,

    /// The device that computes: auto, cpu, cuda:N or metal; candle is a GPU's path on the CPU, slow and for checking
    #[arg(long, default_value_t = DeviceChoice::Auto, env = "IMGCLASS_DEVICE")]
    pub device: DeviceChoice,

    /// What the network computes in: f32, f16 or bf16 [default: f32 on the CPU, bf16 on CUDA from compute capability 8.0, f16 on Metal]
    #[arg(long, value_name = "TYPE", env = "IMGCLASS_DTYPE")]
    pub dtype: Option<ComputeType>,

    /// The CPU's instruction set: avx512, avx2 or portable [default: the best one that this processor has]
    #[arg(long, value_name = "NAME", env = "IMGCLASS_ISA")]
    pub isa: Option<String>,

    /// Threads of a forward pass on the CPU [default: the cores, or the container's CPU quota]
    #[arg(long, value_parser = whole(1..=1024), env = "IMGCLASS_THREADS")]
    pub threads: Option<usize>,
}

impl ModelArgs {
    /// Threads as asked for, else as many as this process may use at one time.
    pub fn threads(&self) -> NonZeroUsize {
        self.threads
            .and_then(NonZeroUsize::new)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }

    /// How to run the network.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device,
            dtype: self.dtype,
            isa: self.isa.clone(),
            threads: self.threads(),
            overrides: self.overrides.overrides(),
        }
    }
}

/// Fetching an image URL.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fetching image URLs")]
pub struct FetchArgs {
    /// Also dial addresses in this range, which are not public (repeatable)
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        env = "IMGCLASS_FETCH_ALLOW_CIDR"
    )]
    pub fetch_allow_cidr: Vec<IpNet>,

    /// Also dial this port, beside 80 and 443 (repeatable)
    #[arg(
        long,
        value_name = "PORT",
        value_delimiter = ',',
        env = "IMGCLASS_FETCH_ALLOW_PORT"
    )]
    pub fetch_allow_port: Vec<u16>,

    /// Name look-up, TCP and TLS handshake of one hop together
    #[arg(long, value_name = "TIME", default_value_t = FetchConfig::default().connect_timeout.into(), value_parser = time, env = "IMGCLASS_FETCH_CONNECT_TIMEOUT")]
    pub fetch_connect_timeout: humantime::Duration,

    /// The longest silence of an image server
    #[arg(long, value_name = "TIME", default_value_t = FetchConfig::default().idle_timeout.into(), value_parser = time, env = "IMGCLASS_FETCH_IDLE_TIMEOUT")]
    pub fetch_idle_timeout: humantime::Duration,

    /// A whole fetch, redirects included
    #[arg(long, value_name = "TIME", default_value_t = FetchConfig::default().total_timeout.into(), value_parser = time, env = "IMGCLASS_FETCH_TIMEOUT")]
    pub fetch_timeout: humantime::Duration,

    /// The largest image that is fetched, before decoding
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(FetchConfig::default().max_bytes), value_parser = size, env = "IMGCLASS_FETCH_MAX_BYTES")]
    pub fetch_max_bytes: ByteSize,

    /// Redirects that are followed
    #[arg(long, value_name = "N", default_value_t = FetchConfig::default().max_redirects, value_parser = whole(0..=20), env = "IMGCLASS_FETCH_MAX_REDIRECTS")]
    pub fetch_max_redirects: usize,

    /// Fetches under way at one time; further ones wait
    #[arg(long, value_name = "N", default_value_t = FetchConfig::default().max_concurrent, value_parser = whole(1..=4096), env = "IMGCLASS_FETCH_MAX_CONCURRENT")]
    pub fetch_max_concurrent: usize,
}

impl FetchArgs {
    fn config(&self) -> FetchConfig {
        FetchConfig {
            connect_timeout: *self.fetch_connect_timeout,
            idle_timeout: *self.fetch_idle_timeout,
            total_timeout: *self.fetch_timeout,
            max_bytes: self.fetch_max_bytes.as_u64(),
            max_redirects: self.fetch_max_redirects,
            max_concurrent: self.fetch_max_concurrent,
            allow_cidrs: self.fetch_allow_cidr.clone(),
            allow_ports: self.fetch_allow_port.clone(),
            ..FetchConfig::default()
        }
    }
}

/// Bounds on what is worked on at one time.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    // 512 requests of 20 images/s each wait 25 s at worst on the slowest machine we know: under the time-out below.
    /// Requests that are worked on at one time; further ones are answered 503 at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = whole(1..=65_536), env = "IMGCLASS_MAX_CONCURRENT_REQUESTS")]
    pub max_concurrent_requests: usize,

    /// Prepared images that wait for the model at one time [default: 64, or two full batches for each forward pass if that is more]
    #[arg(long, value_name = "N", value_parser = whole(1..=4096), env = "IMGCLASS_QUEUE_CAPACITY")]
    pub queue_capacity: Option<usize>,

    /// Images in one forward pass at most [default: 4 on the CPU, where up to eight run at one time; 64 on a GPU]
    #[arg(long, value_name = "N", value_parser = whole(1..=256), env = "IMGCLASS_MAX_BATCH_SIZE")]
    pub max_batch_size: Option<usize>,

    /// How long a forward pass that is not full waits for more images; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = batch_delay, env = "IMGCLASS_MAX_BATCH_DELAY")]
    pub max_batch_delay: humantime::Duration,

    /// The deadline of a request, from its admission to its answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, env = "IMGCLASS_REQUEST_TIMEOUT")]
    pub request_timeout: humantime::Duration,

    // 178956970 is Pillow's MAX_IMAGE_PIXELS; half of it still is a 89-megapixel photograph.
    /// Pixels of an image at most, judged before decoding
    #[arg(long, value_name = "N", default_value_t = 89_478_485, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), env = "IMGCLASS_MAX_PIXELS")]
    pub max_pixels: u64,

    // A forward pass needs far less; this is what keeps many large images at one time from filling a container.
    /// Memory for images that are being decoded at one time, together; also the most that one image may take
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::mib(768), value_parser = decode_memory, env = "IMGCLASS_MAX_DECODED_BYTES")]
    pub max_decoded_bytes: ByteSize,
}

/// The largest side of an image: as far as the formats' decoders go (JPEG's own limit is 65,535).
const MAX_SIDE: u32 = 65_535;

/// One thread gains nothing beyond this (docs/benchmarks.md), and there is a batch for each thread.
const CPU_BATCH: usize = 4;

/// A GPU wants thousands of pixels in every layer, and the last has 49 an image: the size at which frameworks are usually compared. Not
/// measured here.
const GPU_BATCH: usize = 64;

/// One prepared input is 0.6 MB, 0.15 MB for a GPU: 64 of them are 38 MB, and sixteen full batches on the CPU.
const QUEUE_CAPACITY: usize = 64;

/// No batch that ends takes this long on any machine that a service should run on.
const STUCK_AFTER: Duration = Duration::from_secs(10);

impl LimitArgs {
    fn image_limits(&self) -> Limits {
        Limits {
            max_pixels: self.max_pixels,
            max_side: MAX_SIDE,
            max_decoded_bytes: self.max_decoded_bytes.as_u64(),
        }
    }

    /// Images in one forward pass at most: as asked for, else what suits the device.
    fn max_batch_size(&self, model: &ModelInfo) -> usize {
        self.max_batch_size.unwrap_or(match model.accelerated {
            true => GPU_BATCH,
            false => CPU_BATCH,
        })
    }

    fn engine_options(&self, model: &ModelInfo) -> EngineOptions {
        let max_batch_size = self.max_batch_size(model);
        // The next batches are prepared while some run.
        let queue_capacity = QUEUE_CAPACITY.max(2 * max_batch_size * model.passes);
        EngineOptions {
            max_concurrent_requests: self.max_concurrent_requests,
            queue_capacity: self.queue_capacity.unwrap_or(queue_capacity),
            max_batch_size,
            max_batch_delay: *self.max_batch_delay,
            stuck_after: STUCK_AFTER,
        }
    }
}

/// Everything that classifying needs, by HTTP or from the command line.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// The model and what runs it.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How much at one time.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Fetching image URLs.
    #[command(flatten)]
    pub fetch: FetchArgs,
}

impl ServiceArgs {
    /// The service's options; some defaults depend on where the model runs.
    pub fn service_options(&self, model: &ModelInfo) -> ServiceOptions {
        ServiceOptions {
            fetch: self.fetch.config(),
            image: self.limits.image_limits(),
            engine: self.limits.engine_options(model),
            request_timeout: *self.limits.request_timeout,
            decode_threads: self.model.threads(),
        }
    }
}

/// Bounds of HTTP itself.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// The largest request body in bytes.
    pub payload_limit: usize,
    /// The longest that a client may take to send a body.
    pub body_timeout: Duration,
    /// Images in one request at most.
    pub max_images: usize,
}

/// What clients of the inference protocols call the model, unless the operator says otherwise.
pub const DEFAULT_MODEL_NAME: &str = "resnet50";

/// The HTTP server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// The address to listen on
    #[arg(long, default_value = "0.0.0.0", env = "IMGCLASS_HOSTNAME")]
    pub hostname: String,

    /// The port to listen on; 0 takes a free one [default: $PORT, else 8000]
    #[arg(long, env = "IMGCLASS_PORT")]
    pub port: Option<u16>,

    // Base64 of a 20 MiB image is 27 MiB.
    /// The largest request body
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::mib(32), value_parser = size, env = "IMGCLASS_PAYLOAD_LIMIT")]
    pub payload_limit: ByteSize,

    /// The longest that a client may take to send a request's body
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, env = "IMGCLASS_BODY_TIMEOUT")]
    pub body_timeout: humantime::Duration,

    // Four full batches: more is better sent as several requests, which share the model fairly with everybody else's.
    /// Images in one request at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole(1..=1024), env = "IMGCLASS_MAX_IMAGES_PER_REQUEST")]
    pub max_images_per_request: usize,

    /// What clients of the inference protocols (/v2/models/NAME, /v1/models/NAME) call the model
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MODEL_NAME, value_parser = model_name, env = "IMGCLASS_SERVED_MODEL_NAME")]
    pub served_model_name: String,

    /// After SIGTERM, how long the service goes on serving while it says that it is not ready, so that load balancers leave it first
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = shutdown_delay, env = "IMGCLASS_SHUTDOWN_DELAY")]
    pub shutdown_delay: humantime::Duration,

    /// After that, how long requests that were accepted may take to finish
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, env = "IMGCLASS_SHUTDOWN_TIMEOUT")]
    pub shutdown_timeout: humantime::Duration,
}

/// The port where none is named.
const DEFAULT_PORT: u16 = 8000;

impl ServerArgs {
    /// The bounds of HTTP itself.
    pub fn http_limits(&self) -> HttpLimits {
        HttpLimits {
            payload_limit: usize::try_from(self.payload_limit.as_u64()).unwrap_or(usize::MAX),
            body_timeout: *self.body_timeout,
            max_images: self.max_images_per_request,
        }
    }

    /// The port by precedence: `--port`, `IMGCLASS_PORT`, then `PORT` as hosting platforms set it, then 8000.
    pub fn port(&self) -> Result<u16, String> {
        Self::port_or_default(self.port)
    }

    /// [`ServerArgs::port`] for commands that know no other option of the server.
    pub fn port_or_default(flag: Option<u16>) -> Result<u16, String> {
        port(flag, std::env::var("PORT").ok())
    }
}

fn port(flag: Option<u16>, variable: Option<String>) -> Result<u16, String> {
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

/// A parser for whole numbers within a range.
fn whole(
    range: RangeInclusive<usize>,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "expected a whole number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// A model's name as it stands in paths: one segment, without the colon that TensorFlow Serving's paths give a meaning.
fn model_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text {
        _ if (1..=128).contains(&text.len()) && text.chars().all(fits) => Ok(text.to_owned()),
        _ => Err("expected 1 to 128 letters, digits, '-', '_' and '.'".to_owned()),
    }
}

/// A span of time that is not zero and not over a day.
fn time(text: &str) -> Result<humantime::Duration, String> {
    match text.parse::<humantime::Duration>() {
        Ok(time) if (Duration::from_millis(1)..=Duration::from_hours(24)).contains(&*time) => {
            Ok(time)
        }
        _ => Err("expected a time from 1ms to 24h, such as 500ms or 30s".to_owned()),
    }
}

/// A short span of time that may be zero.
fn batch_delay(text: &str) -> Result<humantime::Duration, String> {
    up_to(
        text,
        Duration::from_secs(10),
        "expected a time from 0s to 10s, such as 5ms",
    )
}

/// A span of time that may be zero, and is shorter than anybody waits for a process to end.
fn shutdown_delay(text: &str) -> Result<humantime::Duration, String> {
    up_to(
        text,
        Duration::from_mins(10),
        "expected a time from 0s to 10m, such as 5s",
    )
}

fn up_to(text: &str, longest: Duration, expected: &str) -> Result<humantime::Duration, String> {
    match text.parse::<humantime::Duration>() {
        Ok(time) if *time <= longest => Ok(time),
        _ => Err(expected.to_owned()),
    }
}

/// An amount of memory or data that is not zero and fits the arithmetic of 32-bit counters in KiB.
fn size(text: &str) -> Result<ByteSize, String> {
    sized(text, ByteSize::kib(1)..=ByteSize::tib(1))
}

/// What decoding may take: under 16 MiB ordinary photographs would be refused.
fn decode_memory(text: &str) -> Result<ByteSize, String> {
    sized(text, ByteSize::mib(16)..=ByteSize::tib(1))
}

fn sized(text: &str, range: RangeInclusive<ByteSize>) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if range.contains(&size) => Ok(size),
        _ => Err(format!(
            "expected a size from {} to {}, such as 20MiB",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                port(flag, variable.map(str::to_owned)).map_err(|_| ()),
                expected,
                "{flag:?} {variable:?}"
            );
        }
    }
}
