//! The workers, and who gets one.
//!
//! There are two lanes:
//!
//! - **The small lane** ([`Decoders::begin`]) takes every picture first. It ends a picture that
//!   would hold more than [`SMALL_MEMORY`], as its header says, or that takes longer than
//!   [`SMALL_TIME`].
//! - **The costly lane** ([`Decoders::finish`]) takes what the small one ended, with all the memory
//!   that the header announces, up to the limit, and with all the time that a picture may have.
//!   One worker fewer than there are may be in it at one time, and the memory of its pictures is
//!   counted together.
//!
//! So a small picture never waits behind large ones: there is always a worker that no large picture
//! can hold, and no picture holds that one for longer than [`SMALL_TIME`]. While others wait, a
//! picture leaves the small lane once it has used [`SHARED_TIME`] of a processor, so that many slow
//! pictures together cost others no more than many photographs.

use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use imgclass_image::{Limits, Preprocessor};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::confinement::Confinement;
use crate::error::{DecodeError, StartError};
use crate::keeper::{Keeper, Replacement, Start};
#[cfg(unix)]
use crate::process::{self, Launch};
use crate::work::{Outcome, Prepared, Task, Work};
use crate::worker::{Cause, Observer, ProcessorClock, Worker};

/// The most memory that a picture in the small lane may hold, in bytes. A photograph of five
/// megapixels fits.
const SMALL_MEMORY: u64 = 32 << 20;

/// The longest time that a picture may take in the small lane. One of five megapixels takes 60 ms
/// on a processor of 2022.
const SMALL_TIME: Duration = Duration::from_millis(300);

/// The processor time that a picture may take in the small lane while others wait for a worker. It is
/// not the time on the clock, so that a busy machine does not make pictures slow.
const SHARED_TIME: Duration = Duration::from_millis(100);

/// How often the processor time of a picture in the small lane is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The pause before a picture is decoded again whose worker was killed from outside. In this time
/// others that were killed with it end.
const AFTER_KILL: Duration = Duration::from_millis(50);

/// A worker that has had a picture of more than this many bytes is replaced, so that what its
/// allocator keeps is given back.
const RETIRE_ABOVE: u64 = 64 << 20;

/// Bytes that one permit of the memory stands for. Semaphores count in 32 bits, which would end at
/// 4 GiB if they counted bytes.
const KIB: u64 = 1024;

/// How pictures are decoded.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// How many pictures are decoded at one time. There are at least two workers, so that a costly
    /// picture never has all of them.
    pub workers: NonZeroUsize,
    /// The longest time for one picture.
    pub timeout: Duration,
    /// How large a picture may be. `max_decoded_bytes` also bounds the memory of all costly
    /// pictures that are being decoded at one time, together.
    pub limits: Limits,
    /// Whether a JPEG is decoded at a half, a quarter or an eighth of its size where it is then
    /// still twice as large as the network's resize makes it. The pixels of the crop change a
    /// little.
    pub fast: bool,
    /// Where pictures are decoded.
    pub isolation: Isolation,
}

/// Where pictures are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Isolation {
    /// In processes of their own.
    Processes {
        /// The program of the workers, which calls [`run_worker`](crate::run_worker).
        /// `None` means the program that runs.
        program: Option<PathBuf>,
    },
    /// On threads of the service, which nothing outside the decoders limits.
    None,
}

impl Isolation {
    /// Returns the best that this system has.
    #[must_use]
    pub const fn best() -> Self {
        if cfg!(unix) {
            Self::Processes { program: None }
        } else {
            Self::None
        }
    }
}

/// Decodes pictures. Its workers end when it is dropped.
pub struct Decoders {
    shared: Arc<Shared>,
    keeper: Keeper,
    work: Work,
    timeout: Duration,
    /// How many workers may have costly pictures.
    costly: Arc<Semaphore>,
    /// One permit per KiB, for the costly pictures together.
    memory: Arc<Semaphore>,
    total_memory_kib: u64,
    /// How many pictures wait for a worker.
    waiting: AtomicUsize,
    observer: Arc<dyn Observer>,
    confinement: Option<Confinement>,
}

/// What the callers and the keeper share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The workers without a picture; as many as `free` has permits.
    idle: Mutex<Vec<Worker>>,
    free: Semaphore,
    closed: AtomicBool,
}

