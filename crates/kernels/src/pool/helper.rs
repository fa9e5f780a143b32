//! The helpers: threads that look for open jobs, work on them, and sleep when there are none.
//!
//! ```text
//!             a job is open and this helper may work
//!   polling ------------------------------------------> working
//!    |   ^  <------------------------------------------
//!    |   |     no task is left, or a caller needs the core
//!    |   |
//!    |   |  woken by a caller that opens a job
//!    v   |
//!   asleep        (polling and asleep both end when the pool stops)
//! ```
//!
//! **No wake-up is lost.** A caller first counts up `news` and then looks at `asleep`; a helper
//! first sets `asleep` and then looks at `news`. Every write to `asleep` is a read-modify-write
//! that acquires and releases, so all of them are in one order, and each thread sees what happened
//! before the write that precedes its own. If the caller's write comes first, then the helper sees
//! the news and does not sleep. If the helper's comes first, then the caller sees that it sleeps,
//! and wakes it. `tests/it/pool_model.rs` checks this in all interleavings.

use std::sync::PoisonError;
use std::time::Duration;

use super::board::Board;
use super::pause;
use crate::buffer::Buffer;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Clock, Mutex, Ordering, Thread, thread};

/// How often an idle helper polls before it sleeps: for about 50 us. That is several times the
/// pause between two layers, so a forward pass wakes its helpers once, while an idle service burns
/// nothing.
const POLLS_BEFORE_SLEEP: u32 = if cfg!(loom) {
    1
} else if cfg!(miri) {
    10
} else {
    2_000
};

/// How long the core of a caller that has left is kept for its return. Between two batches of a
/// busy service lies less than that. A helper that takes the core for so short a time is still at
/// its task when the caller comes back, and another caller waits for both.
const RETURN: Duration = Duration::from_millis(2);

/// The most callers that compute at one time; further ones wait for a seat. A board has a place for
/// each thread, so one board for each thread would take 134 MB on a machine of a thousand.
const MOST_CALLERS: usize = 16;

/// What callers and helpers share.
pub(super) struct Shared {
    /// How many threads compute at one time.
    threads: usize,
    /// One board for each caller that may compute at the same time.
    boards: Box<[Board]>,
    /// Counts the jobs that were opened, on all boards.
    news: AtomicU64,
    /// Counts the callers that compute.
    callers: AtomicUsize,
    /// How many callers have left within the last [`RETURN`]; zero if nobody has left since another
    /// came.
    left: AtomicUsize,
    /// When the last of them left, by `clock`.
    left_at: AtomicU64,
    clock: Clock,
    /// One for each helper. Helper 1 has the first.
    sleepers: Box<[Sleeper]>,
    /// Whether the helpers are to end.
    stop: AtomicBool,
}

/// Where a helper sleeps. Each fills two cache lines of its own, because every caller looks at it.
#[repr(align(128))]
struct Sleeper {
    /// Whether the helper sleeps, or is about to. It is only ever written by swaps, see the module.
    asleep: AtomicBool,
    /// The helper's thread, once it runs.
    thread: Mutex<Option<Thread>>,
}

/// What a helper finds when it looks around.
enum Finding {
    /// Jobs were opened, so many up to now, and this helper may work.
    Jobs(u64),
    /// The pool stops.
    Stop,
    /// There is nothing to do for this helper.
    Nothing,
}

impl Shared {
    /// Makes what `threads` threads share, the callers among them.
    pub(super) fn new(threads: usize) -> Self {
        let sleeper = |_| Sleeper {
            asleep: AtomicBool::new(false),
            thread: Mutex::new(None),
        };
        Self {
            threads,
            boards: (0..threads.min(MOST_CALLERS))
                .map(|_| Board::new(threads))
                .collect(),
            news: AtomicU64::new(0),
            callers: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            left_at: AtomicU64::new(0),
            clock: Clock::start(),
            sleepers: (1..threads).map(sleeper).collect(),
            stop: AtomicBool::new(false),
        }
    }

    /// Returns how many threads compute at one time, callers and helpers together.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Returns how many callers may compute at one time.
    pub(super) fn seats(&self) -> usize {
        self.boards.len()
    }

    /// Returns the board of the caller on `seat`.
    pub(super) fn board(&self, seat: usize) -> &Board {
        &self.boards[seat]
    }

