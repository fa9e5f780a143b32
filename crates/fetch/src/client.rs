//! Fetches one `http:` or `https:` URL.
//!
//! [`Client::get`] sends a request, follows redirects by hand, and reads the body. The policy
//! checks every URL before it is requested, the first and each redirect's target. Every wait has a
//! time limit, and a body is cut off at the size limit, whatever its `Content-Length` said.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HOST, HeaderMap, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Request, Response, Uri, http};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::{Connection, HttpConnector, HttpInfo};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower_service::Service;
use url::{Position, Url};

use super::config::FetchConfig;
use super::error::{BadAnswer, FetchError, SetupError, UnusableUrl, UrlRefusal};
use super::memory::Share;
use super::policy::{UrlPolicy, redacted_url};
use super::resolve::{Resolve, VettedResolver};

/// The most memory in bytes that is reserved at first because a `Content-Length` announces a body.
///
/// A false header costs its sender nothing, so memory beyond this is reserved only as bytes arrive.
const FIRST_ALLOCATION: usize = 64 * 1024;

/// The most interim responses (status 1xx) before a response. Servers send one or two.
const MAX_INTERIM: usize = 8;

/// What is asked for. Servers that choose by this header send a format that can be decoded.
#[cfg(feature = "avif")]
const ACCEPTED: &str =
    "image/jpeg, image/png, image/webp, image/avif, image/gif, image/bmp, image/tiff, */*;q=0.1";
/// What is asked for. Servers that choose by this header send a format that can be decoded.
#[cfg(not(feature = "avif"))]
const ACCEPTED: &str =
    "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, */*;q=0.1";

/// Dials what the vetted resolver allows, with TLS for https.
type Connector = HttpsConnector<HttpConnector<VettedResolver>>;

/// An HTTP client with the limits of one [`FetchConfig`].
///
/// It does nothing on its own: there is no proxy, redirect, retry, cookie or decompression. Each
/// request has a connection of its own, which closes with it. The servers of strangers never share
/// one, the fetch slots bound how many are open, and hyper bounds a response's head to 100 fields and
/// about 400 KiB.
#[derive(Debug)]
pub(super) struct Client {
    connector: Connector,
    policy: UrlPolicy,
    user_agent: HeaderValue,
    connect_timeout: Duration,
    idle_timeout: Duration,
    total_timeout: Duration,
    max_bytes: u64,
    max_redirects: usize,
}

/// A response, and the connection on which its body comes.
struct Answer {
    response: Response<Incoming>,
    _connection: Running,
}

