//! The thread that runs batches, one after the other. A panic costs its batch and nobody else: the batch's replies are dropped with it,
//! which their callers see, and the loop starts anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::batching::Taken;
use super::queue::{Job, Queue};
use super::{Done, EngineError, EngineStartError, Forward, Observer};
use crate::model::{Input, ModelError, Output, Want};

/// A batch that runs this many times longer than they usually do is stuck ...
const STUCK_FACTOR: u32 = 50;

/// ... if it has also run for this long: on a busy machine short batches vary a lot.
const STUCK_AT_LEAST: Duration = Duration::from_secs(10);

/// So long after the device had no memory for a single image the service is not ready, so that load balancers try others; then it is worth
/// another try, as somebody else may have held that memory.
const OUT_OF_MEMORY_FOR: Duration = Duration::from_secs(10);

/// How the worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerHealth {
    /// It waits for work or runs a batch in about the usual time.
    Well,
    /// Its batch has run far over its usual time.
    Stuck(Duration),
    /// The device had no memory for a single image of late.
    OutOfDeviceMemory,
    /// The device has failed for good.
    DeviceLost,
    /// Its thread has ended.
    Gone,
}

/// The worker's thread and what is known of it.
pub(super) struct Worker {
    state: Arc<Monitor>,
}

#[derive(Default)]
struct Monitor {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    running_since: Option<Instant>,
    usual: Option<Duration>,
    per_image: Option<Duration>,
    out_of_memory_at: Option<Instant>,
    device_lost: bool,
    ended: bool,
}

impl Monitor {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, at: Instant) {
        self.with(|state| state.running_since = Some(at));
    }

    /// Keeps slowly moving averages of what a batch and what each of its images takes.
    fn finish(&self, took: Duration, images: usize) {
        let average = |usual: Option<Duration>, took: Duration| {
            Some(usual.map_or(took, |usual| (usual * 7 + took) / 8))
        };
        let images = u32::try_from(images.max(1)).unwrap_or(u32::MAX);
        self.with(|state| {
            state.running_since = None;
            state.usual = average(state.usual, took);
            state.per_image = average(state.per_image, took / images);
        });
    }

    /// Keeps in mind what a batch's end says of the device.
    fn judge(&self, result: &Result<Vec<Output>, ModelError>) {
        self.with(|state| match result {
            Ok(_) => state.out_of_memory_at = None,
            Err(ModelError::OutOfDeviceMemory { .. }) => {
                state.out_of_memory_at = Some(Instant::now());
            }
            Err(ModelError::DeviceLost { .. }) => state.device_lost = true,
            Err(_) => {}
        });
        if let Err(error @ (ModelError::OutOfDeviceMemory { .. } | ModelError::DeviceLost { .. })) =
            result
        {
            tracing::error!("{error}");
        }
    }
}

impl Worker {
    pub(super) fn start(
        model: Arc<dyn Forward>,
        queue: Arc<Queue>,
        observer: Arc<dyn Observer>,
        max_batch_size: usize,
    ) -> Result<Self, EngineStartError> {
        let monitor = Arc::new(Monitor::default());
        let state = monitor.clone();
        let (warm, warmed) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("imgclass-worker".to_owned())
            .spawn(move || {
                let warm_up = catch_unwind(AssertUnwindSafe(|| model.warm_up(max_batch_size)));
                let fit = matches!(warm_up, Ok(Ok(())));
                // Its receiver waits below, whatever comes.
                let _ = warm.send(warm_up);
                while fit
                    && catch_unwind(AssertUnwindSafe(|| {
                        work(&*model, &queue, &*observer, &monitor)
                    }))
                    .is_err()
                {
                    monitor.with(|state| state.running_since = None);
                    tracing::error!(
                        "the worker panicked; its batch failed, and a new worker takes over"
                    );
                    observer.worker_panicked();
                }
                monitor.with(|state| state.ended = true);
                monitor.ended.notify_all();
            })?;
        match warmed.recv() {
            Ok(Ok(warm)) => warm?,
            Ok(Err(_)) | Err(_) => return Err(EngineStartError::Panicked),
        }
        Ok(Self { state })
    }

    pub(super) fn health(&self) -> WorkerHealth {
        self.state.with(|state| {
            let patience = state.usual.map_or(STUCK_AT_LEAST, |usual| {
                (usual * STUCK_FACTOR).max(STUCK_AT_LEAST)
            });
            match state.running_since.map(|since| since.elapsed()) {
                _ if state.ended => WorkerHealth::Gone,
                _ if state.device_lost => WorkerHealth::DeviceLost,
                _ if state
                    .out_of_memory_at
                    .is_some_and(|at| at.elapsed() < OUT_OF_MEMORY_FOR) =>
                {
                    WorkerHealth::OutOfDeviceMemory
                }
                Some(running) if running > patience => WorkerHealth::Stuck(running),
                _ => WorkerHealth::Well,
            }
        })
    }

    /// What an image has taken lately, as its share of a batch; `None` before the first batch.
    pub(super) fn per_image(&self) -> Option<Duration> {
        self.state.with(|state| state.per_image)
    }

    /// Waits for the end of the thread, but no longer than `within`; says whether it has ended.
    pub(super) fn join(&self, within: Duration) -> bool {
        let state = self
            .state
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .state
            .ended
            .wait_timeout_while(state, within, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

/// Runs batches until the queue is closed and empty.
fn work(model: &dyn Forward, queue: &Queue, observer: &dyn Observer, monitor: &Monitor) {
    while let Some(Taken {
        batch,
        expired,
        abandoned,
    }) = queue.take()
    {
        if abandoned + expired.len() > 0 {
            observer.jobs_dropped(abandoned, expired.len());
        }
        for job in expired {
            // An error here means that the caller has left meanwhile, which is fine.
            let _ = job.reply.send(Err(EngineError::DeadlinePassed));
        }
        if batch.is_empty() {
            continue;
        }
        let started = Instant::now();
        monitor.begin(started);
        let images: Vec<&Input> = batch.iter().map(|job| &job.input).collect();
        let wants: Vec<Want> = batch.iter().map(|job| job.want).collect();
        let result = run(model, &images, &wants);
        let took = started.elapsed();
        monitor.judge(&result);
        monitor.finish(took, batch.len());
        observer.batch_finished(batch.len(), took);
        reply(
            batch,
            result.map_err(|e| EngineError::Model(Arc::new(e))),
            started,
            took,
        );
    }
}

/// Runs a batch; where the device has no memory for it, each half of it, and so on down to single images.
fn run(model: &dyn Forward, images: &[&Input], wants: &[Want]) -> Result<Vec<Output>, ModelError> {
    match model.forward(images, wants) {
        Err(ModelError::OutOfDeviceMemory { reason }) if images.len() > 1 => {
            let half = images.len().div_ceil(2);
            tracing::warn!(
                "the device has no memory for {} images at a time ({reason}): trying {half}; a lower --max-batch-size saves the attempt",
                images.len()
            );
            let mut outputs = run(model, &images[..half], &wants[..half])?;
            outputs.extend(run(model, &images[half..], &wants[half..])?);
            Ok(outputs)
        }
        other => other,
    }
}

fn reply(
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
