//! The jobs that wait for a worker. Bounded by the slots that jobs carry; takes what waits, adds no delay unless it is asked to.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batching::{self, Taken, Waiting};
use super::{Done, EngineError};
use imgclass_network::{Input, Want};

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

/// The queue between requests and the workers.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is a job for a worker that waits for one.
    arrived: Condvar,
    /// There is one more job for the batch that is being filled.
    more: Condvar,
    max_batch_size: usize,
    max_batch_delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Workers that wait for a job.
    idle: usize,
    /// A worker fills a batch.
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
        match state.filling {
            true => self.more.notify_one(),
            false => self.arrived.notify_one(),
        }
        Ok(())
    }

    pub(super) fn depth(&self) -> usize {
        self.lock().jobs.len()
    }

    /// No further jobs; those that wait will still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.more.notify_all();
    }

    /// Waits until there is something to take, then takes up to a batch, but leaves their share to other workers that wait. `None` once
    /// the queue is closed and empty.
    pub(super) fn take(&self) -> Option<Taken<Job>> {
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
            state = self.fill(state);
        }
        // Who asked for the delay wants full batches.
        let others = match self.max_batch_delay.is_zero() {
            true => state.idle,
            false => 0,
        };
        let share = batching::share(state.jobs.len(), others, self.max_batch_size);
        let taken = batching::take(&mut state.jobs, share);
        if !state.jobs.is_empty() || state.closed {
            self.arrived.notify_all();
        }
        Some(taken)
    }

    /// Waits for a full batch, but no longer than the delay.
    fn fill<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
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
