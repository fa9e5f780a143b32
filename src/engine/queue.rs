//! The jobs that wait for the worker. Bounded by the slots that jobs carry; takes what waits, adds no delay unless it is asked to.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batching::{self, Taken, Waiting};
use super::{Done, EngineError};
use crate::model::{Input, Want};

/// One prepared input on its way to the model.
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

/// The queue between requests and the worker.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    max_batch_size: usize,
    max_batch_delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    pub(super) fn new(max_batch_size: usize, max_batch_delay: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            max_batch_size,
            max_batch_delay,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state is valid between any two of its operations.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end; gives it back when the queue is closed.
    pub(super) fn push(&self, job: Job) -> Result<(), Box<Job>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Box::new(job));
        }
        state.jobs.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn depth(&self) -> usize {
        self.lock().jobs.len()
    }

    /// No further jobs; those that wait will still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to take, then takes up to a batch. `None` once the queue is closed and empty.
    pub(super) fn take(&self) -> Option<Taken<Job>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !self.max_batch_delay.is_zero() {
            state = self.wait_for_a_full_batch(state);
        }
        Some(batching::take(&mut state.jobs, self.max_batch_size))
    }

    fn wait_for_a_full_batch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        let until = Instant::now() + self.max_batch_delay;
        while state.jobs.len() < self.max_batch_size && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}
