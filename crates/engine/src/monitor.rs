//! The monitor: what is known of the workers.
//!
//! Workers report when a batch begins and ends and what the device said. From this the monitor
//! tells the service how its workers are ([`WorkerHealth`]) and how fast images are answered.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgclass_network::{NetworkError, Output};

/// A batch that runs this many times as long as batches usually do is stuck, if it has also run for
/// [`super::EngineOptions::stuck_after`].
const STUCK_FACTOR: u32 = 50;

/// For this long after the device had no memory for a single image, the service is not ready, so
/// that load balancers try others. Then another try is worth it, as another process may have held
/// that memory.
const OUT_OF_MEMORY_PAUSE: Duration = Duration::from_secs(10);

/// Says how the workers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerHealth {
    /// All wait for work or run batches in about the usual time.
    Well,
    /// A batch has been running for this long, far over the usual time.
    Stuck(Duration),
    /// The device had no memory for a single image a short while ago.
    OutOfDeviceMemory,
    /// The device has failed for good.
    DeviceLost,
    /// The thread of at least one worker has ended.
    Gone,
}

/// Collects what the workers report, and answers what others ask.
pub(super) struct Monitor {
    state: Mutex<State>,
    ended: Condvar,
    stuck_after: Duration,
}

struct State {
    /// For each worker, since when it has been running a batch.
    running_since: Vec<Option<Instant>>,
    /// The moving average of a batch's time.
    usual: Option<Duration>,
    /// The moving average of the time from one image to the next.
    per_image: Option<Duration>,
    out_of_memory_at: Option<Instant>,
    device_lost: bool,
    /// How many workers have ended.
    ended: usize,
}

impl Monitor {
    pub(super) fn new(workers: usize, stuck_after: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                running_since: vec![None; workers],
                usual: None,
                per_image: None,
                out_of_memory_at: None,
                device_lost: false,
                ended: 0,
            }),
            ended: Condvar::new(),
            stuck_after,
        }
    }

    /// Runs `f` on the state, under the lock.
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a worker has begun a batch.
    pub(super) fn batch_began(&self, worker: usize, at: Instant) {
        self.with(|state| state.running_since[worker] = Some(at));
    }

    /// Notes that a worker has finished a batch.
    ///
    /// The new time counts for an eighth in the moving averages. Batches that run side by side
    /// share the time, so the time per image is divided by their number too.
    pub(super) fn batch_finished(&self, worker: usize, took: Duration, images: usize) {
        let average = |usual: Option<Duration>, took: Duration| {
            Some(usual.map_or(took, |usual| (usual * 7 + took) / 8))
        };
        self.with(|state| {
            let running = state.running_since.iter().flatten().count();
            let images = u32::try_from(images.max(1) * running.max(1)).unwrap_or(u32::MAX);
            state.running_since[worker] = None;
            state.usual = average(state.usual, took);
            state.per_image = average(state.per_image, took / images);
        });
    }

    /// Notes that a worker's batch has ended in a panic.
    pub(super) fn batch_panicked(&self, worker: usize) {
        self.with(|state| state.running_since[worker] = None);
    }

    /// Notes what a batch's result says of the device.
    pub(super) fn note_result(&self, result: &Result<Vec<Output>, NetworkError>) {
        self.with(|state| match result {
            Ok(_) => state.out_of_memory_at = None,
            Err(NetworkError::OutOfDeviceMemory { .. }) => {
                state.out_of_memory_at = Some(Instant::now());
            }
            Err(NetworkError::DeviceLost { .. }) => state.device_lost = true,
            Err(_) => {}
        });
        if let Err(
            error @ (NetworkError::OutOfDeviceMemory { .. } | NetworkError::DeviceLost { .. }),
        ) = result
        {
            tracing::error!("{error}");
        }
    }

    /// Notes that a worker's thread is about to end.
    pub(super) fn worker_ended(&self) {
        self.with(|state| state.ended += 1);
        self.ended.notify_all();
    }

    /// Returns how the workers are. The most serious condition comes first.
    pub(super) fn health(&self) -> WorkerHealth {
        self.with(|state| {
            let usual = state.usual.unwrap_or_default();
            let patience = (usual * STUCK_FACTOR).max(self.stuck_after);
            let longest = state.running_since.iter().flatten().min();
            match longest.map(Instant::elapsed) {
                _ if state.ended > 0 => WorkerHealth::Gone,
                _ if state.device_lost => WorkerHealth::DeviceLost,
                _ if state
                    .out_of_memory_at
                    .is_some_and(|at| at.elapsed() < OUT_OF_MEMORY_PAUSE) =>
                {
                    WorkerHealth::OutOfDeviceMemory
                }
                Some(running) if running > patience => WorkerHealth::Stuck(running),
                _ => WorkerHealth::Well,
            }
        })
    }

    /// Returns the time from one image to the next at the recent pace; `None` before the first
    /// batch.
    pub(super) fn per_image(&self) -> Option<Duration> {
        self.with(|state| state.per_image)
    }

    /// Waits until all workers have ended, but no longer than `within`. Returns whether they have.
    pub(super) fn join(&self, within: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let working = |state: &mut State| state.ended < state.running_since.len();
        let waited = self.ended.wait_timeout_while(state, within, working);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.ended == state.running_since.len()
    }
}
