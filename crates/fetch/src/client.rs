//! One HTTP fetch: hop by hop under the policy and the clock. Never follows a redirect that the policy has not seen,
//! and never holds more of a body than the limit.

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
use super::error::{Answer, FetchError, Refusal, SetupError, Unusable};
use super::policy::{UrlPolicy, redacted_url};
use super::resolve::{Resolve, VettedResolver};

const USER_AGENT: &str = concat!("imgclass/", env!("CARGO_PKG_VERSION"));

/// Memory set aside on the word of a `Content-Length`; more only as bytes arrive, for the header costs a liar nothing.
const FIRST_ALLOCATION: u64 = 64 * 1024;

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

    /// The body behind `raw`, an http or https URL.
    pub(super) async fn get(&self, raw: &str) -> Result<Bytes, FetchError> {
        let clock = Clock::start(self.total_timeout);
        let mut url = self.policy.check(raw)?;
        for _ in 0..=self.max_redirects {
            let response = self.hop(&clock, &url).await?;
            match redirect_target(&response)? {
                Some(location) => url = self.policy.check_redirect(&url, location)?,
                None => return self.body(&clock, response).await,
            }
        }
        let limit = self.max_redirects;
        Err(Answer::TooManyRedirects { limit }.into())
    }

    /// One request, up to the end of the response's head.
    async fn hop(&self, clock: &Clock, url: &Url) -> Result<Response, FetchError> {
        let limit = self.connect_timeout.saturating_add(self.idle_timeout);
        let request = self.http.get(url.clone()).send();
        let response = match clock.within(limit, request).await {
            // Whether the connection was up is not known here, so this counts as none.
            Err(TimedOut { limit, .. }) => return Err(Unusable::NoAnswer(limit).into()),
            Ok(Err(error)) => return Err(failed_hop(error)),
            Ok(Ok(response)) => response,
        };
        let peer = response.remote_addr().ok_or(Refusal::UnknownPeer)?;
        self.policy.addresses().check(peer.ip())?;
        tracing::debug!(url = redacted_url(url), %peer, status = response.status().as_u16(), "image server answered");
        Ok(response)
    }

    /// The whole body of an answer that is no redirect.
    async fn body(&self, clock: &Clock, mut response: Response) -> Result<Bytes, FetchError> {
        // Other successes have no body (204), half of one (206), or one that is not the image.
        if response.status() != reqwest::StatusCode::OK {
            return Err(Answer::Status(response.status().as_u16()).into());
        }
        refuse_encoding(response.headers())?;
        let limit = self.max_bytes;
        let declared = response.content_length().unwrap_or(0);
        if declared > limit {
            return Err(FetchError::TooLarge { limit });
        }
        let mut body = BytesMut::with_capacity(declared.min(FIRST_ALLOCATION) as usize);
        while let Some(chunk) = self.chunk(clock, &mut response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(FetchError::TooLarge { limit });
            }
            body.extend_from_slice(&chunk);
        }
        if body.is_empty() {
            return Err(Answer::Empty.into());
        }
        Ok(body.freeze())
    }

    async fn chunk(&self, clock: &Clock, response: &mut Response) -> Result<Option<Bytes>, Answer> {
        match clock.within(self.idle_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Answer::Broken(chain(&error.without_url()))),
            Err(TimedOut { limit, total: true }) => Err(Answer::TooSlow { limit }),
            Err(TimedOut {
                limit,
                total: false,
            }) => Err(Answer::Stalled { limit }),
        }
    }
}

/// Every setting that keeps the client from doing anything on its own is named, for another crate in the build may turn
/// on the features behind them.
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
        // HTTP/1 without a pool: one fetch, one connection, closed with it. Strangers' servers never share one, the
        // number open is bounded by the slots, and hyper bounds a head to 100 fields and about 400 KiB.
        .http1_only()
        .pool_max_idle_per_host(0)
        .connect_timeout(config.connect_timeout)
        .dns_resolver(Arc::new(resolver));
    builder
        .build()
        .map_err(|error| SetupError::Client(chain(&error)))
}

/// Where an answer redirects to, if it does.
fn redirect_target(response: &Response) -> Result<Option<&str>, Answer> {
    let status = response.status().as_u16();
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let text = location.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    text.map(Some).ok_or(Answer::RedirectNowhere(status))
}

fn refuse_encoding(headers: &HeaderMap) -> Result<(), Answer> {
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
            return Err(Answer::ContentEncoding(text.into_owned()));
        }
    }
    Ok(())
}

/// Sorts the client's error by whether a vetted connection was up.
fn failed_hop(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    if let Some(refusal) = refusal_within(&error) {
        return refusal.into();
    }
    let text = chain(&error);
    // Only what cannot come from connecting may be told as the other side's answer.
    if error.is_connect() || error.is_timeout() || error.is_builder() {
        return Unusable::Connect(text).into();
    }
    Answer::Broken(text).into()
}

/// The vetted resolver's refusal, which the client hands back inside its own error.
fn refusal_within(error: &reqwest::Error) -> Option<Refusal> {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<Refusal>())
        .cloned()
}

/// An error's message with those of its causes: reqwest's own says little.
fn chain(error: &reqwest::Error) -> String {
    let texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let outermost: &'a (dyn Error + 'static) = error;
    std::iter::successors(Some(outermost), |cause: &&'a (dyn Error + 'static)| {
        (*cause).source()
    })
}

/// The time that one fetch has.
struct Clock {
    started: Instant,
    total: Duration,
}

/// Which limit passed.
struct TimedOut {
    limit: Duration,
    total: bool,
}

impl Clock {
    fn start(total: Duration) -> Self {
        Self {
            started: Instant::now(),
            total,
        }
    }

    /// Waits for `work` as long as `limit` and what is left of the total allow.
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, TimedOut> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let total = left < limit;
        let limit_hit = if total { self.total } else { limit };
        let waited = tokio::time::timeout(left.min(limit), work).await;
        waited.map_err(|_| TimedOut {
            limit: limit_hit,
            total,
        })
    }
}
