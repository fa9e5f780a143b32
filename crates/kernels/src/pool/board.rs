//! The board of one caller: where it offers the tasks of a job to other threads.
//!
//! A board holds at most one job. Its state is one atomic word, so that a helper joins a job, or
//! finds it closed, in one step:
//!
//! ```text
//!   closed ----------- open: epoch + 1 ----------> open, n members --+ a helper joins:  n + 1
//!     ^                                              |        ^        | a helper leaves: n - 1
//!     |                                            close      +--------+
//!     |                                              v
//!     +-------------- no members left -------------- closed, n members --+ a helper leaves: n - 1
//!                                                             ^          |
//!                                                             +----------+
//! ```
//!
//! The caller is not counted among the members: it opens the job, works on it, closes it, and waits
//! until there are no members. Only then does the job's closure end, so no task runs after its job.
//! The epoch tells a helper whether it has taken part in this job before.
//!
//! Which thread runs which task is decided by the *shares*: each thread of the job starts with a
//! contiguous range of task indices, takes its own from the front, and when its range is empty
//! takes from the back of the others'. A range is one atomic word, so each index is taken once.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::pause;
use crate::buffer::Buffer;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// The job word holds the epoch in its upper half. In its lower half the top bit closes the job to
/// further helpers.
const CLOSED: u64 = 1 << 31;

/// The bits of the job word that count the helpers inside the job.
const MEMBERS: u64 = CLOSED - 1;

/// What runs one task: a function of the task's index and of memory that the thread keeps from task
/// to task.
pub(super) type Task<'a> = dyn Fn(usize, &mut Buffer) + Sync + 'a;

/// A job as the threads that work on it see it.
#[derive(Clone, Copy)]
pub(super) struct Job {
    /// The closure that runs a task. It is borrowed from the caller's stack, and valid until
    /// [`Board::close`] has returned.
    task: *const Task<'static>,
    /// The job is cut into this many shares. The first is the caller's.
    threads: usize,
}

// SAFETY: the closure behind the pointer is `Sync`, so any thread may call it; `Job::new` promises
// that it lives until `Board::close` has returned, and no thread works on a job after that.
unsafe impl Send for Job {}

