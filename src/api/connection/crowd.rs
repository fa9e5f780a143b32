//! The requests of all connections.
//!
//! On HTTP/2 a connection may have [`MAX_STREAMS`](super::MAX_STREAMS) requests under way, and each
//! holds memory, however little is sent for it: its head, and what waits for its body. So the
//! connections that have requests share a number of them. One request at a time is always allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use poem::Response;
use poem::http::{StatusCode, header};

use crate::api::problem::RETRY_AFTER;
use crate::metrics::Metrics;

/// The most requests that all connections together may have under way beside the first of each,
/// before they are admitted too. A request takes some 27 KiB, a head of [`MAX_HEAD`](super::MAX_HEAD)
/// and [`MAX_FIELDS`](super::MAX_FIELDS) as much again.
const MAX_REQUESTS: usize = 2048;

/// The answer to a request of a connection that has more than its share.
const REFUSAL: &str = concat!(
    r#"{"type":"urn:imgclass:problem:overloaded","title":"Overloaded","status":503,"#,
    r#""detail":"there are many connections, and this one has too many requests at one time; "#,
    r#"try again after the time in Retry-After","code":"overloaded"}"#
);

/// How many requests are under way, and on how many connections.
#[derive(Clone)]
pub(in crate::api) struct Crowd {
    counts: Arc<Counts>,
    metrics: Option<Arc<Metrics>>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    /// The connections that have at least one.
    connections: AtomicUsize,
}

impl Crowd {
    /// Returns an empty crowd. Requests that are refused are counted into `metrics`.
    pub(in crate::api) fn new(metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            counts: Arc::default(),
            metrics,
        }
    }

    /// Adds a request to a connection that now has `own` of them, and returns whether these are no
    /// more than its share.
    pub(super) fn join(&self, own: usize) -> bool {
        let Counts {
            requests,
            connections,
        } = &*self.counts;
        let all = requests.fetch_add(1, Ordering::Relaxed) + 1;
        if own == 1 {
            connections.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let sharing = connections.load(Ordering::Relaxed).max(1);
        own <= MAX_REQUESTS / sharing && all <= MAX_REQUESTS + sharing
    }

    /// Takes a request out again, of a connection that has `own` others.
    pub(super) fn leave(&self, own: usize) {
        self.counts.requests.fetch_sub(1, Ordering::Relaxed);
        if own == 0 {
            self.counts.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the answer to a request that is more than its connection's share. It is made here,
    /// because the routes would take more memory and time than it may have.
    pub(super) fn refusal(&self) -> Response {
        if let Some(metrics) = &self.metrics {
            metrics.request_rejected("overloaded");
        }
        Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .content_type("application/problem+json")
            .header(header::RETRY_AFTER, RETRY_AFTER)
            .body(REFUSAL)
    }
}
