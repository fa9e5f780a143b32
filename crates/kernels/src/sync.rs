//! The synchronisation primitives of the thread pool: std's, or loom's in a model-checked build.
//!
//! [loom](https://docs.rs/loom) runs a test under every interleaving of its threads that the C11
//! memory model allows. It can only do so if it provides the atomics, locks and threads itself, so
//! the pool takes them from here. `RUSTFLAGS="--cfg loom"` selects loom's.

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle, Thread},
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle, Thread},
};

/// A clock that starts at zero.
#[cfg(not(loom))]
pub(crate) struct Clock(std::time::Instant);

#[cfg(not(loom))]
impl Clock {
    /// Starts a clock.
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Returns the nanoseconds since the start, from a clock that never goes back.
    pub(crate) fn nanoseconds(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A clock on which a second passes between two looks.
///
/// A model has to take the same steps whenever it is run with the same interleaving, so it must not
/// look at the real time. A second is longer than every interval that the pool waits for.
#[cfg(loom)]
pub(crate) struct Clock(std::sync::atomic::AtomicU64);

#[cfg(loom)]
impl Clock {
    /// Starts a clock.
    pub(crate) fn start() -> Self {
        Self(std::sync::atomic::AtomicU64::new(0))
    }

    /// Returns one second more than the time before.
    pub(crate) fn nanoseconds(&self) -> u64 {
        self.0.fetch_add(1_000_000_000, Ordering::Relaxed)
    }
}
