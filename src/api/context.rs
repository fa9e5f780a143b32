//! What the layers of the interface attach to requests and to answers for each other.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use super::state::BodyShare;

/// The id of a request, as its log lines, its answer's header and its problem documents have it.
#[derive(Debug, Clone)]
pub(super) struct RequestId(Arc<str>);

impl RequestId {
    pub(super) fn new(id: &str) -> Self {
        Self(id.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The share of the memory for request bodies that a request holds.
///
/// It is given back when the request has its answer or its client has left, not when the body is
/// parsed: what is parsed from a body, images above all, is as large as the body.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyMemory(Arc<Mutex<Vec<BodyShare>>>);

impl BodyMemory {
    /// Adds `share` to what the request holds.
    pub(super) fn hold(&self, share: BodyShare) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(share);
    }
}

/// The share of the memory for answers that an answer holds until it has left.
#[derive(Debug, Clone)]
pub(super) struct AnswerMemory(#[allow(dead_code)] Arc<OwnedSemaphorePermit>);

impl AnswerMemory {
    pub(super) fn new(share: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(share))
    }
}

/// Marks an answer whose bytes all requests share, so that it takes no memory of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedAnswer;

/// Marks a request for the path under which the interface is served, but for its last slash. The
/// page's links are relative, so they would lead elsewhere.
#[derive(Debug, Clone)]
pub(super) struct LacksSlash(pub(super) String);

/// Why a request is refused by its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusedHead {
    /// It has no `Host`.
    NoHost,
    /// It has more than one `Host`.
    SeveralHosts,
    /// Its `Host` is no host.
    MalformedHost,
    /// It has more than this many fields.
    TooManyFields(usize),
}
