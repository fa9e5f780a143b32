//! What can go wrong in a fetch. Keeps what the caller may be told apart from what the log says; never names an HTTP
//! status of ours.

use std::net::IpAddr;
use std::time::Duration;

/// The one text for everything that fails before a vetted connection exists, so that answers do not tell a stranger
/// which internal names, addresses and ports exist.
const UNUSABLE: &str = "the image URL could not be used: it must be an http or https URL without user name or \
     password, on an allowed port of a public server that accepts the connection in time, with a valid \
     certificate if it is https";

/// Why a URL gave no bytes. `Display` is for the log and never holds a query string or user info of a URL; what the
/// caller may see is [`FetchError::public_message`].
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL was refused, or no vetted connection came to be.
    #[error("image URL unusable: {0}")]
    Unusable(#[from] Unusable),
    /// A vetted server was reached, and its answer is no image.
    #[error("image server's answer unusable: {0}")]
    Answer(#[from] Answer),
    /// The body or the decoded `data:` URL is larger than allowed.
    #[error("image larger than the limit of {limit} bytes")]
    TooLarge {
        /// [`FetchConfig::max_bytes`](super::FetchConfig::max_bytes).
        limit: u64,
    },
    /// The `data:` URL in the request is malformed.
    #[error("data URL invalid: {0}")]
    InvalidDataUrl(#[from] DataUrlFault),
    /// Every slot stayed taken for the whole total time limit: our own load, not the image's fault.
    #[error("all {limit} fetch slots stayed busy")]
    Busy {
        /// [`FetchConfig::max_concurrent`](super::FetchConfig::max_concurrent).
        limit: usize,
    },
}

impl FetchError {
    /// What the caller may be told. Before a vetted connection exists it is one constant text; after, it says what the
    /// other side did, without repeating text that the other side chose.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::Unusable(_) => UNUSABLE.to_owned(),
            Self::Answer(answer) => answer.public_message(),
            Self::TooLarge { limit } => {
                format!("the image is larger than {limit} bytes; send a smaller one")
            }
            Self::InvalidDataUrl(fault) => {
                format!("{fault}; the form is data:image/png;base64,...")
            }
            Self::Busy { .. } => "too many images are being fetched; try again later".to_owned(),
        }
    }
}

impl From<Refusal> for FetchError {
    fn from(refusal: Refusal) -> Self {
        Self::Unusable(refusal.into())
    }
}

/// Why there was no vetted connection.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Our policy refused the URL, a redirect's target, or an address behind its name.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// Look-up, TCP or TLS failed; the client's own words.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The time ran out before the server answered.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
}

/// Why the policy refused a URL or an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Longer than [`FetchConfig::max_url_length`](super::FetchConfig::max_url_length).
    #[error("URL longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not a URL with a host.
    #[error("not a URL: {0}")]
    Malformed(#[from] url::ParseError),
    /// A tab, newline, NUL or other control character in the text.
    #[error("control character in URL")]
    ControlCharacter,
    /// A backslash, which some parsers read as a slash.
    #[error("backslash in URL")]
    Backslash,
    /// A user name, a password, or an `@` that announces one.
    #[error("user info in URL")]
    UserInfo,
    /// Neither http nor https.
    #[error("scheme {0:?} is neither http nor https")]
    Scheme(String),
    /// A redirect from https to http.
    #[error("redirect from https to http")]
    Downgrade,
    /// Neither 80, 443 nor one of [`FetchConfig::allow_ports`](super::FetchConfig::allow_ports).
    #[error("port {0} is not open (--fetch-allow-port opens it)")]
    Port(u16),
    /// An address that is not public, or that carries an IPv4 address that is not.
    #[error("address {address} is not public: {range} (--fetch-allow-cidr opens a range)")]
    Address {
        /// The address as it would be dialled.
        address: IpAddr,
        /// The range it fell in, and what that is reserved for.
        range: &'static str,
    },
    /// The name has no address.
    #[error("name has no address")]
    NoAddress,
    /// The client could not say which address it had reached.
    #[error("address of the peer unknown")]
    UnknownPeer,
}

/// What a vetted server did instead of sending an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Answer {
    /// A status other than 200 and the redirects.
    #[error("status {0}")]
    Status(u16),
    /// More redirects than allowed.
    #[error("more than {limit} redirects")]
    TooManyRedirects {
        /// [`FetchConfig::max_redirects`](super::FetchConfig::max_redirects).
        limit: usize,
    },
    /// A redirect whose `Location` is missing or not UTF-8.
    #[error("redirect {0} without a readable Location")]
    RedirectNowhere(u16),
    /// A `Content-Encoding` although we asked for none: it could expand without bound.
    #[error("content encoding {0:?}")]
    ContentEncoding(String),
    /// No byte in the body.
    #[error("empty body")]
    Empty,
    /// Silent for the idle time limit.
    #[error("silent for {limit:?}")]
    Stalled {
        /// [`FetchConfig::idle_timeout`](super::FetchConfig::idle_timeout).
        limit: Duration,
    },
    /// Still sending when the total time limit passed.
    #[error("not done within {limit:?}")]
    TooSlow {
        /// [`FetchConfig::total_timeout`](super::FetchConfig::total_timeout).
        limit: Duration,
    },
    /// Not HTTP, a head beyond the client's bounds, or a body cut short; the client's own words.
    #[error("broken: {0}")]
    Broken(String),
}

impl Answer {
    fn public_message(&self) -> String {
        match self {
            Self::Status(status) => format!("the image server answered with status {status}"),
            Self::TooManyRedirects { limit } => {
                format!("the image server redirected more than {limit} times")
            }
            Self::RedirectNowhere(status) => {
                format!("the image server answered with status {status} and no usable Location")
            }
            Self::ContentEncoding(_) => {
                "the image server compressed its answer although that was not accepted".to_owned()
            }
            Self::Empty => "the image server sent an empty body".to_owned(),
            Self::Stalled { limit } => {
                format!("the image server went silent for {}", seconds(*limit))
            }
            Self::TooSlow { limit } => format!(
                "the image server was still sending after {}",
                seconds(*limit)
            ),
            Self::Broken(_) => {
                "the image server broke off its answer or did not send valid HTTP".to_owned()
            }
        }
    }
}

fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// What is wrong with a `data:` URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataUrlFault {
    /// No comma within the first bytes, where media type and data part.
    #[error("a data URL needs a comma between media type and data")]
    Comma,
    /// The media type is missing or not `image/...`.
    #[error("a data URL's media type must be image/...")]
    MediaType,
    /// The data are not announced as `;base64`.
    #[error("a data URL's data must be base64")]
    NotBase64,
    /// A `%` without two hexadecimal digits after it.
    #[error("a data URL's data hold a percent sign without two hexadecimal digits")]
    Percent,
    /// Not the standard base64 alphabet, or wrong padding.
    #[error("a data URL's data are not valid base64 (standard alphabet, not the URL-safe one)")]
    Base64,
    /// Nothing after the comma.
    #[error("a data URL's data are empty")]
    Empty,
}

/// Why a [`Fetcher`](super::Fetcher) cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `max_concurrent` is 0 or beyond what a semaphore counts.
    #[error("{0} concurrent fetches are out of range: choose at least 1")]
    Concurrency(usize),
    /// The HTTP or TLS client did not start.
    #[error(
        "the client for fetching images cannot start: {0}; it needs the system's root certificates (the \
         ca-certificates package, or SSL_CERT_FILE)"
    )]
    Client(String),
}
