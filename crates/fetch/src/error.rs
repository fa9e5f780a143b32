//! The errors of a fetch.
//!
//! Every error has two texts. `Display` is for the log and gives the reason in full.
//! [`FetchError::public_message`] is for the caller, who may be a stranger. Which HTTP status an
//! error becomes is decided by the service.

use std::net::IpAddr;
use std::time::Duration;

/// The public message of every failure before a vetted connection exists.
///
/// It is always the same, so that answers do not tell a stranger which internal names, addresses
/// and ports exist.
const UNUSABLE: &str = "the image URL could not be used: it must be an http or https URL without \
     user name or password, on an allowed port of a public server that accepts the connection in \
     time, with a valid certificate if it is https";

/// Says why a fetch returned no bytes.
///
/// `Display` is for the log, and never contains the query string or the user info of a URL. What
/// the caller may see is [`FetchError::public_message`].
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL was refused, or there was no connection to an allowed address.
    #[error("image URL unusable: {0}")]
    Unusable(#[from] UnusableUrl),
    /// A server was reached at an allowed address, but its answer is not an image.
    #[error("image server's answer unusable: {0}")]
    Answer(#[from] BadAnswer),
    /// The body, or the decoded `data:` URL, is larger than allowed.
    #[error("image larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes: [`FetchConfig::max_bytes`](super::FetchConfig::max_bytes).
        limit: u64,
    },
    /// The `data:` URL in the request is malformed.
    #[error("data URL invalid: {0}")]
    InvalidDataUrl(#[from] DataUrlFault),
    /// The memory for fetched bodies stayed full. The service has too much load; the image is not at
    /// fault.
    #[error("the memory for fetched images stayed full (--fetch-memory sets it)")]
    MemoryFull,
    /// No slot became free within the time limit of a whole fetch. The service has too much load;
    /// the image is not at fault.
    #[error("all {limit} fetch slots stayed busy")]
    Busy {
        /// The number of slots:
        /// [`FetchConfig::max_concurrent`](super::FetchConfig::max_concurrent).
        limit: usize,
    },
}

impl FetchError {
    /// Returns what the caller may be told.
    ///
    /// Before a vetted connection exists this is one constant text. After that it says what the
    /// server did, without repeating text that the server chose.
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
            Self::MemoryFull | Self::Busy { .. } => {
                "too many images are being fetched; try again later".to_owned()
            }
        }
    }
}

impl From<UrlRefusal> for FetchError {
    fn from(refusal: UrlRefusal) -> Self {
        Self::Unusable(refusal.into())
    }
}

