//! Fetches one `http:` or `https:` URL.
//!
//! [`Client::get`] sends a request, follows redirects by hand, and reads the body. The policy
//! checks every URL before it is requested, the first and each redirect's target. Every wait has a
//! time limit, and a body is cut off at the size limit, whatever its `Content-Length` said.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION,
};
use tokio::time::Instant;
use url::Url;

use super::config::FetchConfig;
use super::error::{BadAnswer, FetchError, SetupError, UnusableUrl, UrlRefusal};
use super::policy::{UrlPolicy, redacted_url};
use super::resolve::{Resolve, VettedResolver};

const USER_AGENT: &str = concat!("imgclass/", env!("CARGO_PKG_VERSION"));

/// The most memory in bytes that is reserved because a `Content-Length` announces a body.
///
/// A false header costs its sender nothing, so memory beyond this is reserved only as bytes arrive.
const FIRST_ALLOCATION: u64 = 64 * 1024;

/// An HTTP client with the limits of one [`FetchConfig`].
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    policy: UrlPolicy,
    connect_timeout: Duration,
    idle_timeout: Duration,
    total_timeout: Duration,
    max_bytes: u64,
    max_redirects: usize,
}

impl Client {
    /// Creates a client that looks names up by `resolver` and dials only vetted addresses.
    ///
    /// # Errors
    ///
    /// Returns [`SetupError::Client`] if the TLS client cannot start.
    pub(super) fn new(
        config: &FetchConfig,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SetupError> {
        let policy = UrlPolicy::new(config);
        let resolver = VettedResolver {
            inner: resolver,
            addresses: policy.addresses().clone(),
        };
        Ok(Self {
            http: http_client(config, resolver)?,
            policy,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            total_timeout: config.total_timeout,
            max_bytes: config.max_bytes,
            max_redirects: config.max_redirects,
        })
    }

    /// Fetches the body behind `raw`, an `http:` or `https:` URL, and follows its redirects.
    pub(super) async fn get(&self, raw: &str) -> Result<Bytes, FetchError> {
        let clock = Clock::start(self.total_timeout);
        let mut url = self.policy.check(raw)?;
        for _ in 0..=self.max_redirects {
            let response = self.send_request(&clock, &url).await?;
            match redirect_target(&response)? {
                Some(location) => url = self.policy.check_redirect(&url, location)?,
                None => return self.read_body(&clock, response).await,
            }
        }
        let limit = self.max_redirects;
        Err(BadAnswer::TooManyRedirects { limit }.into())
    }

    /// Sends one request and waits for the end of the response's head.
    async fn send_request(&self, clock: &Clock, url: &Url) -> Result<Response, FetchError> {
        let limit = self.connect_timeout.saturating_add(self.idle_timeout);
        let request = self.http.get(url.clone()).send();
        let response = match clock.wait(limit, request).await {
            // Nothing tells whether the connection was up. Counting it as not connected gives the
            // caller the message that reveals less.
            Err(TimedOut { limit, .. }) => return Err(UnusableUrl::NoAnswer(limit).into()),
            Ok(Err(error)) => return Err(request_error(error)),
            Ok(Ok(response)) => response,
        };
        let peer = response.remote_addr().ok_or(UrlRefusal::UnknownPeer)?;
        self.policy.addresses().check(peer.ip())?;
        let status = response.status().as_u16();
        tracing::debug!(url = redacted_url(url), %peer, status, "image server answered");
        Ok(response)
    }

    /// Reads the whole body of a response that is not a redirect.
    async fn read_body(&self, clock: &Clock, mut response: Response) -> Result<Bytes, FetchError> {
        // Other successful statuses have no body (204), a part of one (206), or one that is not the
        // image.
        if response.status() != reqwest::StatusCode::OK {
            return Err(BadAnswer::Status(response.status().as_u16()).into());
        }
        refuse_encoding(response.headers())?;
        let limit = self.max_bytes;
        let declared = response.content_length().unwrap_or(0);
        if declared > limit {
            return Err(FetchError::TooLarge { limit });
        }
        let mut body = BytesMut::with_capacity(declared.min(FIRST_ALLOCATION) as usize);
        while let Some(chunk) = self.read_chunk(clock, &mut response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(FetchError::TooLarge { limit });
            }
            body.extend_from_slice(&chunk);
        }
        if body.is_empty() {
            return Err(BadAnswer::Empty.into());
        }
        Ok(body.freeze())
    }

    /// Reads the next piece of a body, or `None` at its end.
    async fn read_chunk(
        &self,
        clock: &Clock,
        response: &mut Response,
    ) -> Result<Option<Bytes>, BadAnswer> {
        match clock.wait(self.idle_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(BadAnswer::Broken(text_with_causes(&error.without_url()))),
            Err(timed_out) if timed_out.of_whole_fetch => Err(BadAnswer::TooSlow {
                limit: timed_out.limit,
            }),
            Err(timed_out) => Err(BadAnswer::Stalled {
                limit: timed_out.limit,
            }),
        }
    }
}

/// Builds the HTTP client, which does nothing on its own: no proxy, redirect, retry or
/// decompression.
///
/// Settings are named even where they are reqwest's default, because another crate in the build may
/// turn on the features behind them.
fn http_client(
    config: &FetchConfig,
    resolver: VettedResolver,
) -> Result<reqwest::Client, SetupError> {
    let headers = HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("image/*, */*;q=0.5")),
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
    ]);
    let builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .default_headers(headers)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        // HTTP/1 without a pool: each request has a connection of its own, which closes with it.
        // The servers of strangers never share one, the fetch slots bound how many are open, and
        // hyper bounds a response's head to 100 fields and about 400 KiB.
        .http1_only()
        .pool_max_idle_per_host(0)
        .connect_timeout(config.connect_timeout)
        .dns_resolver(Arc::new(resolver));
    builder
        .build()
        .map_err(|error| SetupError::Client(text_with_causes(&error)))
}

/// Returns the `Location` of a redirect, or `None` if the response is not one.
fn redirect_target(response: &Response) -> Result<Option<&str>, BadAnswer> {
    let status = response.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let text = location.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    text.map(Some).ok_or(BadAnswer::RedirectNowhere(status))
}

/// Returns an error if the body has a `Content-Encoding` other than `identity`.
fn refuse_encoding(headers: &HeaderMap) -> Result<(), BadAnswer> {
    for value in headers.get_all(CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let codings = text
            .split(',')
            .map(str::trim)
            .filter(|coding| !coding.is_empty());
        if codings
            .into_iter()
            .any(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(BadAnswer::ContentEncoding(text.into_owned()));
        }
    }
    Ok(())
}

/// Converts the client's error by whether a vetted connection was up when it happened.
fn request_error(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    if let Some(refusal) = find_refusal(&error) {
        return refusal.into();
    }
    let text = text_with_causes(&error);
    // Only an error that cannot come from connecting may be told as the other side's answer.
    if error.is_connect() || error.is_timeout() || error.is_builder() {
        return UnusableUrl::Connect(text).into();
    }
    BadAnswer::Broken(text).into()
}

/// Returns the refusal of the vetted resolver, which the client hands back inside its own error.
fn find_refusal(error: &reqwest::Error) -> Option<UrlRefusal> {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<UrlRefusal>())
        .cloned()
}

/// Joins an error's message with the messages of its causes; reqwest's own message says little.
fn text_with_causes(error: &reqwest::Error) -> String {
    let texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

/// Iterates over an error and its causes, the outermost first.
fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let outermost: &'a (dyn Error + 'static) = error;
    std::iter::successors(Some(outermost), |cause: &&'a (dyn Error + 'static)| {
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
