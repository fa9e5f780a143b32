//! Threads for the tasks of jobs. Who calls computes; helpers fill the cores that callers leave. It never queues jobs and never runs
//! anything asynchronously: a job is over when its call returns.
//!
//! A pool of `t` threads keeps `t` cores busy, no more: where one forward pass runs, `t - 1` helpers take part in each of its layers;
//! where `t` of them run at the same time, each has its own thread to itself, no helper works, and nobody waits for anybody at the end
//! of a layer. In between, the helpers are what is left.

mod board;
mod helper;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::buffer::Buffer;
use board::Job;
use helper::Shared;

/// Polls between two offers of the core to whoever else waits for it, such as a decoder: a few microseconds. Where nobody
/// waits an offer costs less than one.
const SPINS_PER_YIELD: u32 = if cfg!(miri) { 2 } else { 100 };

/// Helper threads, and a seat for each caller that computes.
///
/// Callers in excess of the threads, or of sixteen, wait for one another. Dropping the pool joins its threads.
pub struct ThreadPool {
    shared: Arc<Shared>,
    seats: Seats,
    handles: Vec<JoinHandle<()>>,
}

/// Which seats are free, and what lies on each.
struct Seats {
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    scratch: Box<[Mutex<Scratch>]>,
}

/// Memory that is kept from job to job and only ever grows to the largest layer's need.
#[derive(Default)]
pub(crate) struct Scratch {
    /// For all threads of a job.
    common: Buffer,
    /// For the caller's own tasks.
    own: Buffer,
}

/// A thread's seat: the pool, by its address, and which of its seats.
type Seat = (*const Shared, usize);

thread_local! {
    /// This thread's seat, where it has one.
    static SEATED: Cell<Option<Seat>> = const { Cell::new(None) };
}

/// A seat among those that compute, until dropped: helpers leave this thread its core all that time, not only inside a job.
pub struct Entered<'a> {
    pool: &'a ThreadPool,
    seat: usize,
    /// What this thread had before; `None` for the inner one of two.
    before: Option<Option<Seat>>,
    /// It belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

/// The right to run jobs: keeps the seat's memory until dropped.
pub(crate) struct Session<'a> {
    shared: &'a Shared,
    seat: usize,
    threads: usize,
    scratch: MutexGuard<'a, Scratch>,
    /// Last, so that it is dropped last: whoever gets the seat finds the memory free.
    _entered: Entered<'a>,
}

impl ThreadPool {
    /// Starts `threads - 1` helpers; the caller of a job is the remaining one.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Self> {
        let threads = threads.get();
        let shared = Arc::new(Shared::new(threads));
        let mut pool = Self {
            seats: Seats::new(shared.seats()),
            shared,
            handles: Vec::with_capacity(threads - 1),
        };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let helper = thread::Builder::new()
                .name(format!("kernels-{worker}"))
                .spawn(move || shared.help(worker))?;
            pool.handles.push(helper);
        }
        Ok(pool)
    }

    /// Threads that compute at one time.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads()
    }

    /// Takes a seat for all jobs that this thread runs until the guard is dropped; waits while all are taken. A forward pass does so for
    /// its whole length: between two layers its core is not free. Guards of several pools are to be dropped in the reverse order: one that
    /// outlives an earlier one no longer serves its thread, which then needs a second seat.
    pub fn enter(&self) -> Entered<'_> {
        let pool = Arc::as_ptr(&self.shared);
        let before = SEATED.get();
        if let Some((at, seat)) = before
            && at == pool
        {
            return Entered::new(self, seat, None);
        }
        let seat = self.seats.take();
        self.shared.caller_enters();
        SEATED.set(Some((pool, seat)));
        Entered::new(self, seat, Some(before))
    }

    /// Threads that a caller can count on at this moment, its own among them.
    #[must_use]
    pub fn available(&self) -> usize {
        self.shared.available()
    }

    /// Calls `task(index)` once for each index under `tasks`, on all available threads, and returns when all are done.
    ///
    /// # Panics
    /// With the payload of the first task that panicked; the pool stays usable.
    pub fn for_each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.session().run(tasks, |index, _| task(index));
    }

    /// This thread's seat, or one for the time of the session.
    pub(crate) fn session(&self) -> Session<'_> {
        let entered = self.enter();
        // A poisoned lock only says that a task panicked; scratch holds no state that could be half-made.
        let scratch = self.seats.scratch[entered.seat]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Session {
            shared: &self.shared,
            seat: entered.seat,
            threads: self.shared.available(),
            scratch,
            _entered: entered,
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop();
        for handle in self.handles.drain(..) {
            // A helper catches its tasks' panics, so it ends well; if it did not, dropping must still not panic.
            let _ = handle.join();
        }
    }
}

impl Seats {
    fn new(seats: usize) -> Self {
        Self {
            // The first seat is given out first: who is alone always has the same one, and its memory.
            free: Mutex::new((0..seats).rev().collect()),
            freed: Condvar::new(),
            scratch: (0..seats).map(|_| Mutex::default()).collect(),
        }
    }

    fn take(&self) -> usize {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(seat) = free.pop() {
                return seat;
            }
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, seat: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free.partition_point(|other| *other > seat);
        free.insert(place, seat);
        drop(free);
        self.freed.notify_one();
    }
}

impl<'a> Entered<'a> {
    fn new(pool: &'a ThreadPool, seat: usize, before: Option<Option<Seat>>) -> Self {
        Self {
            pool,
            seat,
            before,
            _not_send: PhantomData,
        }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            SEATED.set(before);
            self.pool.shared.caller_leaves();
            self.pool.seats.give_back(self.seat);
        }
    }
}

impl Session<'_> {
    /// Threads that work on a job.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(index, own)` once for each index under `tasks`; `own` is memory of the thread that runs it. Each thread starts with a
    /// contiguous share and then takes from the others'.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize, &mut Buffer) + Sync) {
        let own = &mut self.scratch.own;
        if self.threads == 1 || tasks <= 1 {
            (0..tasks).for_each(|index| task(index, own));
            return;
        }
        let board = self.shared.board(self.seat);
        // SAFETY: `close` runs before this frame is left, on unwinding too since `work` catches.
        let job = unsafe { Job::new(&task, self.threads) };
        board.open(tasks, job);
        self.shared.announce();
        board.work(0, job, own, || true);
        if let Some(payload) = board.close() {
            resume_unwind(payload);
        }
    }

    /// Takes the memory that is kept for all tasks of a job: at least `len` floats of any content, on a cache
    /// line. [`Session::keep_scratch`] keeps it for the next job.
    pub(crate) fn take_scratch(&mut self, len: usize) -> Buffer {
        let mut scratch = std::mem::take(&mut self.scratch.common);
        scratch.grow(len);
        scratch
    }

    /// Keeps what [`Session::take_scratch`] gave.
    pub(crate) fn keep_scratch(&mut self, scratch: Buffer) {
        self.scratch.common = scratch;
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