impl Shared {
    /// Adds a worker that waits for a picture.
    pub(crate) fn add(&self, worker: Worker) {
        self.idle().push(worker);
        self.free.add_permits(1);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends all workers.
    pub(crate) fn end(&self) {
        for worker in self.idle().drain(..) {
            worker.end();
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of [`Decoders::begin`].
#[derive(Debug)]
pub enum Begun {
    /// The picture is decoded.
    Prepared(Prepared),
    /// The picture is large or slow. [`Decoders::finish`] decodes it.
    Costly(Costly),
}

/// A picture for the costly lane.
#[derive(Debug)]
pub struct Costly {
    bytes: Bytes,
    /// What decoding holds, as its header says.
    memory: u64,
    keep_picture: Option<u32>,
}

/// A picture that the costly lane has decoded.
#[derive(Debug)]
pub struct Finished {
    /// The picture.
    pub prepared: Prepared,
    /// A place of the costly lane. A caller that waits for somebody to take the picture keeps this
    /// meanwhile, so that decoded pictures do not pile up.
    pub place: OwnedSemaphorePermit,
}

impl Decoders {
    /// Starts the workers. `preprocessor` makes the crops.
    ///
    /// # Errors
    /// [`StartError`] where the system does not start a worker.
    pub fn start(
        options: &DecodeOptions,
        preprocessor: Preprocessor,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let work = Work {
            limits: options.limits,
            preprocessor,
            fast: options.fast,
        };
        let start = how_to_start(options, &work)?;
        let shared = Arc::new(Shared {
            idle: Mutex::default(),
            free: Semaphore::new(0),
            closed: AtomicBool::new(false),
        });
        let count = options.workers.get().max(2);
        let keeper = Keeper::start(start, count, shared.clone())?;
        let confinement = shared.idle().first().and_then(Worker::confinement).cloned();
        let kib = usize::try_from(options.limits.max_decoded_bytes / KIB).unwrap_or(usize::MAX);
        let kib = kib.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            shared,
            keeper,
            work,
            timeout: options.timeout,
            costly: Arc::new(Semaphore::new(count - 1)),
            memory: Arc::new(Semaphore::new(kib)),
            total_memory_kib: kib as u64,
            waiting: AtomicUsize::new(0),
            observer,
            confinement,
        })
    }

    /// Returns which limits hold for the workers; `None` where there are no worker processes.
    #[must_use]
    pub fn confinement(&self) -> Option<&Confinement> {
        self.confinement.as_ref()
    }

    /// Decodes the encoded picture `bytes` if it is small, as soon as there is a worker.
    ///
    /// `keep_picture` is the longest side of the picture that the answer holds beside the crop, in
    /// pixels. The work ends where the returned future is dropped.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub async fn begin(
        &self,
        bytes: Bytes,
        keep_picture: Option<u32>,
    ) -> Result<Begun, DecodeError> {
        let memory = SMALL_MEMORY.min(self.work.limits.max_decoded_bytes);
        let task = Task {
            encoded_bytes: bytes.len() as u64,
            memory,
            keep_picture,
        };
        let limit = SMALL_TIME.min(self.timeout);
        let memory = match self.attempt(&bytes, task, limit, Lane::Small).await? {
            Attempt::Done(Outcome::Prepared(prepared)) => return Ok(Begun::Prepared(prepared)),
            Attempt::Done(Outcome::Refused(error)) => return Err(error.into()),
            // A worker does not announce more than the limit, or it was a stranger's word.
            Attempt::Done(Outcome::Costly(info)) => {
                info.decoded_bytes.min(self.work.limits.max_decoded_bytes)
            }
            Attempt::Overran if self.timeout <= SMALL_TIME => {
                return Err(self.overran(&bytes));
            }
            Attempt::Overran => {
                self.observer.worker_replaced(Cause::Slow);
                memory
            }
            // That may have happened by chance to this picture, so it is tried again.
            Attempt::Failed(DecodeError::Killed) => {
                self.replace_the_dead().await;
                memory
            }
            Attempt::Failed(error) => return Err(error),
        };
        Ok(Begun::Costly(Costly {
            bytes,
            memory,
            keep_picture,
        }))
    }

    /// Decodes a costly picture, as soon as there is memory for it, a place in the lane and a
    /// worker. The work ends where the returned future is dropped.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub async fn finish(&self, costly: Costly) -> Result<Finished, DecodeError> {
        let Costly {
            bytes,
            memory,
            keep_picture,
        } = costly;
        let _memory = self.reserve(memory).await?;
        let place = self.costly.clone().acquire_owned().await;
        let place = place.map_err(|_| CLOSED)?;
        let task = Task {
            encoded_bytes: bytes.len() as u64,
            memory,
            keep_picture,
        };
        let attempt = || self.attempt(&bytes, task, self.timeout, Lane::Costly);
        let mut outcome = attempt().await?;
        if let Attempt::Failed(DecodeError::Killed) = outcome {
            self.replace_the_dead().await;
            outcome = attempt().await?;
        }
        match outcome {
            Attempt::Done(Outcome::Prepared(prepared)) => Ok(Finished { prepared, place }),
            Attempt::Done(Outcome::Refused(error)) => Err(error.into()),
            // The same header announced less before, so the worker is not to be believed.
            Attempt::Done(Outcome::Costly(_)) => Err(DecodeError::Crashed),
            Attempt::Failed(error) => Err(error),
            Attempt::Overran => Err(self.overran(&bytes)),
        }
    }

