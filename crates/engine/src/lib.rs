//! The engine: admission, queue, batching, and the workers that run the network.
//!
//! A request passes through it in this order:
//!
//! ```text
//! admit  ->  slot  ->  run  ->  queue  ->  worker 0 ... worker n  ->  Done
//! refuses    waits     adds     holds      each takes a batch and
//! at once              a job    jobs       runs the network on it
//! ```
//!
//! - [`Engine::admit`] refuses a request that could not be answered in time, before any work is
//!   done for it (`admission.rs`).
//! - [`Engine::slot`] bounds how many prepared inputs wait, and so how much memory they take.
//! - [`Engine::run`] puts a job into the queue (`queue.rs`) and waits for its reply.
//! - There are as many workers as [`Network::passes`] says (`worker.rs`). A worker that is free
//!   takes what waits, up to a batch (`batching.rs`).
//! - `monitor.rs` keeps how long batches take and how the workers are.
//!
//! Only the waiting for a slot or for a reply is async; the workers are threads.

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

/// Is told what the engine does, so that it can count. The calls come from the workers' threads:
/// an implementation must be quick and must not panic.
pub trait Observer: Send + Sync + 'static {
    /// A worker has run a batch of `images` images, which took `took`.
    fn batch_finished(&self, _images: usize, _took: Duration) {}
    /// Jobs were dropped before they cost a forward pass: `abandoned` ones whose callers had left,
    /// and `expired` ones whose deadline had passed.
    fn jobs_dropped(&self, _abandoned: usize, _expired: usize) {}
    /// A worker panicked and was replaced.
    fn worker_panicked(&self) {}
}

/// An [`Observer`] that counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// Bounds what the engine takes in and how it forms batches.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// How many requests are admitted at one time. Further ones are refused at once.
    pub max_concurrent_requests: usize,
    /// How many prepared inputs wait at one time. A request that was admitted waits for a slot
    /// among them.
    pub queue_capacity: usize,
    /// The most images in one batch.
    pub max_batch_size: usize,
    /// How long a batch that is not full waits for more images. Zero does not wait at all.
    pub max_batch_delay: Duration,
    /// The least time after which a batch counts as stuck. It must also have taken many times as
    /// long as batches usually do; on a busy machine the times of short batches vary a lot.
    pub stuck_after: Duration,
}

/// Says why a job has no output.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The deadline passed before the job's turn came.
    #[error("the deadline passed while the image waited for the model")]
    DeadlinePassed,
    /// The engine has been stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// A worker panicked on this job's batch.
    #[error("the worker panicked while it ran this image's batch")]
    WorkerPanicked,
    /// The network refused the batch or failed on it.
    #[error("the model failed: {0}")]
    Model(Arc<NetworkError>),
}

/// Says why an engine does not start.
#[derive(Debug, Error)]
pub enum EngineStartError {
    /// The operating system refused a thread for a worker.
    #[error("a worker's thread cannot start: {0}")]
    Thread(#[from] std::io::Error),
    /// The network failed in its warm-up.
    #[error("the model failed its warm-up: {0}")]
    WarmUp(#[from] NetworkError),
    /// The network panicked in its warm-up.
    #[error("the model panicked in its warm-up")]
    Panicked,
}

/// A job's output, and where its time went.
#[derive(Debug)]
pub struct Done {
    /// The network's output.
    pub output: Output,
    /// The time from the job's submission to the start of its batch.
    pub queued: Duration,
    /// The time that the batch's forward pass took.
    pub inference: Duration,
    /// How many images the batch had.
    pub batch_size: usize,
}

/// A place among the prepared inputs that wait. It is taken before an input is prepared.
#[derive(Debug)]
pub struct Slot(OwnedSemaphorePermit);

/// Admits requests, queues their inputs, and runs them in batches on the workers' threads.
pub struct Engine {
    admission: Admission,
    /// The most images that all workers run at one time.
    images_at_once: usize,
    slots: Arc<Semaphore>,
    queue: Arc<Queue>,
    monitor: Arc<Monitor>,
}

impl Engine {
    /// Starts the workers' threads, and returns when the network is warm on all of them.
    ///
    /// # Errors
    /// A thread cannot start, or the network fails or panics in its warm-up.
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

    /// Returns the admission, where requests take their place before any work is done for them.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Takes a place for a request, if it and the requests before it can be answered `within` their
    /// deadline at the network's recent pace. A request that would wait in vain is refused at once.
    ///
    /// # Errors
    /// [`Refusal`] says whether all places are taken or the service is shutting down.
    pub fn admit(&self, within: Duration) -> Result<Place, Refusal> {
        let per_image = self.monitor.per_image();
        let places = self
            .admission
            .places_within(within, per_image, self.images_at_once);
        self.admission.enter_up_to(places)
    }

    /// Waits for a slot among the prepared inputs. A job holds its slot until its batch has run;
    /// dropping the slot gives it back.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] if the engine has stopped.
    pub async fn slot(&self) -> Result<Slot, EngineError> {
        let permit = self.slots.clone().acquire_owned().await;
        permit.map(Slot).map_err(|_| EngineError::Stopped)
    }

    /// Runs one input and returns its output. Dropping the future drops the job, if its batch has
    /// not begun.
    ///
    /// # Errors
    /// [`EngineError`] says why there is no output.
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
        // The sender is dropped without a reply only if a panic has dropped its batch.
        answer.await.unwrap_or(Err(EngineError::WorkerPanicked))
    }

    /// Returns the most images that all workers run at one time.
    pub fn images_at_once(&self) -> usize {
        self.images_at_once
    }

    /// Returns how many prepared inputs wait in the queue.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// Returns how the workers are.
    pub fn health(&self) -> WorkerHealth {
        self.monitor.health()
    }

    /// Takes no further jobs, finishes those that wait, and ends the workers. Blocks until all
    /// workers have ended or `within` has passed, and returns whether they have ended.
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
