//! Persistent threads that share the tasks of one job at a time. It never queues jobs and never runs anything
//! asynchronously: a job is over when its call returns.

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use super::buffer::Buffer;

/// Polls of an idle worker before it parks: about 50 us, several times the pause between two layers, so that a
/// forward pass wakes its workers once, while an idle service burns nothing.
const SPINS: u32 = if cfg!(miri) { 10 } else { 2_000 };

/// Polls between two offers of the core to whoever else waits for it, such as a decoder: a few microseconds. Where nobody
/// waits an offer costs less than one.
const SPINS_PER_YIELD: u32 = if cfg!(miri) { 2 } else { 100 };

/// The job word: epoch in the upper half, then one bit that closes the job to late workers, then their number.
const CLOSED: u64 = 1 << 31;
const MEMBERS: u64 = CLOSED - 1;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Persistent worker threads, and the scratch memory that their jobs share.
///
/// The thread that submits a job is one of the workers. Jobs of concurrent callers run one after the other. Dropping
/// the pool joins its threads.
pub struct ThreadPool {
    shared: Arc<Shared>,
    session: Mutex<Scratch>,
    handles: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Epoch, closed bit and number of workers inside the present job.
    word: AtomicU64,
    /// The present job: valid while `word` is not closed, or counts a member.
    job: Mutex<Option<JobPointer>>,
    /// One range of tasks per thread: next in the lower half, end in the upper.
    shares: Box<[Share]>,
    sleepers: Box<[Sleeper]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

/// On a cache line of its own: its owner and thieves write it.
#[repr(align(128))]
struct Share(AtomicU64);

#[derive(Default)]
#[repr(align(128))]
struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

#[derive(Clone, Copy)]
struct JobPointer(*const Task<'static>);

// SAFETY: the closure behind it is `Sync`, and `Session::run` keeps it alive until every worker has left the job.
unsafe impl Send for JobPointer {}

/// Scratch memory that is kept from job to job and only ever grows to the largest layer's need.
#[derive(Default)]
pub(crate) struct Scratch {
    buffer: Buffer,
}

/// The right to run jobs: holds the pool until dropped.
pub(crate) struct Session<'a> {
    shared: &'a Shared,
    scratch: MutexGuard<'a, Scratch>,
    handles: &'a [JoinHandle<()>],
}

impl ThreadPool {
    /// Starts `threads - 1` workers; the caller of a job is the remaining one.
    ///
    /// # Panics
    /// If the operating system refuses a thread.
    #[must_use]
    #[expect(
        clippy::panic,
        reason = "called at start-up only, as `std::thread::spawn` does"
    )]
    pub fn new(threads: NonZeroUsize) -> Self {
        let threads = threads.get();
        let shared = Arc::new(Shared {
            word: AtomicU64::new(CLOSED),
            job: Mutex::new(None),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            sleepers: (0..threads).map(|_| Sleeper::default()).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let handles = (1..threads)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                let name = format!("kernels-{worker}");
                let spawned = thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.serve(worker));
                match spawned {
                    Ok(handle) => handle,
                    Err(error) => {
                        panic!("cannot start kernel thread {worker} of {threads}: {error}")
                    }
                }
            })
            .collect();
        Self {
            shared,
            session: Mutex::new(Scratch::default()),
            handles,
        }
    }

    /// Threads that work on a job, the caller's among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// Calls `task(index)` once for each index under `tasks`, on all threads, and returns when all are done.
    ///
    /// # Panics
    /// With the payload of the first task that panicked; the pool stays usable.
    pub fn for_each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.session().run(tasks, |index, _| task(index));
    }

    /// Waits until the pool is free and holds it.
    pub(crate) fn session(&self) -> Session<'_> {
        // A poisoned lock only says that a task panicked; scratch holds no state that could be half-made.
        let scratch = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        Session {
            shared: &self.shared,
            scratch,
            handles: &self.handles,
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        for handle in self.handles.drain(..) {
            // A worker catches its tasks' panics, so it ends well; if it did not, dropping must still not panic.
            let _ = handle.join();
        }
    }
}