    /// Returns the network's input of a crop: planar `[3, crop height, crop width]`, normalised.
    #[must_use]
    pub fn normalise(&self, pixels: &[u8]) -> Vec<f32> {
        self.work.preprocessor.normalise(pixels)
    }

    /// Waits for a worker and has it carry `task` out within `limit`.
    async fn attempt(
        &self,
        bytes: &Bytes,
        task: Task,
        limit: Duration,
        lane: Lane,
    ) -> Result<Attempt, DecodeError> {
        let mut lease = self.lease().await?;
        let clock = lease.clock().filter(|_| lane == Lane::Small);
        let performing = async {
            tokio::select! {
                biased;
                outcome = lease.perform(bytes, task) => Some(outcome),
                () = self.others_need_the_worker(clock) => None,
            }
        };
        let performed = tokio::time::timeout(limit, performing).await;
        match performed.ok().flatten() {
            Some(Ok(outcome)) => {
                let large = task.memory.max(task.encoded_bytes) > RETIRE_ABOVE;
                if large {
                    lease.replace(Cause::Retired);
                } else {
                    lease.give_back();
                }
                Ok(Attempt::Done(outcome))
            }
            Some(Err(error)) => {
                let cause = match lease.ended().await {
                    // It was ended here, for what it said.
                    Cause::Killed if error.kind() == ErrorKind::InvalidData => Cause::Crashed,
                    cause => cause,
                };
                self.report(cause, bytes, &error.to_string());
                Ok(Attempt::Failed(match cause {
                    Cause::OutOfMemory => DecodeError::OutOfMemory,
                    Cause::Killed => DecodeError::Killed,
                    _ => DecodeError::Crashed,
                }))
            }
            None => {
                lease.end();
                Ok(Attempt::Overran)
            }
        }
    }

    /// Waits until a picture has used [`SHARED_TIME`] and others wait for a worker; for ever where
    /// the system does not tell a worker's processor time.
    async fn others_need_the_worker(&self, clock: Option<ProcessorClock>) {
        let Some((clock, start)) = clock.and_then(|clock| Some((clock, clock.time()?))) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.waiting.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let used = clock.time().map(|now| now.saturating_sub(start));
            if used.is_some_and(|used| used >= SHARED_TIME) {
                return;
            }
        }
    }

    /// Replaces the workers without a picture that have ended, shortly after one was killed from
    /// outside: others may have been killed with it.
    async fn replace_the_dead(&self) {
        tokio::time::sleep(AFTER_KILL).await;
        // Who has a permit already finds a worker here, if a dead one. The permits that are taken come
        // back with the workers that replace these.
        let take = |worker: &mut Worker| {
            worker.has_ended() && self.shared.free.try_acquire().map(|p| p.forget()).is_ok()
        };
        let dead: Vec<Worker> = self.shared.idle().extract_if(.., take).collect();
        for worker in dead {
            let lease = Lease {
                decoders: self,
                worker: Some(worker),
            };
            lease.replace(Cause::Killed);
        }
    }

    /// Waits for a worker without a picture. One that something has killed meanwhile is replaced.
    async fn lease(&self) -> Result<Lease<'_>, DecodeError> {
        let _waiting = Waiting::new(&self.waiting);
        loop {
            let permit = self.shared.free.acquire().await.map_err(|_| CLOSED)?;
            // The permit comes back with the worker, or with the one that replaces it.
            permit.forget();
            let worker = self.shared.idle().pop();
            let mut lease = Lease {
                decoders: self,
                worker: Some(worker.ok_or(CLOSED)?),
            };
            if !lease.has_ended() {
                return Ok(lease);
            }
            lease.replace(Cause::Killed);
        }
    }

    /// Waits for a share of the memory. A request for more than all of it gets all of it: the
    /// picture's own limit is the same number.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, DecodeError> {
        let permits = bytes.div_ceil(KIB).min(self.total_memory_kib);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let memory = self.memory.clone();
        memory.acquire_many_owned(permits).await.map_err(|_| CLOSED)
    }

    fn overran(&self, bytes: &Bytes) -> DecodeError {
        self.report(Cause::Overran, bytes, "it took too long");
        DecodeError::Overran(self.timeout)
    }

    /// Tells the operator of a picture that cost a worker.
    fn report(&self, cause: Cause, bytes: &Bytes, error: &str) {
        self.observer.worker_replaced(cause);
        tracing::warn!(
            cause = cause.name(),
            error,
            bytes = bytes.len(),
            sha256 = hex::encode(Sha256::digest(bytes)),
            "an image cost a decode worker, which is replaced"
        );
    }
}