/// The task that drives a connection. It ends with this value, which closes the connection.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Creates a client that looks names up by `resolver` and dials only vetted addresses.
    ///
    /// # Errors
    ///
    /// Returns a [`SetupError`] if the TLS client cannot start, or if the user agent cannot stand in
    /// a header.
    pub(super) fn new(
        config: &FetchConfig,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SetupError> {
        let policy = UrlPolicy::new(config);
        let resolver = VettedResolver {
            inner: resolver,
            addresses: policy.addresses().clone(),
        };
        let user_agent = HeaderValue::from_str(&config.user_agent);
        Ok(Self {
            connector: connector(config, resolver)?,
            policy,
            user_agent: user_agent.map_err(|_| SetupError::UserAgent(config.user_agent.clone()))?,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            total_timeout: config.total_timeout,
            max_bytes: config.max_bytes,
            max_redirects: config.max_redirects,
        })
    }

    /// Fetches the body behind `raw`, an `http:` or `https:` URL, and follows its redirects. The body
    /// is kept in `memory` and holds it.
    pub(super) async fn get(&self, raw: &str, memory: Share) -> Result<Bytes, FetchError> {
        let clock = Clock::start(self.total_timeout);
        let mut url = self.policy.check(raw)?;
        for _ in 0..=self.max_redirects {
            let answer = self.send_request(&clock, &url).await?;
            match redirect_target(&answer.response)? {
                Some(location) => url = self.policy.check_redirect(&url, location)?,
                None => return self.read_body(&clock, answer, memory).await,
            }
        }
        let limit = self.max_redirects;
        Err(BadAnswer::TooManyRedirects { limit }.into())
    }

    /// Connects, sends one request and waits for the end of the response's head.
    async fn send_request(&self, clock: &Clock, url: &Url) -> Result<Answer, FetchError> {
        let limit = self.connect_timeout.saturating_add(self.idle_timeout);
        match clock.wait(limit, self.exchange(url)).await {
            // Nothing tells whether the connection was up. Counting it as not connected gives the
            // caller the message that reveals less.
            Err(TimedOut { limit, .. }) => Err(UnusableUrl::NoAnswer(limit).into()),
            Ok(outcome) => outcome,
        }
    }

    async fn exchange(&self, url: &Url) -> Result<Answer, FetchError> {
        let connecting = self.connector.clone().call(endpoint(url)?);
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let stream = match connected {
            Err(_) => {
                let text = format!("not connected within {:?}", self.connect_timeout);
                return Err(UnusableUrl::Connect(text).into());
            }
            Ok(Err(error)) => return Err(connect_error(&*error)),
            Ok(Ok(stream)) => stream,
        };
        let mut extras = http::Extensions::new();
        stream.connected().get_extras(&mut extras);
        let peer = extras.get::<HttpInfo>().map(HttpInfo::remote_addr);
        let peer = peer.ok_or(UrlRefusal::UnknownPeer)?;
        self.policy.addresses().check(peer.ip())?;

        let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        let connection = Running(tokio::spawn(connection).abort_handle());
        let mut request = self.request(url)?;
        let too_many = Arc::new(Notify::new());
        bound_interim_responses(&mut request, too_many.clone());
        let response = tokio::select! {
            // The response may have come in the same packet as one interim response too many.
            biased;
            () = too_many.notified() => {
                let text = format!("more than {MAX_INTERIM} interim responses");
                return Err(BadAnswer::Broken(text).into());
            }
            response = sender.send_request(request) => response.map_err(broken)?,
        };
        let status = response.status().as_u16();
        tracing::debug!(url = redacted_url(url), %peer, status, "image server answered");
        Ok(Answer {
            response,
            _connection: connection,
        })
    }

    /// Makes the request for a URL, which tells the server no more than it must.
    fn request(&self, url: &Url) -> Result<Request<Empty<Bytes>>, FetchError> {
        let unusable = |error: http::Error| UnusableUrl::Connect(error.to_string());
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
            .header(HOST, host)
            .header(ACCEPT, ACCEPTED)
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, &self.user_agent)
            .body(Empty::new());
        Ok(request.map_err(unusable)?)
    }

    /// Reads the whole body of a response that is not a redirect.
    async fn read_body(
        &self,
        clock: &Clock,
        mut answer: Answer,
        mut memory: Share,
    ) -> Result<Bytes, FetchError> {
        // 203 comes from proxies that changed something on the way. Other successful statuses have
        // no body (204), a part of one (206), or one that is not the image.
        let response = &mut answer.response;
        if !matches!(response.status().as_u16(), 200 | 203) {
            return Err(BadAnswer::Status(response.status().as_u16()).into());
        }
        refuse_encoding(response.headers())?;
        let limit = self.max_bytes;
        let declared = response.body().size_hint().lower();
        if declared > limit {
            return Err(FetchError::TooLarge { limit });
        }
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        let mut body = Vec::with_capacity(declared.min(FIRST_ALLOCATION));
        while let Some(chunk) = self.read_chunk(clock, response.body_mut()).await? {
            let length = (body.len() + chunk.len()) as u64;
            if length > limit {
                return Err(FetchError::TooLarge { limit });
            }
            if length > memory.bytes() {
                // Doubled each time, so that there are few waits.
                let wanted = (2 * memory.bytes()).max(length).min(limit);
                if !memory.grow(wanted, self.idle_timeout).await {
                    return Err(FetchError::MemoryFull);
                }
            }
            if length > body.capacity() as u64 {
                let capacity = (2 * body.capacity()).min(memory.bytes() as usize);
                body.reserve_exact(capacity.max(length as usize) - body.len());
            }
            body.extend_from_slice(&chunk);
        }
        if body.is_empty() {
            return Err(BadAnswer::Empty.into());
        }
        Ok(memory.hold(body))
    }

    /// Reads the next piece of a body, or `None` at its end.
    async fn read_chunk(
        &self,
        clock: &Clock,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, BadAnswer> {
        let next_data = async {
            loop {
                match body
                    .frame()
                    .await
                    .transpose()?
                    .map(|frame| frame.into_data())
                {
                    // Trailers say nothing that matters here.
                    Some(Err(_trailers)) => {}
                    Some(Ok(data)) => return Ok(Some(data)),
                    None => return Ok(None),
                }
            }
        };
        match clock.wait(self.idle_timeout, next_data).await {
            Ok(outcome) => outcome.map_err(broken),
            Err(timed_out) if timed_out.of_whole_fetch => Err(BadAnswer::TooSlow {
                limit: timed_out.limit,
            }),
            Err(timed_out) => Err(BadAnswer::Stalled {
                limit: timed_out.limit,
            }),
        }
    }
}