impl Job {
    /// Makes a job of which `threads` threads run the tasks.
    ///
    /// # Safety
    /// - `task` stays alive until [`Board::close`] has returned on the board on which the job is
    ///   opened.
    pub(super) unsafe fn new(task: &Task<'_>, threads: usize) -> Self {
        // SAFETY: the two types differ in the lifetime alone, which the caller promises to keep to.
        let task: *const Task<'static> =
            unsafe { std::mem::transmute(std::ptr::from_ref::<Task<'_>>(task)) };
        Self { task, threads }
    }
}

/// The place of one job at a time. The module's description shows its states.
pub(super) struct Board {
    /// The job word: epoch, [`CLOSED`] and the number of [`MEMBERS`].
    word: AtomicU64,
    /// The present job. It is valid while `word` is open or counts a member.
    job: Mutex<Option<Job>>,
    /// One range of task indices for each thread.
    shares: Box<[Share]>,
    /// How many helpers have joined the present job, those that have left it included.
    joined: AtomicUsize,
    /// What the first task that panicked threw.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A range of task indices that nobody has taken yet: its start in the lower half of the word, its
/// end in the upper half.
///
/// It fills two cache lines of 64 bytes, because its owner and others write to it, and the
/// processor fetches lines in pairs.
#[repr(align(128))]
struct Share(AtomicU64);

impl Board {
    /// Makes a board for jobs of up to `threads` threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            word: AtomicU64::new(CLOSED),
            job: Mutex::new(None),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            joined: AtomicUsize::new(0),
            panic: Mutex::new(None),
        }
    }

    /// Offers a job of `tasks` tasks. No other job may be open on this board.
    pub(super) fn open(&self, tasks: usize, job: Job) {
        // Relaxed here: nobody reads the shares or the count before it has joined, and joining
        // acquires what the store to `word` below releases.
        for (i, share) in self.shares[..job.threads].iter().enumerate() {
            let (from, to) = (i * tasks / job.threads, (i + 1) * tasks / job.threads);
            share.0.store(pack_range(from, to), Ordering::Relaxed);
        }
        self.joined.store(0, Ordering::Relaxed);
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        // Relaxed: between two jobs only this thread, the caller, writes the word.
        let epoch = (self.word.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // Release: whoever joins sees the shares, the count, and all that the tasks will read.
        self.word.store(epoch << 32, Ordering::Release);
    }

    /// Closes the job: keeps further helpers out, waits until those inside have left, and returns
    /// the payload of the first task that panicked.
    pub(super) fn close(&self) -> Option<Box<dyn Any + Send>> {
        // Acquire, here and below: what a member wrote in its tasks happens before it leaves the
        // word by a release, and every other write to the word in between is a read-modify-write,
        // which passes that on. So the caller sees the results of all tasks.
        let mut members = self.word.fetch_or(CLOSED, Ordering::Acquire) & MEMBERS;
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

    /// Joins the present job and runs tasks of it until none is left or `stays` returns false.
    ///
    /// `worker` is the helper's number, from 1. It decides which share the helper begins with, so
    /// that a helper gets the same part of the work in each job of a caller, and finds what it
    /// wrote in the job before in its own core's caches. Where helpers are spread over several
    /// callers, two may begin with the same share.
    ///
    /// `last_epoch` is the epoch of the last job that this helper joined on this board: it joins no
    /// job twice. The function returns at once if no job is open. `memory` is what the tasks get.
    pub(super) fn help(
        &self,
        worker: usize,
        last_epoch: &mut u64,
        memory: &mut Buffer,
        stays: impl Fn() -> bool,
    ) {
        // Relaxed: the value is only a guess that the exchange below confirms.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 || word >> 32 == *last_epoch {
                return;
            }
            // Acquire: from here on this thread sees what `open` wrote before its release.
            let joined = self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match joined {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        *last_epoch = word >> 32;
        let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
        // Relaxed: only that each helper gets another number matters.
        let members = 1 + self.joined.fetch_add(1, Ordering::Relaxed);
        // A job is cut for no more threads than the caller could count on when it began.
        if let Some(job) = job.filter(|job| members < job.threads) {
            let share = 1 + (worker - 1) % (job.threads - 1);
            self.work(share, job, memory, stays);
        }
        // Release: what the tasks wrote happens before `close` sees that this member has left.
        self.word.fetch_sub(1, Ordering::Release);
    }

    /// Runs tasks until none is left or `stays` returns false.
    ///
    /// The thread takes the tasks of `share` (0 is the caller's) from the front, then those of the
    /// other shares from their backs. Whoever calls this is the caller of the job or a member of
    /// it.
    pub(super) fn work(
        &self,
        share: usize,
        job: Job,
        memory: &mut Buffer,
        stays: impl Fn() -> bool,
    ) {
        // SAFETY: this thread is the job's caller, which has not closed the job yet, or a member,
        // for which `close` waits. So `close` has not returned, and until then the closure lives.
        let task = unsafe { &*job.task };
        let run = AssertUnwindSafe(|| {
            for victim in (0..job.threads).map(|i| (share + i) % job.threads) {
                while stays()
                    && let Some(index) = self.shares[victim].take(victim == share)
                {
                    task(index, memory);
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
    /// Takes the next task: the first one if the owner of the share asks, the last one if another
    /// does.
    fn take(&self, owner: bool) -> Option<usize> {
        // Relaxed, load and exchange: the word carries no other data with it. That an index is
        // taken once follows from each exchange being one step.
        let mut range = self.0.load(Ordering::Relaxed);
        loop {
            let (from, to) = ((range & 0xffff_ffff) as usize, (range >> 32) as usize);
            if from >= to {
                return None;
            }
            let (task, left) = if owner {
                (from, pack_range(from + 1, to))
            } else {
                (to - 1, pack_range(from, to - 1))
            };
            match self
                .0
                .compare_exchange_weak(range, left, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(task),
                Err(now) => range = now,
            }
        }
    }
}

/// Packs a range of task indices, each below 2^32, into one word.
fn pack_range(from: usize, to: usize) -> u64 {
    (to as u64) << 32 | from as u64
}
