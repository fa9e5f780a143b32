//! The workers: threads that run the network, each one batch after the other.
//!
//! A panic fails its batch and nothing else. The batch's replies are dropped with it, which its
//! callers see as an error, and the worker goes on with the next batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::batching::Taken;
use super::monitor::Monitor;
use super::queue::{Job, Queue};
use super::{Done, EngineError, EngineStartError, Observer};
use imgclass_network::{Input, Network, NetworkError, Output, Want};

/// What every worker's thread has in hand.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) network: Arc<dyn Network>,
    pub(super) queue: Arc<Queue>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) max_batch_size: usize,
}

impl Worker {
    /// Starts `workers` threads, and returns when the network is warm on all of them.
    ///
    /// # Errors
    /// A thread cannot start, or the network fails or panics in its warm-up.
    pub(super) fn start(&self, workers: usize) -> Result<(), EngineStartError> {
        let (warm, warmed) = mpsc::channel();
        for index in 0..workers {
            let (worker, warm) = (self.clone(), warm.clone());
            let name = format!("imgclass-worker-{index}");
            let spawned = thread::Builder::new().name(name).spawn(move || {
                let size = worker.max_batch_size;
                let warm_up = catch_unwind(AssertUnwindSafe(|| worker.network.warm_up(size)));
                let fit = matches!(warm_up, Ok(Ok(())));
                // Nobody listens any more if another worker has failed; the queue is closed then.
                let _ = warm.send(warm_up);
                if fit {
                    worker.run_until_closed(index);
                }
                worker.monitor.worker_ended();
            });
            if let Err(error) = spawned {
                self.queue.close();
                return Err(error.into());
            }
        }
        for _ in 0..workers {
            let fit = match warmed.recv() {
                Ok(Ok(warm)) => warm.map_err(EngineStartError::from),
                Ok(Err(_)) | Err(_) => Err(EngineStartError::Panicked),
            };
            fit.inspect_err(|_| self.queue.close())?;
        }
        Ok(())
    }

    /// Runs batches until the queue is closed and empty, and starts again after a panic.
    fn run_until_closed(&self, index: usize) {
        while catch_unwind(AssertUnwindSafe(|| self.run_batches(index))).is_err() {
            self.monitor.batch_panicked(index);
            tracing::error!("a worker panicked; its batch failed, and a new worker takes over");
            self.observer.worker_panicked();
        }
    }

    /// Runs batches until the queue is closed and empty.
    fn run_batches(&self, index: usize) {
        while let Some(Taken {
            batch,
            expired,
            abandoned,
        }) = self.queue.next_batch()
        {
            if abandoned + expired.len() > 0 {
                self.observer.jobs_dropped(abandoned, expired.len());
            }
            for job in expired {
                // Sending fails if the caller has left meanwhile, which is fine.
                let _ = job.reply.send(Err(EngineError::DeadlinePassed));
            }
            if !batch.is_empty() {
                self.run_batch(index, batch);
            }
        }
    }

    /// Runs one batch and answers its jobs.
    fn run_batch(&self, index: usize, batch: Vec<Job>) {
        let started = Instant::now();
        self.monitor.batch_began(index, started);
        let images: Vec<&Input> = batch.iter().map(|job| &job.input).collect();
        let wants: Vec<Want> = batch.iter().map(|job| job.want).collect();
        let result = run_in_parts(&*self.network, &images, &wants);
        let took = started.elapsed();
        self.monitor.note_result(&result);
        self.monitor.batch_finished(index, took, batch.len());
        self.observer.batch_finished(batch.len(), took);
        let result = result.map_err(|e| EngineError::Model(Arc::new(e)));
        send_replies(batch, result, started, took);
    }
}

/// Runs a batch. If the device has no memory for it, runs each half of it, and so on down to single
/// images.
fn run_in_parts(
    network: &dyn Network,
    images: &[&Input],
    wants: &[Want],
) -> Result<Vec<Output>, NetworkError> {
    match network.run_batch(images, wants) {
        Err(NetworkError::OutOfDeviceMemory { reason }) if images.len() > 1 => {
            let half = images.len().div_ceil(2);
            tracing::warn!(
                "the device has no memory for {} images at a time ({reason}): trying {half}; \
                 a lower --max-batch-size saves the attempt",
                images.len()
            );
            let mut outputs = run_in_parts(network, &images[..half], &wants[..half])?;
            outputs.extend(run_in_parts(network, &images[half..], &wants[half..])?);
            Ok(outputs)
        }
        other => other,
    }
}

/// Sends each job its output. If there are fewer outputs than jobs, the rest are told that their
/// worker failed.
fn send_replies(
    batch: Vec<Job>,
    result: Result<Vec<Output>, EngineError>,
    started: Instant,
    took: Duration,
) {
    let batch_size = batch.len();
    let mut outputs = result.map(Vec::into_iter);
    for job in batch {
        let answer = match &mut outputs {
            Ok(outputs) => outputs
                .next()
                .ok_or(EngineError::WorkerPanicked)
                .map(|output| Done {
                    output,
                    queued: started.saturating_duration_since(job.submitted),
                    inference: took,
                    batch_size,
                }),
            Err(EngineError::Model(e)) => Err(EngineError::Model(e.clone())),
            Err(_) => Err(EngineError::WorkerPanicked),
        };
        let _ = job.reply.send(answer);
    }
}