const CLOSED: DecodeError = DecodeError::NoWorker("they have ended");

impl Drop for Decoders {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

/// Where a picture is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Small,
    Costly,
}

/// Counts a picture that waits for a worker.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What came of one task within its time.
enum Attempt {
    Done(Outcome),
    /// The worker ended.
    Failed(DecodeError),
    /// The time has passed, and the worker was ended.
    Overran,
}

/// The use of a worker. A worker whose lease is dropped, because its caller has left, is ended.
struct Lease<'a> {
    decoders: &'a Decoders,
    /// `None` once the worker was given back or ended.
    worker: Option<Worker>,
}

impl Lease<'_> {
    async fn perform(&mut self, bytes: &Bytes, task: Task) -> std::io::Result<Outcome> {
        match &mut self.worker {
            Some(worker) => worker.perform(bytes, task).await,
            None => Err(std::io::Error::other("the worker was given back")),
        }
    }

    /// Returns the clock of the worker's processor time, if it has one.
    fn clock(&self) -> Option<ProcessorClock> {
        self.worker.as_ref().and_then(Worker::clock)
    }

    fn has_ended(&mut self) -> bool {
        self.worker.as_mut().is_some_and(Worker::has_ended)
    }

    /// Makes the worker free for the next picture.
    fn give_back(mut self) {
        if let Some(worker) = self.worker.take() {
            self.decoders.shared.add(worker);
        }
    }

    /// Ends and replaces the worker for `cause`.
    fn replace(mut self, cause: Cause) {
        self.decoders.observer.worker_replaced(cause);
        self.hand_over(None);
    }

    /// Ends and replaces the worker. The caller reports why.
    fn end(mut self) {
        self.hand_over(None);
    }

    /// Replaces a worker whose exchange failed, and returns why it failed.
    async fn ended(mut self) -> Cause {
        let (ended, cause) = oneshot::channel();
        self.hand_over(Some(ended));
        cause.await.ok().flatten().unwrap_or(Cause::Killed)
    }

    fn hand_over(&mut self, ended: Option<oneshot::Sender<Option<Cause>>>) {
        if let Some(mut worker) = self.worker.take() {
            // A worker whose end is asked for ends by itself, or has broken the protocol.
            if ended.is_none() {
                worker.kill();
            }
            self.decoders.keeper.replace(Replacement { worker, ended });
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.worker.is_some() {
            self.decoders.observer.worker_replaced(Cause::Abandoned);
            self.hand_over(None);
        }
    }
}

/// Returns how workers are started.
fn how_to_start(options: &DecodeOptions, work: &Work) -> Result<Start, StartError> {
    match &options.isolation {
        #[cfg(unix)]
        Isolation::Processes { program } => {
            let program = program.clone().map_or_else(process::own_program, Ok);
            Ok(Start::Process(Launch {
                program: program.map_err(StartError::Worker)?,
                limits: options.limits,
                fast: options.fast,
                preprocessing: work.preprocessor.settings().clone(),
                crop_bytes: work.crop_bytes(),
            }))
        }
        #[cfg(not(unix))]
        Isolation::Processes { .. } => Err(StartError::Worker(std::io::Error::other(
            "this system has no worker processes",
        ))),
        Isolation::None => Ok(Start::Thread(work.clone())),
    }
}
