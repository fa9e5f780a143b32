//! Admission: bounds how many requests are worked on at one time.
//!
//! It refuses at once instead of letting a request wait, so that an overloaded service answers
//! quickly that it is overloaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Says why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// All places are taken.
    #[error("all {0} places for concurrent requests are taken")]
    Full(usize),
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Draining,
}

/// The share of a deadline that waiting for the network may be planned to take. The rest is for
/// fetching and decoding, and for batches that take longer than the average.
const MARGIN: f64 = 0.8;

/// A request's place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The places for concurrent requests.
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
    ///
    /// # Errors
    /// [`Refusal::Full`] or [`Refusal::Draining`].
    pub fn enter(&self) -> Result<Place, Refusal> {
        self.enter_up_to(self.capacity)
    }

    /// Does what [`Admission::enter`] does, as if there were at most `places` places.
    pub(super) fn enter_up_to(&self, places: usize) -> Result<Place, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        if places < self.capacity && self.in_flight() >= places {
            return Err(Refusal::Full(places));
        }
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place(permit)),
            Err(TryAcquireError::NoPermits) => Err(Refusal::Full(self.capacity)),
            Err(TryAcquireError::Closed) => Err(Refusal::Draining),
        }
    }

    /// Returns how many requests can be answered `within` a time if each takes `per_image`; all
    /// places if that is not known yet. There are never fewer than `batch`, so that one slow batch
    /// does not make the service refuse everybody.
    pub(super) fn places_within(
        &self,
        within: Duration,
        per_image: Option<Duration>,
        batch: usize,
    ) -> usize {
        let Some(per_image) = per_image.filter(|time| !time.is_zero()) else {
            return self.capacity;
        };
        let fitting = within.as_secs_f64() * MARGIN / per_image.as_secs_f64();
        (fitting as usize).max(batch).min(self.capacity)
    }

    /// Refuses all requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Admission::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns how many places are taken.
    pub fn in_flight(&self) -> usize {
        self.capacity
            .saturating_sub(self.places.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_admitted_than_can_be_answered_in_time() {
        let admission = Admission::new(100);
        let ms = Duration::from_millis;
        let table = [
            // within, per image, places
            (ms(30_000), None, 100),
            (ms(30_000), Some(ms(15)), 100),
            (ms(1000), Some(ms(20)), 40),
            (ms(1000), Some(ms(500)), 8),
            (ms(1), Some(ms(60_000)), 8),
            (ms(1000), Some(ms(0)), 100),
        ];
        for (within, per_image, places) in table {
            let found = admission.places_within(within, per_image, 8);
            assert_eq!(found, places, "{within:?} {per_image:?}");
        }
        let first = admission.enter_up_to(2).unwrap();
        let _second = admission.enter_up_to(2).unwrap();
        assert_eq!(admission.enter_up_to(2).unwrap_err(), Refusal::Full(2));
        let _third = admission.enter_up_to(3).unwrap();
        drop(first);
        assert_eq!(admission.enter_up_to(2).unwrap_err(), Refusal::Full(2));
        assert!(admission.enter().is_ok());
    }
}
