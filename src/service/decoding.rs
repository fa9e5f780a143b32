//! How much is decoded at one time: the threads that do it, and the memory that they may hold together. It knows no images.

use std::num::NonZeroUsize;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use super::ServiceError;

/// The weight of one permit of the memory: semaphores count in 32 bits.
const KIB: u64 = 1024;

/// Threads of their own for decoding. They are rayon's because the JPEG decoder shares its rows out by rayon: on its own threads it would
/// start others for each picture (what that costs: `docs/benchmarks.md`), and a large picture that is decoded alone takes idle ones too.
pub(super) struct Decoders {
    threads: ThreadPool,
    free: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// In KiB.
    total_memory: u64,
}

impl Decoders {
    /// `threads` works at one time, which may hold `memory` bytes together.
    pub(super) fn new(threads: NonZeroUsize, memory: u64) -> Result<Self, ThreadPoolBuildError> {
        let kib = usize::try_from(memory / KIB).unwrap_or(usize::MAX);
        let kib = kib.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            threads: ThreadPoolBuilder::new()
                .num_threads(threads.get())
                .thread_name(|i| format!("decode-{i}"))
                // Whoever waits for the work is told by its lost sender.
                .panic_handler(|_| tracing::error!("a decoding task panicked"))
                .build()?,
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
        let closed = |_: AcquireError| ServiceError::Internal("the decoders are closed".to_owned());
        let memory = self.reserve(bytes).await.map_err(closed)?;
        let thread = self.free.clone().acquire_owned().await.map_err(closed)?;
        let (done, result) = oneshot::channel();
        self.threads.spawn(move || {
            let _held = (memory, thread);
            // Nobody may be waiting any more.
            let _ = done.send(work());
        });
        let lost = |_| ServiceError::Internal("a decoding task panicked".to_owned());
        result.await.map_err(lost)
    }

    /// What asks for more than all of the memory gets all of it; [`crate::image::inspect`] has refused such an image before.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        let permits = bytes.div_ceil(KIB).min(self.total_memory);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        self.memory.clone().acquire_many_owned(permits).await
    }
}
