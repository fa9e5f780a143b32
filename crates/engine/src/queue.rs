//! The queue: the jobs that wait for a worker.
//!
//! Its length is bounded by the slots that jobs hold. A free worker takes what waits at once; only
//! with `max_batch_delay` does it wait for its batch to fill.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batching::{self, Taken, Waiting};
use super::{Done, EngineError};
use imgclass_network::{Input, Want};

/// One prepared input on its way to the network.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) input: Input,
    pub(super) want: Want,
    pub(super) deadline: Instant,
    pub(super) submitted: Instant,
    pub(super) reply: oneshot::Sender<Result<Done, EngineError>>,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Waiting for Job {
    fn abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn expired(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// The queue between requests and the workers.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signals a job to a worker that waits for one.
    arrived: Condvar,
    /// Signals one more job to the worker that fills its batch.
    more: Condvar,
    max_batch_size: usize,
    max_batch_delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// How many workers wait for a job.
    idle: usize,
    /// Whether a worker is waiting for its batch to fill.
    filling: bool,
    closed: bool,
}

impl Queue {
    pub(super) fn new(max_batch_size: usize, max_batch_delay: Duration) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            more: Condvar::new(),
            max_batch_size,
            max_batch_delay,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state is valid between any two of its
        // operations.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end.
    ///
    /// # Errors
    /// The job comes back if the queue is closed.
    pub(super) fn push(&self, job: Job) -> Result<(), Box<Job>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Box::new(job));
        }
        state.jobs.push_back(job);
        if state.filling {
            self.more.notify_one();
        } else {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Returns how many jobs wait.
    pub(super) fn depth(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Takes no further jobs. Workers still take those that wait.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.more.notify_all();
    }

    /// Waits until there is a job, then takes up to a batch, but leaves their share to other
    /// workers that wait. Returns `None` once the queue is closed and empty.
    pub(super) fn next_batch(&self) -> Option<Taken<Job>> {
        let mut state = self.lock();
        while state.jobs.is_empty() || state.filling {
            if state.closed && state.jobs.is_empty() {
                return None;
            }
            state.idle += 1;
            state = wait(&self.arrived, state);
            state.idle -= 1;
        }
        if !self.max_batch_delay.is_zero() {
            state = self.wait_for_full_batch(state);
        }
        // An operator who has set the delay wants full batches instead of even shares.
        let others = if self.max_batch_delay.is_zero() {
            state.idle
        } else {
            0
        };
        let share = batching::even_share(state.jobs.len(), others, self.max_batch_size);
        let taken = batching::take_batch(&mut state.jobs, share);
        if !state.jobs.is_empty() || state.closed {
            self.arrived.notify_all();
        }
        Some(taken)
    }

    /// Waits for a full batch, but no longer than the delay.
    fn wait_for_full_batch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        state.filling = true;
        let until = Instant::now() + self.max_batch_delay;
        while state.jobs.len() < self.max_batch_size && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.filling = false;
        state
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner)
}
