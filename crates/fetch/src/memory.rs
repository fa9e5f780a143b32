//! Bounds the memory of all fetched bodies together, from their first byte until their last user has
//! dropped them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit stands for. Semaphores count in 32 bits, which would end at 4 GiB if they
/// counted bytes.
const KIB: u64 = 1024;

/// What a fetch takes of the memory before it begins. Most pictures need no more, so a fetch that has
/// begun seldom has to wait for others.
const FIRST_SHARE: u64 = 1024 * 1024;

/// The memory for fetched bodies.
#[derive(Debug)]
pub(super) struct BodyMemory {
    kib: Arc<Semaphore>,
    max_body: u64,
}

impl BodyMemory {
    /// Makes a memory of `bytes` in all, but at least enough for one body of `max_body`.
    pub(super) fn new(bytes: u64, max_body: u64) -> Self {
        let kib = usize::try_from(bytes.max(max_body).div_ceil(KIB)).unwrap_or(usize::MAX);
        Self {
            kib: Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS))),
            max_body,
        }
    }

    /// Waits for the first share of a body; `None` if there is none within `limit`.
    pub(super) async fn first_share(&self, limit: Duration) -> Option<Share> {
        let mut share = Share {
            memory: self.kib.clone(),
            held: None,
            bytes: 0,
        };
        let first = FIRST_SHARE.min(self.max_body);
        share.grow(first, limit).await.then_some(share)
    }
}

/// A body's share of the memory.
#[derive(Debug)]
pub(super) struct Share {
    memory: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: u64,
}

impl Share {
    /// Returns the size of the share.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until the share is `bytes` large, but no longer than `limit`. Returns whether it is.
    pub(super) async fn grow(&mut self, bytes: u64, limit: Duration) -> bool {
        let kib = |bytes: u64| u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        let more = kib(bytes).saturating_sub(kib(self.bytes));
        let waiting = self.memory.clone().acquire_many_owned(more);
        let Ok(Ok(permit)) = tokio::time::timeout(limit, waiting).await else {
            return false;
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.bytes = self.bytes.max(bytes);
        true
    }

    /// Gives back what `body` does not need, and ties the rest to it.
    pub(super) fn hold(mut self, mut body: Vec<u8>) -> Bytes {
        body.shrink_to_fit();
        let needed = (body.len() as u64).div_ceil(KIB);
        if let Some(held) = &mut self.held {
            let surplus = held.num_permits() as u64;
            let surplus = usize::try_from(surplus.saturating_sub(needed)).unwrap_or(0);
            drop(held.split(surplus));
        }
        Bytes::from_owner(Held { body, _share: self })
    }
}

/// A body with its share of the memory, which is free again when the last copy of its [`Bytes`] is
/// dropped.
struct Held {
    body: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