/// Says why there was no connection to an allowed address.
#[derive(Debug, thiserror::Error)]
pub enum UnusableUrl {
    /// The policy refused the URL, a redirect's target, or an address that the name resolves to.
    #[error("refused: {0}")]
    Refused(#[from] UrlRefusal),
    /// The name look-up, TCP or TLS failed; the text is the HTTP client's.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The server did not answer within this time.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
}

/// Says why the policy refused a URL or an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefusal {
    /// The URL is longer than [`FetchConfig::max_url_length`](super::FetchConfig::max_url_length).
    #[error("URL longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The text is not a URL with a host.
    #[error("not a URL: {0}")]
    Malformed(#[from] url::ParseError),
    /// The text contains a tab, newline, NUL or other control character.
    #[error("control character in URL")]
    ControlCharacter,
    /// The text contains a backslash, which some parsers read as a slash.
    #[error("backslash in URL")]
    Backslash,
    /// The URL has a user name, a password, or an `@` that announces one.
    #[error("user info in URL")]
    UserInfo,
    /// The scheme is neither http nor https.
    #[error("scheme {0:?} is neither http nor https")]
    Scheme(String),
    /// A redirect leads from https to http.
    #[error("redirect from https to http")]
    Downgrade,
    /// The port is neither 80, 443 nor one of
    /// [`FetchConfig::allow_ports`](super::FetchConfig::allow_ports).
    #[error("port {0} is not open (--fetch-allow-port opens it)")]
    Port(u16),
    /// The address is not public, or carries an IPv4 address that is not public.
    #[error("address {address} is not public: {range} (--fetch-allow-cidr opens a range)")]
    Address {
        /// The address as it would be dialled.
        address: IpAddr,
        /// The range that it falls in, and what that range is reserved for.
        range: &'static str,
    },
    /// The name has no address.
    #[error("name has no address")]
    NoAddress,
    /// The HTTP client could not tell which address it had reached.
    #[error("address of the peer unknown")]
    UnknownPeer,
}

/// Says what a server at an allowed address did instead of sending an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// The server answered with a status that is neither 200, 203 nor a redirect.
    #[error("status {0}")]
    Status(u16),
    /// The server redirected more often than allowed.
    #[error("more than {limit} redirects")]
    TooManyRedirects {
        /// The number of redirects that were allowed:
        /// [`FetchConfig::max_redirects`](super::FetchConfig::max_redirects).
        limit: usize,
    },
    /// The server redirected with this status, but its `Location` is missing or not UTF-8.
    #[error("redirect {0} without a readable Location")]
    RedirectNowhere(u16),
    /// The body has this `Content-Encoding`, which changes its bytes, although the request asked
    /// for none. It could expand without bound.
    #[error("content encoding {0:?}")]
    ContentEncoding(String),
    /// The body is empty.
    #[error("empty body")]
    Empty,
    /// The server sent nothing for the longest allowed silence.
    #[error("silent for {limit:?}")]
    Stalled {
        /// The longest allowed silence:
        /// [`FetchConfig::idle_timeout`](super::FetchConfig::idle_timeout).
        limit: Duration,
    },
    /// The server was still sending when the time of the whole fetch had passed.
    #[error("not done within {limit:?}")]
    TooSlow {
        /// The time of the whole fetch:
        /// [`FetchConfig::total_timeout`](super::FetchConfig::total_timeout).
        limit: Duration,
    },
    /// The answer is not HTTP, its head is too large, or its body was cut short; the text is the
    /// HTTP client's.
    #[error("broken: {0}")]
    Broken(String),
}

impl BadAnswer {
    /// Returns what the caller may be told; see [`FetchError::public_message`].
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

/// Formats a time limit in seconds.
fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// Says what is wrong with a `data:` URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataUrlFault {
    /// The first 256 bytes contain no comma, which separates the media type from the data.
    #[error("a data URL needs a comma between media type and data")]
    Comma,
    /// The media type is neither `image/...` nor `application/octet-stream`, and it is not missing.
    #[error("a data URL's media type must be image/...")]
    MediaType,
    /// The header does not end with `;base64`.
    #[error("a data URL's data must be base64")]
    NotBase64,
    /// The data contain a `%` without two hexadecimal digits after it.
    #[error("a data URL's data hold a percent sign without two hexadecimal digits")]
    Percent,
    /// The data are not in one of the alphabets of base64, or their padding is wrong.
    #[error("a data URL's data are not valid base64")]
    Base64,
    /// The text is no URL but looks like base64.
    #[error("this is no URL but looks like base64, which needs data:image/jpeg;base64, before it")]
    Scheme,
    /// There are no data after the comma.
    #[error("a data URL's data are empty")]
    Empty,
}

/// Says why a [`Fetcher`](super::Fetcher) cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `max_concurrent` is 0, or more than a semaphore can count.
    #[error("{0} concurrent fetches are out of range: choose at least 1")]
    Concurrency(usize),
    /// The user agent cannot stand in a header.
    #[error("the user agent {0:?} cannot be sent: it may have visible ASCII and blanks only")]
    UserAgent(String),
    /// The HTTP or TLS client could not start.
    #[error(
        "the client for fetching images cannot start: {0}; it needs the system's root certificates \
         (the ca-certificates package, or SSL_CERT_FILE)"
    )]
    Client(String),
}
