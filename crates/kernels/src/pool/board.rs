//! One caller's place to offer a job's tasks to other threads: who is inside, which tasks are left, what panicked. It knows no threads
//! and wakes nobody.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::buffer::Buffer;
use super::pause;

/// The job word: epoch in the upper half, then one bit that closes the job to late helpers, then the number of those inside.
const CLOSED: u64 = 1 << 31;
const MEMBERS: u64 = CLOSED - 1;

/// What runs one task: its index, and the memory that the thread keeps from task to task.
pub(super) type Task<'a> = dyn Fn(usize, &mut Buffer) + Sync + 'a;

/// A job as threads see it: one task each index.
#[derive(Clone, Copy)]
pub(super) struct Job {
    task: *const Task<'static>,
    /// The job is cut into so many shares, the caller's first.
    threads: usize,
}

// SAFETY: the closure behind the pointer is `Sync`, and whoever opened the job keeps it alive until `close` has returned.
unsafe impl Send for Job {}

impl Job {
    /// # Safety
    /// - `task` stays alive until [`Board::close`] has returned.
    pub(super) unsafe fn new(task: &Task<'_>, threads: usize) -> Self {
        // SAFETY: only the lifetime changes; keeping to it is this function's contract.
        let task: *const Task<'static> =
            unsafe { std::mem::transmute(std::ptr::from_ref::<Task<'_>>(task)) };
        Self { task, threads }
    }
}

/// The board: one job at a time.
pub(super) struct Board {
    /// Epoch, closed bit and number of helpers inside the present job.
    word: AtomicU64,
    /// The present job: valid while `word` is not closed, or counts a member.
    job: Mutex<Option<Job>>,
    /// One range of tasks per thread: next in the lower half, end in the upper.
    shares: Box<[Share]>,
    /// Helpers that have entered the present job.
    entered: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// On a cache line of its own: its owner and thieves write it.
#[repr(align(128))]
struct Share(AtomicU64);

impl Board {
    /// For up to `threads` threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            word: AtomicU64::new(CLOSED),
            job: Mutex::new(None),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            entered: AtomicUsize::new(0),
            panic: Mutex::new(None),
        }
    }

    /// Offers a job of `tasks` tasks.
    pub(super) fn open(&self, tasks: usize, job: Job) {
        for (i, share) in self.shares[..job.threads].iter().enumerate() {
            let (from, to) = (i * tasks / job.threads, (i + 1) * tasks / job.threads);
            share
                .0
                .store((to as u64) << 32 | from as u64, Ordering::Relaxed);
        }
        self.entered.store(0, Ordering::Relaxed);
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        let epoch = (self.word.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.word.store(epoch << 32, Ordering::SeqCst);
    }

    /// Keeps late helpers out, waits until those inside have left, and gives the first panic of any task.
    pub(super) fn close(&self) -> Option<Box<dyn Any + Send>> {
        let mut members = self.word.fetch_or(CLOSED, Ordering::AcqRel) & MEMBERS;
        let mut polls = 0u32;
        while members != 0 {
            polls += 1;
            // A member that lost its core may need ours to finish.
            pause(polls);
            members = self.word.load(Ordering::Acquire) & MEMBERS;
        }
        let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        panic.take()
    }

    /// Runs tasks of the present job until none is left or `stays` says no. Enters no job twice: `done` is the epoch of the last one that
    /// this helper has seen here. Does nothing where no job is open or the job is not cut for one more thread.
    pub(super) fn help(&self, done: &mut u64, own: &mut Buffer, stays: impl Fn() -> bool) {
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            if word & CLOSED != 0 || word >> 32 == *done {
                return;
            }
            let joined = self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            match joined {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        *done = word >> 32;
        let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let share = 1 + self.entered.fetch_add(1, Ordering::Relaxed);
        if let Some(job) = job.filter(|job| share < job.threads) {
            self.work(share, job, own, stays);
        }
        self.word.fetch_sub(1, Ordering::AcqRel);
    }

    /// Runs tasks until none is left or `stays` says no: the own share, 0 for the caller, from its front, then the others' from their backs.
    pub(super) fn work(
        &self,
        own_share: usize,
        job: Job,
        own: &mut Buffer,
        stays: impl Fn() -> bool,
    ) {
        // SAFETY: the job outlives its members, and the caller is one.
        let task = unsafe { &*job.task };
        let run = AssertUnwindSafe(|| {
            for share in (0..job.threads).map(|i| (own_share + i) % job.threads) {
                while stays()
                    && let Some(index) = self.shares[share].take(share == own_share)
                {
                    task(index, own);
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