/// Makes the connector, which dials only what `resolver` allows, and judges certificates as the
/// operating system does.
fn connector(config: &FetchConfig, resolver: VettedResolver) -> Result<Connector, SetupError> {
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(config.connect_timeout));
    let setup = |error: rustls::Error| SetupError::Client(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_platform_verifier()
        .map_err(setup)?
        .with_no_client_auth();
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http))
}

/// Returns the part of a URL that says where to connect.
fn endpoint(url: &Url) -> Result<Uri, FetchError> {
    let port = url.port_or_known_default().unwrap_or(0);
    let text = format!(
        "{}://{}:{port}/",
        url.scheme(),
        url.host_str().unwrap_or_default()
    );
    let unusable = |error: http::uri::InvalidUri| UnusableUrl::Connect(error.to_string());
    Ok(text.parse().map_err(unusable)?)
}

/// Counts the interim responses to a request, and tells `too_many` when there are too many. hyper
/// itself would skip them for as long as they come.
fn bound_interim_responses(request: &mut Request<Empty<Bytes>>, too_many: Arc<Notify>) {
    let count = AtomicUsize::new(0);
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM {
            too_many.notify_one();
        }
    });
}

/// Returns the `Location` of a redirect, or `None` if the response is not one.
fn redirect_target<B>(response: &Response<B>) -> Result<Option<&str>, BadAnswer> {
    let status = response.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let text = location.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    text.map(Some).ok_or(BadAnswer::RedirectNowhere(status))
}

/// Names in `Content-Encoding` that change nothing about the bytes. Only the first is a content
/// coding; storage services send the others beside plain bodies, as their uploaders wrote them.
const NO_ENCODING: [&str; 6] = ["identity", "none", "binary", "aws-chunked", "utf-8", "utf8"];

/// Returns an error if the body has a `Content-Encoding` that changes its bytes.
fn refuse_encoding(headers: &HeaderMap) -> Result<(), BadAnswer> {
    for value in headers.get_all(CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let mut codings = text.split(',').map(|name| name.trim().to_ascii_lowercase());
        if !codings.all(|name| name.is_empty() || NO_ENCODING.contains(&name.as_str())) {
            return Err(BadAnswer::ContentEncoding(text.into_owned()));
        }
    }
    Ok(())
}

/// Converts an error of connecting, in which the refusal of the vetted resolver may be.
fn connect_error(error: &(dyn Error + Send + Sync + 'static)) -> FetchError {
    let refusal = causes(error).find_map(|cause| cause.downcast_ref::<UrlRefusal>());
    match refusal {
        Some(refusal) => refusal.clone().into(),
        None => UnusableUrl::Connect(text_with_causes(error)).into(),
    }
}

/// Converts an error on a connection to a vetted address.
fn broken(error: hyper::Error) -> BadAnswer {
    BadAnswer::Broken(text_with_causes(&error))
}

/// Joins an error's message with the messages of its causes.
fn text_with_causes(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

/// Iterates over an error and its causes, the outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| {
        (*cause).source()
    })
}

/// Measures the time that one whole fetch has taken.
struct Clock {
    started: Instant,
    total: Duration,
}

/// The time limit that passed.
struct TimedOut {
    limit: Duration,
    /// Whether it is the limit of the whole fetch, and not that of a single wait.
    of_whole_fetch: bool,
}

impl Clock {
    fn start(total: Duration) -> Self {
        Self {
            started: Instant::now(),
            total,
        }
    }

    /// Waits for `work`, for `limit` or for what is left of the whole fetch's time, whichever is
    /// shorter.
    async fn wait<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let of_whole_fetch = left < limit;
        let waited = tokio::time::timeout(left.min(limit), work).await;
        waited.map_err(|_| TimedOut {
            limit: if of_whole_fetch { self.total } else { limit },
            of_whole_fetch,
        })
    }
}
