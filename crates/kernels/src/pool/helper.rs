//! The helpers: threads that look for open jobs and sleep when there are none. They own no job and start none.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::super::buffer::Buffer;
use super::board::Board;
use super::pause;

/// Polls of an idle helper before it parks: about 50 us, several times the pause between two layers, so that a
/// forward pass wakes its helpers once, while an idle service burns nothing.
const SPINS: u32 = if cfg!(miri) { 10 } else { 2_000 };

/// So long is the core of a caller that has left kept for its return: between two batches of a busy service lies less, and a helper that
/// takes the core for so short a time is still at its task when the caller comes back, with another caller waiting for both.
const RETURN: Duration = Duration::from_millis(2);

/// Callers that compute at one time at most; further ones wait for a seat. A board has a place for each thread, so that one for each
/// thread too would take 134 MB on a machine of a thousand.
const MOST_CALLERS: usize = 16;

/// What callers and helpers share.
pub(super) struct Shared {
    threads: usize,
    /// One for each caller that computes at the same time.
    boards: Box<[Board]>,
    /// Changes with every job that is opened.
    news: AtomicU64,
    /// How many callers compute.
    callers: AtomicUsize,
    /// How many have left of late, and when the last of them did, in nanoseconds since `start`.
    left: AtomicUsize,
    left_at: AtomicU64,
    start: Instant,
    /// One for each helper; helper 1 is the first.
    sleepers: Box<[Sleeper]>,
    stop: AtomicBool,
}

#[derive(Default)]
#[repr(align(128))]
struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Shared {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            threads,
            boards: (0..threads.min(MOST_CALLERS))
                .map(|_| Board::new(threads))
                .collect(),
            news: AtomicU64::new(0),
            callers: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            left_at: AtomicU64::new(0),
            start: Instant::now(),
            sleepers: (1..threads).map(|_| Sleeper::default()).collect(),
            stop: AtomicBool::new(false),
        }
    }

    /// Threads that compute at one time, callers and helpers.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Callers that may compute at one time.
    pub(super) fn seats(&self) -> usize {
        self.boards.len()
    }

    pub(super) fn board(&self, seat: usize) -> &Board {
        &self.boards[seat]
    }

    /// One more caller computes: the last of the helpers that work stops at its next task.
    pub(super) fn caller_enters(&self) {
        self.callers.fetch_add(1, Ordering::SeqCst);
        let one_less = |left: usize| left.checked_sub(1);
        // It is no matter which caller comes back.
        let _ = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
    }

    /// One caller fewer.
    pub(super) fn caller_leaves(&self) {
        let expected_back = self.expected_back();
        self.left_at.store(self.now(), Ordering::SeqCst);
        self.left.store(expected_back + 1, Ordering::SeqCst);
        self.callers.fetch_sub(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Callers that have just left.
    fn expected_back(&self) -> usize {
        // Two that leave or enter at the same moment may be counted as one: for the time of `RETURN` that is one core too few or too many.
        match self.left.load(Ordering::SeqCst) {
            0 => 0,
            left => {
                let since = self
                    .now()
                    .saturating_sub(self.left_at.load(Ordering::SeqCst));
                if u128::from(since) < RETURN.as_nanos() {
                    left
                } else {
                    0
                }
            }
        }
    }

    /// Cores that are not the helpers'.
    fn taken(&self) -> usize {
        self.callers.load(Ordering::SeqCst) + self.expected_back()
    }

    /// Threads that a caller can count on, its own among them: its share of all.
    pub(super) fn available(&self) -> usize {
        self.threads().div_ceil(self.taken().max(1))
    }

    /// Whether helper `worker` may compute beside the callers.
    fn wants(&self, worker: usize) -> bool {
        worker + self.taken() <= self.threads()
    }

    /// Tells the helpers that a job was opened.
    pub(super) fn announce(&self) {
        self.news.fetch_add(1, Ordering::SeqCst);
        self.wake(self.threads().saturating_sub(self.taken()));
    }

    /// Ends all helpers.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake(self.sleepers.len());
    }

    /// Unparks those of the first `helpers` that sleep.
    fn wake(&self, helpers: usize) {
        for sleeper in self.sleepers.iter().take(helpers) {
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

    /// The life of helper `worker`, from 1.
    pub(super) fn help(&self, worker: usize) {
        let sleeper = &self.sleepers[worker - 1];
        *sleeper
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let mut own = Buffer::default();
        let mut done = vec![0; self.boards.len()];
        let mut seen = 0;
        while let Some(news) = self.await_news(worker, sleeper, seen) {
            seen = news;
            // Helpers begin at different boards, so that they spread over the callers.
            for seat in (0..self.boards.len()).map(|i| (worker + i) % self.boards.len()) {
                if self.wants(worker) {
                    self.boards[seat].help(&mut done[seat], &mut own, || self.wants(worker));
                }
            }
        }
    }

    /// Spins, then parks, until a job was opened since `seen` and this helper may work on it; `None` when the pool stops.
    fn await_news(&self, worker: usize, sleeper: &Sleeper, seen: u64) -> Option<u64> {
        let news = || {
            let news = self.news.load(Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            (stop || news != seen && self.wants(worker)).then_some((!stop).then_some(news))
        };
        loop {
            for polls in 1..=SPINS {
                if let Some(news) = news() {
                    return news;
                }
                if !self.wants(worker) {
                    break;
                }
                pause(polls);
            }
            // Sleep is announced before the last look, and a caller looks for sleepers after opening a job: one of the two sees the other.
            // Who may not work is not woken, until the callers are fewer and one of them opens its next job.
            sleeper.asleep.store(true, Ordering::SeqCst);
            while sleeper.asleep.load(Ordering::SeqCst) {
                if let Some(news) = news() {
                    sleeper.asleep.store(false, Ordering::SeqCst);
                    return news;
                }
                thread::park();
            }
        }
    }
}
