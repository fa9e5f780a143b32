//! How much is decoded at one time: the threads that do it, and the memory that they may hold together. It knows no images.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rayon::ThreadPoolBuilder;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use super::ServiceError;

/// The weight of one permit of the memory: semaphores count in 32 bits.
const KIB: u64 = 1024;

/// Threads of their own for decoding.
pub(super) struct Decoders {
    threads: Vec<DecodeThread>,
    /// Those of the threads that do nothing, by their place; as many as `free` has permits.
    idle: Arc<Mutex<Vec<usize>>>,
    free: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// In KiB.
    total_memory: u64,
}

type Work = Box<dyn FnOnce() + Send>;

/// One thread, which ends when this is dropped and its work is done.
///
/// It is a pool of rayon's with nobody else in it, because one JPEG decoder shares its rows out by rayon: elsewhere it would wake the
/// threads of a common pool for each row, which costs a twentieth of the work and core changes on a machine that is busy anyway. (A picture
/// of 12 megapixels that is decoded alone takes a fifth longer so.) And it waits on a channel rather than as rayon's own threads do: those
/// yield their core dozens of times before they sleep, in between the forward pass's work.
struct DecodeThread {
    work: mpsc::Sender<Work>,
}

impl DecodeThread {
    fn start(name: String) -> io::Result<Self> {
        let (work, to_do) = mpsc::channel::<Work>();
        let (started, outcome) = mpsc::channel();
        thread::Builder::new().name(name).spawn(move || {
            let alone = ThreadPoolBuilder::new().num_threads(1);
            match alone.use_current_thread().build() {
                Err(error) => drop(started.send(Err(io::Error::other(error)))),
                Ok(_alone) => {
                    drop(started.send(Ok(())));
                    to_do.into_iter().for_each(perform);
                }
            }
        })?;
        let lost = |_| Err(io::Error::other("a decoding thread ended as it began"));
        outcome.recv().unwrap_or_else(lost)?;
        Ok(Self { work })
    }
}

/// Whoever waits for work that panics is told by its lost sender.
fn perform(work: Work) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a decoding task panicked");
    }
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
    pub(super) fn new(threads: NonZeroUsize, memory: u64) -> io::Result<Self> {
        let kib = usize::try_from(memory / KIB).unwrap_or(usize::MAX);
        let kib = kib.min(Semaphore::MAX_PERMITS);
        let thread = |i| DecodeThread::start(format!("decode-{i}"));
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
        let thread = &self.threads[turn.thread];
        let work: Work = Box::new(move || {
            let _held = (memory, turn);
            // Nobody may be waiting any more.
            let _ = done.send(work());
        });
        // A thread that is gone takes the sender of the result with it.
        let _ = thread.work.send(work);
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

    /// What asks for more than all of the memory gets all of it; [`imgclass_image::inspect`] has refused such an image before.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        let permits = bytes.div_ceil(KIB).min(self.total_memory);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        self.memory.clone().acquire_many_owned(permits).await
    }
}

fn closed(_: AcquireError) -> ServiceError {
    ServiceError::Internal("the decoders are closed".to_owned())
}
