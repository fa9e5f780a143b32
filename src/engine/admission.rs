//! The bounded number of requests that are worked on at one time. Refuses at once; never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// All places are taken.
    #[error("all {0} places for concurrent requests are taken")]
    Full(usize),
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Draining,
}

/// A place, free again when it is dropped.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The places.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    capacity: usize,
    draining: AtomicBool,
}

impl Admission {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(capacity)),
            capacity,
            draining: AtomicBool::new(false),
        }
    }

    /// Takes a place, or says at once why there is none.
    pub fn enter(&self) -> Result<Place, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place(permit)),
            Err(TryAcquireError::NoPermits) => Err(Refusal::Full(self.capacity)),
            Err(TryAcquireError::Closed) => Err(Refusal::Draining),
        }
    }

    /// Refuses everybody from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Admission::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// How many places are taken.
    pub fn in_flight(&self) -> usize {
        self.capacity
            .saturating_sub(self.places.available_permits())
    }
}
