//! Admission, queue, batching and the workers that run the model. Knows jobs and deadlines; knows no HTTP, no pixels and no tensors, and
//! nothing in it is async but the waiting for a place or a reply.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod admission;
mod batching;
mod monitor;
mod queue;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use admission::{Admission, Place, Refusal};
pub use monitor::WorkerHealth;

use imgclass_network::{Input, Network, NetworkError, Output, Want};
use monitor::Monitor;
use queue::{Job, Queue};
use worker::Worker;

/// What the engine tells whoever counts. Called from a worker's thread: must be quick and must not panic.
pub trait Observer: Send + Sync + 'static {
    /// A batch of so many images ran for so long.
    fn batch_finished(&self, _images: usize, _took: Duration) {}
    /// Jobs were dropped before they cost a forward: callers that left, deadlines that passed.
    fn jobs_dropped(&self, _abandoned: usize, _expired: usize) {}
    /// A worker panicked and was replaced.
    fn worker_panicked(&self) {}
}

/// Counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// The engine's bounds.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Requests that are admitted at one time; further ones are refused at once.
    pub max_concurrent_requests: usize,
    /// Prepared inputs that wait at one time; who has admission waits for a place among them.
    pub queue_capacity: usize,
    /// Images in one forward pass at most.
    pub max_batch_size: usize,
    /// How long a batch that is not full waits for more. Zero: not at all.
    pub max_batch_delay: Duration,
    /// A batch that takes many times longer than they usually do is stuck, if it has also run for this long: on a busy machine short
    /// batches vary a lot.
    pub stuck_after: Duration,
}

/// Why a job has no output.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The deadline passed before the job's turn came.
    #[error("the deadline passed while the image waited for the model")]
    DeadlinePassed,
    /// The engine is closed.
    #[error("the engine has stopped")]
    Stopped,
    /// A worker panicked on this job's batch.
    #[error("the worker panicked while it ran this image's batch")]
    WorkerPanicked,
    /// The model refused the batch or failed on it.
    #[error("the model failed: {0}")]
    Model(Arc<NetworkError>),
}

/// Why an engine does not start.
#[derive(Debug, Error)]
pub enum EngineStartError {
    /// No thread for a worker.
    #[error("a worker's thread cannot start: {0}")]
    Thread(#[from] std::io::Error),
    /// The model failed before its first batch.
    #[error("the model failed its warm-up: {0}")]
    WarmUp(#[from] NetworkError),
    /// The model panicked before its first batch.
    #[error("the model panicked in its warm-up")]
    Panicked,
}

/// A job's output and where its time went.
#[derive(Debug)]
pub struct Done {
    /// The model's output.
    pub output: Output,
    /// From submission to the start of the batch.
    pub queued: Duration,
    /// The batch's forward pass.
    pub inference: Duration,
    /// How many images rode in the batch.
    pub batch_size: usize,
}

/// A place among the prepared inputs that wait, taken before the preparing.
#[derive(Debug)]
pub struct Slot(OwnedSemaphorePermit);

/// Admission, queue and workers.
pub struct Engine {
    admission: Admission,
    images_at_once: usize,
    slots: Arc<Semaphore>,
    queue: Arc<Queue>,
    monitor: Arc<Monitor>,
}

impl Engine {
    /// Starts the workers' threads, and returns when the model is warm.
    pub fn start(
        network: Arc<dyn Network>,
        options: EngineOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, EngineStartError> {
        let queue = Arc::new(Queue::new(options.max_batch_size, options.max_batch_delay));
        let workers = network.passes().get();
        let monitor = Arc::new(Monitor::new(workers, options.stuck_after));
        let worker = Worker {
            network,
            queue: queue.clone(),
            observer,
            monitor: monitor.clone(),
            max_batch_size: options.max_batch_size,
        };
        worker.start(workers)?;
        Ok(Self {
            admission: Admission::new(options.max_concurrent_requests),
            images_at_once: options.max_batch_size.saturating_mul(workers),
            slots: Arc::new(Semaphore::new(options.queue_capacity)),
            queue,
            monitor,
        })
    }

    /// Where requests take their place before any work is done for them.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Takes a place if the requests that are worked on already, and this one, can be answered `within` their deadline at the model's pace
    /// of late: who would only wait in vain is refused at once.
    pub fn admit(&self, within: Duration) -> Result<Place, Refusal> {
        let per_image = self.monitor.per_image();
        let places = self
            .admission
            .places_within(within, per_image, self.images_at_once);
        self.admission.enter_up_to(places)
    }

    /// Waits for a place among the prepared inputs. Held by the job until its batch starts, or given back by dropping it.
    pub async fn slot(&self) -> Result<Slot, EngineError> {
        let permit = self.slots.clone().acquire_owned().await;
        permit.map(Slot).map_err(|_| EngineError::Stopped)
    }

    /// Runs one input; dropping the future drops the job, if its batch has not begun.
    pub async fn run(
        &self,
        slot: Slot,
        input: Input,
        want: Want,
        deadline: Instant,
    ) -> Result<Done, EngineError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            input,
            want,
            deadline,
            submitted: Instant::now(),
            reply,
            _slot: slot.0,
        };
        self.queue.push(job).map_err(|_| EngineError::Stopped)?;
        // The sender is gone without a word only where a panic took its batch along.
        answer.await.unwrap_or(Err(EngineError::WorkerPanicked))
    }

    /// Images that the workers take at one time, at most.
    pub fn images_at_once(&self) -> usize {
        self.images_at_once
    }

    /// How many prepared inputs wait.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// How the workers do.
    pub fn health(&self) -> WorkerHealth {
        self.monitor.health()
    }

    /// Takes no further jobs, finishes those that wait, and ends the workers. Blocks until they have ended or `within` has passed; says
    /// whether they have.
    pub fn stop(&self, within: Duration) -> bool {
        self.admission.drain();
        self.queue.close();
        self.monitor.join(within)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}
