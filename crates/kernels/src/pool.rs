//! A thread pool for jobs of many short tasks. A job is a closure and a number of tasks; it is over
//! when the call that started it returns, so there is no queue and nothing asynchronous.
//!
//! The thread that starts a job works on it. Helper threads fill the cores that callers leave: a
//! pool of `t` threads keeps `t` cores busy and no more. Where one forward pass runs, `t - 1`
//! helpers take part in each of its layers. Where `t` passes run at the same time, each has its own
//! thread to itself, no helper works, and no pass waits for another at the end of a layer. In
//! between, the helpers are as many as are left.
//!
//! | part | what it holds |
//! |---|---|
//! | `pool.rs` | the public pool; seats: who may compute, and which memory lies there |
//! | [`board`] | one caller's job: who works on it, which tasks are left |
//! | [`helper`] | the helper threads: when they work, when they sleep, who wakes them |
//!
//! A caller's way through a job:
//!
//! ```text
//! enter         take a seat, one fewer helper may work         (ThreadPool::enter)
//!   session     take the seat's memory                         (ThreadPool::session)
//!     open      put the job on the seat's board                (Board::open)
//!     announce  count up the news, wake helpers that sleep     (Shared::announce)
//!     work      run tasks until none is left                   (Board::work)
//!     close     wait for the helpers that are still at a task  (Board::close)
//! leave         give the seat back                             (drop of Entered)
//! ```

mod board;
mod helper;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::PoisonError;

use crate::buffer::Buffer;
use crate::sync::{Arc, Condvar, JoinHandle, Mutex, MutexGuard, spin_loop, thread};
use board::Job;
use helper::Shared;

/// How many polls lie between two offers of the core to whoever else waits for it, such as a
/// decoder. So many polls take a few microseconds. Where nobody waits, an offer costs less than one
/// of them.
const POLLS_PER_YIELD: u32 = if cfg!(loom) {
    // Under loom only a yield lets another thread run.
    1
} else if cfg!(miri) {
    2
} else {
    100
};

/// Threads that run the tasks of jobs: helper threads, and a seat for each caller that computes.
///
/// At most as many callers as threads compute at one time, and at most sixteen. Further ones wait
/// for a seat. Dropping the pool joins its threads.
pub struct ThreadPool {
    shared: Arc<Shared>,
    seats: Seats,
    handles: Vec<JoinHandle<()>>,
}

/// The seats of a pool: which are free, and the memory that belongs to each.
struct Seats {
    /// The free seats, in descending order.
    free: Mutex<Vec<usize>>,
    /// Told when a seat becomes free.
    freed: Condvar,
    /// The free lone seats ([`ThreadPool::for_each_alone`]), numbered after the others.
    free_lone: Mutex<Vec<usize>>,
    /// The memory of each seat, and then that of each lone seat.
    scratch: Box<[Mutex<Scratch>]>,
}

/// The memory of a seat. It is kept from job to job, and grows to what the largest layer needs.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Memory that all threads of a job share.
    common: Buffer,
    /// Memory for the tasks that the caller runs itself.
    own: Buffer,
}

/// The seat of a thread: the pool, which its address identifies, and the number of the seat.
type Seat = (*const Shared, usize);

#[cfg(not(loom))]
std::thread_local! {
    /// The seat of this thread, if it has one.
    static SEATED: Cell<Option<Seat>> = const { Cell::new(None) };
    /// The lone seat that this thread had last. Its memory is in this core's caches.
    static LAST_LONE: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[cfg(loom)]
loom::thread_local! {
    /// The seat of this thread, if it has one. loom runs all threads of a model on one of the
    /// system's, so it needs its own kind of variable.
    static SEATED: Cell<Option<Seat>> = Cell::new(None);
    static LAST_LONE: Cell<usize> = Cell::new(usize::MAX);
}

/// A seat among the callers that compute, until this is dropped. Helpers leave this thread its core
/// for all that time, not only inside a job.
pub struct Entered<'a> {
    pool: &'a ThreadPool,
    seat: usize,
    on_drop: OnDrop,
    /// A seat belongs to its thread, so this is not `Send`.
    _not_send: PhantomData<*const ()>,
}

