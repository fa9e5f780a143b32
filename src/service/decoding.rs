//! Bounds how much is decoded at one time: by a number of threads, and by the memory that their
//! work may hold together. What the work is, is the caller's business.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rayon::ThreadPoolBuilder;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use super::ServiceError;

/// Bytes that one permit of the memory stands for. Semaphores count in 32 bits, which would end at
/// 4 GiB if they counted bytes.
const KIB: u64 = 1024;

/// The decoding threads and the memory that they share.
pub(super) struct Decoders {
    threads: Vec<DecodeThread>,
    /// Indices of the threads without work; as many as `free` has permits.
    idle: Arc<Mutex<Vec<usize>>>,
    free: Arc<Semaphore>,
    /// One permit per KiB.
    memory: Arc<Semaphore>,
    total_memory_kib: u64,
}

type Work = Box<dyn FnOnce() + Send>;

/// One decoding thread. It ends when this value is dropped and its work is done.
///
/// The thread is the only member of a rayon pool of its own, because one of the JPEG decoders
/// distributes its rows by rayon. In a common pool it would wake other threads for each row, which
/// costs 5 % of the work, and moves it between cores, on a machine that is busy anyway. The price
/// is that a picture of 12 megapixels takes a fifth longer where it is the only one to be decoded.
///
/// The thread waits on a channel. The threads of rayon would yield their core dozens of times
/// before they sleep, and the forward pass needs that core.
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

/// Runs `work`. If it panics, its result's sender is dropped, which the caller of [`Decoders::run`]
/// notices; the thread goes on.
fn perform(work: Work) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a decoding task panicked");
    }
}

/// The use of one of the threads, which is idle again when this value is dropped.
struct Turn {
    /// Index of the thread.
    thread: usize,
    idle: Arc<Mutex<Vec<usize>>>,
    /// Fields are dropped after `Drop::drop` has run, so whoever gets this permit finds the thread
    /// in `idle`.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.thread);
    }
}

impl Decoders {
    /// Starts `threads` threads whose work may hold `memory` bytes together.
    pub(super) fn new(threads: NonZeroUsize, memory: u64) -> io::Result<Self> {
        let kib = usize::try_from(memory / KIB).unwrap_or(usize::MAX);
        let kib = kib.min(Semaphore::MAX_PERMITS);
        let thread = |i| DecodeThread::start(format!("decode-{i}"));
        Ok(Self {
            threads: (0..threads.get()).map(thread).collect::<Result<_, _>>()?,
            idle: Arc::new(Mutex::new((0..threads.get()).collect())),
            free: Arc::new(Semaphore::new(threads.get())),
            memory: Arc::new(Semaphore::new(kib)),
            total_memory_kib: kib as u64,
        })
    }

    /// Runs `work`, which holds at most `bytes`, as soon as a thread and the memory are free.
    ///
    /// Thread and memory are given back when the work ends, also where the caller has left before.
    ///
    /// # Errors
    /// [`ServiceError::Internal`] where `work` panicked.
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
            // An error means that the caller has left: nobody wants the result.
            let _ = done.send(work());
        });
        // An error means that the thread has ended; the result's sender is dropped with `work`, and
        // the wait below ends too.
        let _ = thread.work.send(work);
        let lost = |_| ServiceError::Internal("a decoding task panicked");
        result.await.map_err(lost)
    }

    /// Waits for a thread without work.
    async fn turn(&self) -> Result<Turn, ServiceError> {
        let permit = self.free.clone().acquire_owned().await.map_err(closed)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || ServiceError::Internal("more decoders are wanted than there are");
        Ok(Turn {
            thread: idle.pop().ok_or_else(none)?,
            idle: self.idle.clone(),
            _permit: permit,
        })
    }

    /// Waits for a share of the memory. A request for more than all of it gets all of it: the
    /// image's own limit is the same number, so such an image has been refused before.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        let permits = bytes.div_ceil(KIB).min(self.total_memory_kib);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        self.memory.clone().acquire_many_owned(permits).await
    }
}

fn closed(_: AcquireError) -> ServiceError {
    ServiceError::Internal("the decoders are closed")
}
