//! Decides who may pass, by keys and rates, before anything but the head of a request is read.
//!
//! The guard knows the routes that are open to everybody by their paths; all others need a key, if
//! there are keys.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use poem::http::StatusCode;
use poem::{Addr, Endpoint, IntoResponse, Middleware, Request, Response};

use super::problem::Failure;
use super::rate::{Caller, RateLimiter};
use crate::config::{Access, ApiKey, RateLimit, caller_address};

/// The routes of probes and scrapers. They carry no keys, and a refusal for their rate would have the
/// service restarted. Their answers are short and cost nothing.
const PROBES: [&str; 5] = [
    "/health/live",
    "/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
];

/// The page and the documentation, which say nothing secret and so need no key.
const OPEN: [&str; 10] = [
    "/",
    "/index.html",
    "/page.css",
    "/page.js",
    "/icon.svg",
    "/example.jpg",
    "/docs",
    "/openapi.json",
    "/openapi-inference.json",
    "/v2",
];

/// How many open routes one caller may ask for at once, at least: the page has five files, and
/// browsers ask for all of them in one moment.
const OPEN_BURST: u32 = 20;

/// How many open routes one caller may ask for in a second, at least.
const OPEN_RATE: f64 = 2.0;

/// The middleware that stands before the routes.
pub(super) struct Guard {
    rules: Arc<Rules>,
}

struct Rules {
    access: Access,
    rate: Option<RateLimiter>,
    /// The limit for the open routes, whose answers are cheaper. A key changes nothing there.
    open_rate: Option<RateLimiter>,
}

impl Guard {
    pub(super) fn new(access: Access) -> Self {
        let rate = access.rate.map(RateLimiter::new);
        let open_rate = access.rate.map(|limit| {
            RateLimiter::new(RateLimit {
                per_second: limit.per_second.max(OPEN_RATE),
                burst: limit.burst.max(OPEN_BURST),
            })
        });
        let rules = Rules {
            access,
            rate,
            open_rate,
        };
        Self {
            rules: Arc::new(rules),
        }
    }
}

impl<E: Endpoint> Middleware<E> for Guard {
    type Output = GuardedEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        GuardedEndpoint {
            inner,
            rules: self.rules.clone(),
        }
    }
}

pub(super) struct GuardedEndpoint<E> {
    inner: E,
    rules: Arc<Rules>,
}

impl<E: Endpoint> Endpoint for GuardedEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let path = request.uri().path();
        if OPEN.contains(&path) {
            self.rules.judge_open(&request)?;
        } else if !PROBES.contains(&path) {
            self.rules.judge(&request)?;
        }
        self.inner
            .call(request)
            .await
            .map(IntoResponse::into_response)
    }
}

impl Rules {
    /// Lets a request pass, or says why not.
    fn judge(&self, request: &Request) -> Result<(), Failure> {
        let key = self.key(request);
        if let Some(rate) = &self.rate {
            // Without a valid key the address pays, so that nobody can guess keys faster than the
            // rate.
            let caller = key.map_or_else(|| Caller::Address(self.address(request)), Caller::Key);
            rate.take(caller, Instant::now()).map_err(rate_limited)?;
        }
        if key.is_none() && !self.access.keys.is_empty() {
            return Err(unauthorized());
        }
        Ok(())
    }

    /// Lets a request for an open route pass, or says that its caller asks too often.
    fn judge_open(&self, request: &Request) -> Result<(), Failure> {
        let Some(rate) = &self.open_rate else {
            return Ok(());
        };
        let caller = Caller::Address(self.address(request));
        rate.take(caller, Instant::now()).map_err(rate_limited)
    }

    /// Returns the index of the key that the request carries, if it is one of ours.
    fn key(&self, request: &Request) -> Option<usize> {
        let given = ApiKey::of(given_key(request)?);
        self.access.keys.iter().position(|key| *key == given)
    }

    /// Returns the address that the request comes from: the peer's, or the one that the outermost
    /// of our own proxies saw.
    fn address(&self, request: &Request) -> IpAddr {
        let peer = match &request.remote_addr().0 {
            Addr::SocketAddr(address) => address.ip(),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        caller_address(self.forwarded_for(request).unwrap_or(peer))
    }

    /// Returns the address in `X-Forwarded-For` that the outermost trusted proxy has written,
    /// counted from the right: everything left of it may be forged.
    fn forwarded_for(&self, request: &Request) -> Option<IpAddr> {
        let from_the_right = self.access.trusted_proxies.checked_sub(1)?;
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let texts: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let hops: Vec<&str> = texts.iter().flat_map(|text| text.split(',')).collect();
        hops.iter().rev().nth(from_the_right)?.trim().parse().ok()
    }
}

fn rate_limited(wait: Duration) -> Failure {
    // Rounded up: who comes back a moment early is refused again.
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u32;
    Failure::new(
        StatusCode::TOO_MANY_REQUESTS,
        "rate-limited",
        "Too many requests",
        "this key or address makes more requests than it may; try again after the time in Retry-After",
    )
    .retry_after(seconds)
}

fn unauthorized() -> Failure {
    Failure::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "A key is needed",
        "send a key as \"Authorization: Bearer KEY\" or \"X-API-Key: KEY\"",
    )
}

/// Returns the key that a request carries: what follows `Bearer` in `Authorization`, else
/// `X-API-Key`.
fn given_key(request: &Request) -> Option<&[u8]> {
    let bearer = request.headers().get("authorization").and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme
            .eq_ignore_ascii_case(b"bearer ")
            .then_some(key.trim_ascii())
    });
    bearer.or_else(|| Some(request.headers().get("x-api-key")?.as_bytes()))
}