    /// Counts one more caller that computes. The last of the helpers that work stops at its next
    /// task.
    pub(super) fn caller_enters(&self) {
        // Relaxed, here and at every access to `callers` and `left`: they say how many cores are
        // free. Where they are seen late, a helper works or sleeps one task longer than it should,
        // and no result depends on it. Where it matters that they are seen, `news` carries them
        // along.
        self.callers.fetch_add(1, Ordering::Relaxed);
        let one_less = |left: usize| left.checked_sub(1);
        // If nobody has left there is nothing to count down. It does not matter which caller comes
        // back.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }

    /// Counts one caller fewer, and keeps its core for [`RETURN`].
    pub(super) fn caller_leaves(&self) {
        let expected_back = self.expected_back();
        self.left_at
            .store(self.clock.nanoseconds(), Ordering::Relaxed);
        // Release: whoever sees this count also sees the time that belongs to it.
        self.left.store(expected_back + 1, Ordering::Release);
        self.callers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many callers have just left and are expected back.
    fn expected_back(&self) -> usize {
        // Two callers that leave or enter at the same moment may be counted as one. For the time of
        // `RETURN` that is one core too few or too many.
        // Acquire: the time that is read next is that of this count or a later one.
        let left = self.left.load(Ordering::Acquire);
        if left == 0 {
            return 0;
        }
        let left_at = self.left_at.load(Ordering::Relaxed);
        let since = self.clock.nanoseconds().saturating_sub(left_at);
        if u128::from(since) < RETURN.as_nanos() {
            left
        } else {
            0
        }
    }

    /// Returns how many cores are the callers': of those that compute and of those expected back.
    fn taken(&self) -> usize {
        self.callers.load(Ordering::Relaxed) + self.expected_back()
    }

    /// Returns how many threads a caller can count on, its own among them: its share of all.
    pub(super) fn available(&self) -> usize {
        self.threads().div_ceil(self.taken().max(1))
    }

    /// Returns whether helper `worker` may compute beside the callers.
    fn wants(&self, worker: usize) -> bool {
        worker + self.taken() <= self.threads()
    }

    /// Tells the helpers that a job was opened.
    pub(super) fn announce(&self) {
        // Release: a helper that sees the news finds the job open on its board.
        self.news.fetch_add(1, Ordering::Release);
        self.wake(self.threads().saturating_sub(self.taken()));
    }

    /// Ends all helpers.
    pub(super) fn stop(&self) {
        // Relaxed: the swaps in `wake` release it to each helper that sleeps or is about to, and
        // one that polls sees it sooner or later.
        self.stop.store(true, Ordering::Relaxed);
        self.wake(self.sleepers.len());
    }

    /// Wakes those of the first `helpers` helpers that sleep.
    fn wake(&self, helpers: usize) {
        for sleeper in self.sleepers.iter().take(helpers) {
            // AcqRel: see the module's description. The release gives the news to a helper that
            // sets `asleep` later.
            if sleeper.asleep.swap(false, Ordering::AcqRel)
                && let Some(thread) = &*sleeper
                    .thread
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            {
                thread.unpark();
            }
        }
    }

    /// Runs the life of helper `worker`, counted from 1, until the pool stops.
    pub(super) fn help(&self, worker: usize) {
        let sleeper = &self.sleepers[worker - 1];
        *sleeper
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let mut memory = Buffer::default();
        let mut last_epochs = vec![0; self.boards.len()];
        let mut seen = 0;
        while let Some(news) = self.await_jobs(worker, sleeper, seen) {
            seen = news;
            // Helpers begin at different boards, so that they spread over the callers.
            for seat in (0..self.boards.len()).map(|i| (worker + i) % self.boards.len()) {
                if self.wants(worker) {
                    let stays = || self.wants(worker);
                    self.boards[seat].help(worker, &mut last_epochs[seat], &mut memory, stays);
                }
            }
        }
    }

    /// Waits until jobs were opened after the first `seen` and this helper may work on them: polls,
    /// then sleeps. Returns how many jobs were opened until now, or `None` when the pool stops.
    fn await_jobs(&self, worker: usize, sleeper: &Sleeper, seen: u64) -> Option<u64> {
        loop {
            for polls in 1..=POLLS_BEFORE_SLEEP {
                match self.look(worker, seen) {
                    Finding::Jobs(news) => return Some(news),
                    Finding::Stop => return None,
                    Finding::Nothing => {}
                }
                if !self.wants(worker) {
                    break;
                }
                pause(polls);
            }
            // A helper that may not work is not woken until there are fewer callers and one of them
            // opens its next job. AcqRel: see the module's description. The acquire brings the news
            // of a caller that has looked at `asleep` before.
            sleeper.asleep.swap(true, Ordering::AcqRel);
            // Acquire: whoever wakes this helper has released its news by the same word.
            while sleeper.asleep.load(Ordering::Acquire) {
                let found = match self.look(worker, seen) {
                    Finding::Jobs(news) => Some(news),
                    Finding::Stop => None,
                    Finding::Nothing => {
                        thread::park();
                        continue;
                    }
                };
                // AcqRel, and no plain store: a store would cut this helper's next swap off from
                // what a caller has released here meanwhile.
                sleeper.asleep.swap(false, Ordering::AcqRel);
                return found;
            }
        }
    }

    /// Looks whether there is something to do for helper `worker`, which knows of the first `seen`
    /// jobs.
    fn look(&self, worker: usize, seen: u64) -> Finding {
        // Relaxed: nothing is read on the strength of it.
        if self.stop.load(Ordering::Relaxed) {
            return Finding::Stop;
        }
        // Acquire: the job that the count tells of is then open on its board, and its caller is
        // counted.
        let news = self.news.load(Ordering::Acquire);
        if news != seen && self.wants(worker) {
            Finding::Jobs(news)
        } else {
            Finding::Nothing
        }
    }
}
