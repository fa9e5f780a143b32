//! How much is decoded at one time: the threads that do it, and the memory that they may hold together. It knows no images.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use super::ServiceError;

/// The weight of one permit of the memory: semaphores count in 32 bits.
const KIB: u64 = 1024;

/// Threads of their own for decoding. Each is a pool of rayon's with nobody else in it, because the JPEG decoder shares its rows out by
/// rayon: elsewhere it would start threads for each picture, and in a common pool wake the others for each row, which costs a twentieth of
/// the work and core changes on a machine that is busy anyway. A picture of 12 megapixels that is decoded alone takes a fifth longer so.
pub(super) struct Decoders {
    threads: Vec<ThreadPool>,
    /// Those of the threads that do nothing, by their place; as many as `free` has permits.
    idle: Arc<Mutex<Vec<usize>>>,
    free: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// In KiB.
    total_memory: u64,
}

/// One of the threads, idle again when dropped.
struct Turn {
    thread: usize,
    idle: Arc<Mutex<Vec<usize>>>,
    /// Given back after the thread.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.thread);
    }
}

impl Decoders {
    /// `threads` works at one time, which may hold `memory` bytes together.
    pub(super) fn new(threads: NonZeroUsize, memory: u64) -> Result<Self, ThreadPoolBuildError> {
        let kib = usize::try_from(memory / KIB).unwrap_or(usize::MAX);
        let kib = kib.min(Semaphore::MAX_PERMITS);
        let thread = |i| {
            ThreadPoolBuilder::new()
                .num_threads(1)
                .thread_name(move |_| format!("decode-{i}"))
                // Whoever waits for the work is told by its lost sender.
                .panic_handler(|_| tracing::error!("a decoding task panicked"))
                .build()
        };
        Ok(Self {
            threads: (0..threads.get()).map(thread).collect::<Result<_, _>>()?,
            idle: Arc::new(Mutex::new((0..threads.get()).collect())),
            free: Arc::new(Semaphore::new(threads.get())),
            memory: Arc::new(Semaphore::new(kib)),
            total_memory: kib as u64,
        })
    }

    /// Runs `work`, which holds at most `bytes`, when a thread and the memory are free. Its share of both is given back when the work
    /// ends, even where the caller leaves before that.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        let memory = self.reserve(bytes).await.map_err(closed)?;
        let turn = self.turn().await?;
        let (done, result) = oneshot::channel();
        self.threads[turn.thread].spawn(move || {
            let _held = (memory, turn);
            // Nobody may be waiting any more.
            let _ = done.send(work());
        });
        let lost = |_| ServiceError::Internal("a decoding task panicked".to_owned());
        result.await.map_err(lost)
    }

    async fn turn(&self) -> Result<Turn, ServiceError> {
        let permit = self.free.clone().acquire_owned().await.map_err(closed)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || ServiceError::Internal("more decoders are wanted than there are".to_owned());
        Ok(Turn {
            thread: idle.pop().ok_or_else(none)?,
            idle: self.idle.clone(),
            _permit: permit,
        })
    }

    /// What asks for more than all of the memory gets all of it; [`crate::image::inspect`] has refused such an image before.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        let permits = bytes.div_ceil(KIB).min(self.total_memory);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        self.memory.clone().acquire_many_owned(permits).await
    }
}

fn closed(_: AcquireError) -> ServiceError {
    ServiceError::Internal("the decoders are closed".to_owned())
}