impl Session<'_> {
    /// Threads that work on a job.
    pub(crate) fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// Calls `task(index, worker)` once for each index under `tasks`; `worker` is below [`Self::threads`] and no two
    /// tasks run at once with the same one. Each thread starts with a contiguous share and then takes from the others'.
    pub(crate) fn run(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if self.handles.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|index| task(index, 0));
            return;
        }
        let job: &Task<'_> = &task;
        // SAFETY: only the lifetime changes. `close` below runs before this frame is left, on unwinding too since
        // `work` catches, and after it no worker can reach the pointer.
        let job: *const Task<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        self.shared.publish(tasks, JobPointer(job));
        self.shared.work(0, JobPointer(job));
        self.shared.close();
        let panic = self
            .shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// At least `len` floats of memory with any content, aligned to a cache line.
    pub(crate) fn scratch(&mut self, len: usize) -> *mut f32 {
        self.scratch.buffer.grow(len)
    }
}

impl Shared {
    /// Opens a job of `tasks` tasks to the workers.
    fn publish(&self, tasks: usize, job: JobPointer) {
        let threads = self.shares.len();
        for (i, share) in self.shares.iter().enumerate() {
            let (from, to) = (i * tasks / threads, (i + 1) * tasks / threads);
            share
                .0
                .store((to as u64) << 32 | from as u64, Ordering::Relaxed);
        }
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        let epoch = (self.word.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.word.store(epoch << 32, Ordering::SeqCst);
        self.wake();
    }

    /// Keeps late workers out and waits until those inside have left.
    fn close(&self) {
        let mut members = self.word.fetch_or(CLOSED, Ordering::AcqRel) & MEMBERS;
        let mut polls = 0u32;
        while members != 0 {
            polls += 1;
            // A member that lost its core may need ours to finish.
            pause(polls);
            members = self.word.load(Ordering::Acquire) & MEMBERS;
        }
    }

    /// Runs tasks until none is left: the own share from its front, then the others' from their backs.
    fn work(&self, worker: usize, job: JobPointer) {
        // SAFETY: the job outlives its members, and the caller is one.
        let task = unsafe { &*job.0 };
        let threads = self.shares.len();
        let run = AssertUnwindSafe(|| {
            while let Some(index) = self.shares[worker].take(true) {
                task(index, worker);
            }
            for victim in (1..threads).map(|i| (worker + i) % threads) {
                while let Some(index) = self.shares[victim].take(false) {
                    task(index, worker);
                }
            }
        });
        if let Err(payload) = catch_unwind(run) {
            self.panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(payload);
        }
    }

    /// A worker's life.
    fn serve(&self, worker: usize) {
        *self.sleepers[worker]
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let mut done = 0;
        loop {
            let word = self.await_job(worker, done);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if word & CLOSED != 0
                || self
                    .word
                    .compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            done = word >> 32;
            let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(job) = job {
                self.work(worker, job);
            }
            self.word.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Spins, then parks, until a job other than `done` is open or the pool stops.
    fn await_job(&self, worker: usize, done: u64) -> u64 {
        let sleeper = &self.sleepers[worker];
        let news = || {
            let word = self.word.load(Ordering::SeqCst);
            let fresh = word & CLOSED == 0 && word >> 32 != done;
            (fresh || self.stop.load(Ordering::SeqCst)).then_some(word)
        };
        loop {
            for polls in 1..=SPINS {
                if let Some(word) = news() {
                    return word;
                }
                pause(polls);
            }
            // Sleep is announced before the last look, and a publisher looks for sleepers after publishing: one of
            // the two sees the other.
            sleeper.asleep.store(true, Ordering::SeqCst);
            while sleeper.asleep.load(Ordering::SeqCst) {
                if let Some(word) = news() {
                    sleeper.asleep.store(false, Ordering::SeqCst);
                    return word;
                }
                thread::park();
            }
        }
    }

    /// Unparks every worker that sleeps.
    fn wake(&self) {
        for sleeper in &self.sleepers {
            if sleeper.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = &*sleeper
                    .thread
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            {
                thread.unpark();
            }
        }
    }
}

/// Between two looks at what another thread will change.
fn pause(polls: u32) {
    if polls.is_multiple_of(SPINS_PER_YIELD) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Share {
    /// The next task: the front one for the owner, the last one for a thief.
    fn take(&self, owner: bool) -> Option<usize> {
        let mut range = self.0.load(Ordering::Relaxed);
        loop {
            let (from, to) = (range & 0xffff_ffff, range >> 32);
            if from >= to {
                return None;
            }
            let (task, left) = if owner {
                (from, to << 32 | (from + 1))
            } else {
                (to - 1, (to - 1) << 32 | from)
            };
            match self
                .0
                .compare_exchange_weak(range, left, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(task as usize),
                Err(now) => range = now,
            }
        }
    }
}