/// What dropping an [`Entered`] does.
enum OnDrop {
    /// It took the seat, so it gives the seat back. Its thread is then on `previous`, a seat in
    /// another pool, or on none.
    GiveSeatBack { previous: Option<Seat> },
    /// Nothing: an earlier guard of this thread holds the seat.
    Nothing,
}

/// A lone seat, until this is dropped.
struct Alone<'a> {
    seats: &'a Seats,
    seat: usize,
    previous: Option<Seat>,
}

/// The right to run jobs. It holds the seat and the seat's memory until it is dropped.
pub(crate) struct Session<'a> {
    shared: &'a Shared,
    seat: usize,
    threads: usize,
    scratch: MutexGuard<'a, Scratch>,
    /// The last field is dropped last: whoever gets the seat next finds its memory free.
    _entered: Entered<'a>,
}

impl ThreadPool {
    /// Makes a pool of `threads` threads: starts one helper fewer, since the caller of a job works
    /// too.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Self> {
        let threads = threads.get();
        let shared = Arc::new(Shared::new(threads));
        let mut pool = Self {
            seats: Seats::new(shared.seats(), threads),
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

    /// Returns how many threads compute at one time, callers and helpers together.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads()
    }

    /// Takes a seat for all jobs that this thread runs until the guard is dropped. Waits while all
    /// seats are taken.
    ///
    /// A forward pass holds a seat for its whole length, because its core is not free between two
    /// layers. A thread that already has a seat in this pool keeps it, and counts once.
    ///
    /// Guards of several pools are to be dropped in the reverse order. One that outlives an earlier
    /// one no longer serves its thread, which then takes a second seat for its next job.
    pub fn enter(&self) -> Entered<'_> {
        let pool = Arc::as_ptr(&self.shared);
        let previous = SEATED.with(Cell::get);
        if let Some((seated_in, seat)) = previous
            && seated_in == pool
        {
            return Entered::new(self, seat, OnDrop::Nothing);
        }
        let seat = self.seats.take();
        self.shared.caller_enters();
        SEATED.with(|seated| seated.set(Some((pool, seat))));
        Entered::new(self, seat, OnDrop::GiveSeatBack { previous })
    }

    /// Returns how many threads a caller can count on at this moment, its own among them. Inside
    /// [`ThreadPool::for_each_alone`] that is one.
    #[must_use]
    pub fn available(&self) -> usize {
        let pool = Arc::as_ptr(&self.shared);
        match SEATED.with(Cell::get) {
            Some((seated_in, seat)) if seated_in == pool => self.available_on(seat),
            _ => self.shared.available(),
        }
    }

    /// Returns how many threads the caller on `seat` can count on.
    fn available_on(&self, seat: usize) -> usize {
        if seat < self.shared.seats() {
            self.shared.available()
        } else {
            1
        }
    }

    /// Calls `task(index)` once for each index below `tasks`, on all available threads. Returns
    /// when all calls have returned.
    ///
    /// A task must not start a job in the same pool: its thread would wait for the seat's memory,
    /// which the job around it holds. Tasks of [`ThreadPool::for_each_alone`] may.
    ///
    /// # Panics
    /// If a task panics: with the payload of the first that did. The pool stays usable.
    pub fn for_each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.session().run(tasks, |index, _| task(index));
    }

    /// Calls `task(index)` once for each index below `tasks`, as [`ThreadPool::for_each`] does. But
    /// jobs that a task starts in this pool run on the task's thread alone. So all that a task
    /// writes and reads again stays in the caches of one core.
    ///
    /// # Panics
    /// As [`ThreadPool::for_each`].
    pub fn for_each_alone(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if self.is_alone() {
            // The thread keeps its lone seat. So no thread has two of them, however deep lone tasks
            // start lone tasks.
            (0..tasks).for_each(task);
            return;
        }
        self.session().run(tasks, |index, _| {
            let _alone = self.sit_alone();
            task(index);
        });
    }

    /// Returns whether this thread is on a lone seat of this pool.
    fn is_alone(&self) -> bool {
        let pool = Arc::as_ptr(&self.shared);
        let seated = SEATED.with(Cell::get);
        seated.is_some_and(|(seated_in, seat)| seated_in == pool && seat >= self.shared.seats())
    }

    /// Puts this thread on a lone seat, where it works without helpers.
    fn sit_alone(&self) -> Alone<'_> {
        let seat = self.seats.take_lone(LAST_LONE.with(Cell::get));
        LAST_LONE.with(|last| last.set(seat));
        let pool = Arc::as_ptr(&self.shared);
        Alone {
            seats: &self.seats,
            seat,
            previous: SEATED.with(|seated| seated.replace(Some((pool, seat)))),
        }
    }

    /// Starts a session on the seat of this thread, or on one that it takes for the session.
    pub(crate) fn session(&self) -> Session<'_> {
        let entered = self.enter();
        // A poisoned lock only says that a task panicked. Scratch memory has no state that could be
        // half made.
        let scratch = self.seats.scratch[entered.seat]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Session {
            shared: &self.shared,
            seat: entered.seat,
            threads: self.available_on(entered.seat),
            scratch,
            _entered: entered,
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop();
        for handle in self.handles.drain(..) {
            // A helper catches the panics of its tasks, so it ends well. If it did not, dropping
            // the pool must still not panic.
            let _ = handle.join();
        }
    }
}

