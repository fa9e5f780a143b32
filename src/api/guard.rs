//! Who may pass: keys and rates, before anything is read of a request but its head. It knows routes by their paths only, and what it does
//! not know is closed.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use poem::{Addr, Endpoint, IntoResponse, Middleware, Request, Response};

use super::problem::Failure;
use super::rate::{Caller, RateLimiter};
use crate::config::{Access, ApiKey, caller_address};

/// Open to everybody whatever keys there are: probes and scrapers carry none, and the documentation says nothing secret.
const OPEN: [&str; 14] = [
    "/",
    "/index.html",
    "/page.css",
    "/page.js",
    "/icon.svg",
    "/example.jpg",
    "/docs",
    "/openapi.json",
    "/health/live",
    "/health/ready",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
];

/// Stands before the routes.
pub(super) struct Guard {
    rules: Arc<Rules>,
}

struct Rules {
    access: Access,
    rate: Option<RateLimiter>,
}

impl Guard {
    pub(super) fn new(access: Access) -> Self {
        let rate = access.rate.map(RateLimiter::new);
        Self {
            rules: Arc::new(Rules { access, rate }),
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
        if !OPEN.contains(&request.uri().path()) {
            self.rules.judge(&request)?;
        }
        self.inner
            .call(request)
            .await
            .map(IntoResponse::into_response)
    }
}

impl Rules {
    fn judge(&self, request: &Request) -> Result<(), Failure> {
        let key = self.key(request);
        if let Some(rate) = &self.rate {
            // Without a right key the address pays, so that keys cannot be guessed any faster than the rate.
            let caller = key.map_or_else(|| Caller::Address(self.address(request)), Caller::Key);
            rate.take(caller, Instant::now())
                .map_err(Failure::rate_limited)?;
        }
        if key.is_none() && !self.access.keys.is_empty() {
            return Err(Failure::unauthorized());
        }
        Ok(())
    }

    /// The number of the key that the request carries, if it is one of ours.
    fn key(&self, request: &Request) -> Option<usize> {
        let given = ApiKey::of(given_key(request)?);
        self.access.keys.iter().position(|key| *key == given)
    }

    /// Where the request comes from: the peer, or what the outermost of our own proxies saw.
    fn address(&self, request: &Request) -> IpAddr {
        let peer = match &request.remote_addr().0 {
            Addr::SocketAddr(address) => address.ip(),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        caller_address(self.forwarded_for(request).unwrap_or(peer))
    }

    fn forwarded_for(&self, request: &Request) -> Option<IpAddr> {
        let from_the_right = self.access.trusted_proxies.checked_sub(1)?;
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let texts: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let hops: Vec<&str> = texts.iter().flat_map(|text| text.split(',')).collect();
        hops.iter().rev().nth(from_the_right)?.trim().parse().ok()
    }
}

/// What follows `Bearer`, else `X-API-Key`.
fn given_key(request: &Request) -> Option<&[u8]> {
    let bearer = request.headers().get("authorization").and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme
            .eq_ignore_ascii_case(b"bearer ")
            .then_some(key.trim_ascii())
    });
    bearer.or_else(|| Some(request.headers().get("x-api-key")?.as_bytes()))
}