impl Seats {
    /// Makes `seats` free seats, and lone seats for all that can be in a task at one time: a caller
    /// on each seat, and the helpers of `threads` threads.
    fn new(seats: usize, threads: usize) -> Self {
        let all = seats + seats + threads;
        Self {
            // The first seat is given out first: a caller that is alone always has the same one,
            // with the memory that it used before.
            free: Mutex::new((0..seats).rev().collect()),
            freed: Condvar::new(),
            free_lone: Mutex::new((seats..all).rev().collect()),
            scratch: (0..all).map(|_| Mutex::new(Scratch::default())).collect(),
        }
    }

    /// Takes the first free seat; waits until there is one.
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

    /// Takes a free lone seat: `wanted` if it is free.
    ///
    /// # Panics
    /// If none is free, which cannot be: there is one for each thread that may be in a task.
    fn take_lone(&self, wanted: usize) -> usize {
        let mut free = self
            .free_lone
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = free.iter().position(|seat| *seat == wanted);
        let place = place.unwrap_or(free.len().wrapping_sub(1));
        free.swap_remove(place)
    }

    /// Makes `seat` free again.
    fn give_back(&self, seat: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free.partition_point(|other| *other > seat);
        free.insert(place, seat);
        drop(free);
        self.freed.notify_one();
    }
}

impl<'a> Entered<'a> {
    fn new(pool: &'a ThreadPool, seat: usize, on_drop: OnDrop) -> Self {
        Self {
            pool,
            seat,
            on_drop,
            _not_send: PhantomData,
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        SEATED.with(|seated| seated.set(self.previous));
        self.seats
            .free_lone
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.seat);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let OnDrop::GiveSeatBack { previous } = self.on_drop {
            SEATED.with(|seated| seated.set(previous));
            self.pool.shared.caller_leaves();
            self.pool.seats.give_back(self.seat);
        }
    }
}

impl Session<'_> {
    /// Returns how many threads work on each job of this session.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(index, memory)` once for each index below `tasks`; `memory` belongs to the
    /// thread that runs the task, and holds what its last task left. Each thread starts with a
    /// contiguous share of the tasks and then takes from the others'.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize, &mut Buffer) + Sync) {
        let memory = &mut self.scratch.own;
        if self.threads == 1 || tasks <= 1 {
            (0..tasks).for_each(|index| task(index, memory));
            return;
        }
        let board = self.shared.board(self.seat);
        // SAFETY: `task` lives until this function ends, and `close` returns before that: between
        // here and there nothing unwinds, since `work` catches the panics of tasks.
        let job = unsafe { Job::new(&task, self.threads) };
        board.open(tasks, job);
        self.shared.announce();
        board.work(0, job, memory, || true);
        if let Some(payload) = board.close() {
            resume_unwind(payload);
        }
    }

    /// Takes the memory that is kept for all tasks of a job: at least `len` floats of any content,
    /// on a cache line. [`Session::keep_scratch`] keeps it for the next job.
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

/// Waits a moment between two looks at what another thread will change. `polls` counts the looks.
fn pause(polls: u32) {
    if polls.is_multiple_of(POLLS_PER_YIELD) {
        thread::yield_now();
    } else {
        spin_loop();
    }
}
