//! The protocol of the thread pool under every interleaving of its threads that loom finds.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p imgclass-kernels --test it` builds these tests and no
//! others. loom stops with an error if all threads wait, if a wait has no end, or if a thread reads
//! plain memory that another thread has written without an order between the two.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use imgclass_kernels::ThreadPool;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};

/// Runs `model` under every interleaving in which threads are interrupted at most `interruptions`
/// times where they would not have to wait. Most protocol errors need one or two; more take very
/// long.
fn explore(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    exploration(interruptions).check(model);
}

fn exploration(interruptions: usize) -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.max_branches = 100_000;
    builder
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).expect("a thread count above zero"))
        .expect("threads")
}

/// Where tasks wait for one another: `meet` returns when all have come.
struct Meeting {
    expected: usize,
    arrived: Mutex<usize>,
    complete: Condvar,
}

impl Meeting {
    fn of(expected: usize) -> Self {
        Self {
            expected,
            arrived: Mutex::new(0),
            complete: Condvar::new(),
        }
    }

    fn meet(&self) {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        if *arrived == self.expected {
            self.complete.notify_all();
        }
        while *arrived < self.expected {
            arrived = self.complete.wait(arrived).unwrap();
        }
    }
}

#[test]
fn a_pool_without_jobs_stops() {
    explore(3, || drop(pool(2)));
}

/// The two tasks of each job wait for each other, so the job ends only if the helper comes. A
/// wake-up that is lost leaves all threads waiting, which loom reports.
#[test]
fn a_helper_comes_to_every_job() {
    explore(2, || {
        let pool = pool(2);
        for _ in 0..2 {
            let meeting = Meeting::of(2);
            pool.for_each(2, |_| meeting.meet());
        }
    });
}

/// Counters in plain memory, one for each task.
struct Counters(Vec<UnsafeCell<u32>>);

// SAFETY: each task counts in a cell of its own, and the caller reads when the job is over. loom
// reports every access that breaks this.
unsafe impl Sync for Counters {}

impl Counters {
    fn count(&self, task: usize) {
        // SAFETY: loom has checked that nobody else has access to the cell meanwhile.
        self.0[task].with_mut(|count| unsafe { *count += 1 });
    }

    fn read(&self, task: usize) -> u32 {
        // SAFETY: loom has checked that nobody writes to the cell meanwhile.
        self.0[task].with(|count| unsafe { *count })
    }
}

/// The caller reads what the tasks wrote without any synchronisation of its own: loom reports a
/// read that does not happen after the write.
#[test]
fn every_task_runs_once_and_its_results_are_the_callers() {
    explore(2, || {
        let pool = pool(2);
        let tasks = 3;
        let runs = Counters((0..tasks).map(|_| UnsafeCell::new(0)).collect());
        pool.for_each(tasks, |task| runs.count(task));
        for task in 0..tasks {
            assert_eq!(runs.read(task), 1);
        }
    });
}

#[test]
fn no_task_runs_after_its_job_has_ended() {
    explore(1, || {
        let runs = Arc::new(AtomicUsize::new(0));
        let pool = pool(2);
        for _ in 0..2 {
            let ended = Arc::new(AtomicBool::new(false));
            let (runs, ended_in_task) = (Arc::clone(&runs), Arc::clone(&ended));
            pool.for_each(2, move |_| {
                assert!(!ended_in_task.load(Ordering::Relaxed), "the job has ended");
                runs.fetch_add(1, Ordering::Relaxed);
            });
            ended.store(true, Ordering::Relaxed);
        }
        // Dropping the pool joins the helper: whatever it would still run, it has run.
        drop(pool);
        assert_eq!(runs.load(Ordering::Relaxed), 4);
    });
}

/// The model ends with the panic: a task's panic poisons the lock of the seat's memory, which the
/// pool ignores, and loom's lock does not let it. `threads.rs` runs jobs after a panic.
#[test]
fn a_panic_reaches_the_caller_when_all_tasks_are_over() {
    explore(2, || {
        let pool = pool(2);
        let job = AssertUnwindSafe(|| pool.for_each(2, |task| assert!(task != 1, "on purpose")));
        assert!(catch_unwind(job).is_err());
    });
}

/// Two callers share one helper. The second one may come while the first is in the middle of a job.
/// Three threads have too many interleavings to try all of them, so this tries the first hundred
/// thousand.
#[test]
fn two_callers_at_the_same_time_each_run_all_their_tasks() {
    let mut exploration = exploration(1);
    exploration.max_permutations = Some(100_000);
    exploration.check(|| {
        let pool = Arc::new(pool(2));
        let call = |pool: &ThreadPool| {
            let runs = AtomicUsize::new(0);
            pool.for_each(2, |_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.load(Ordering::Relaxed), 2);
        };
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || call(&pool))
        };
        call(&pool);
        other.join().unwrap();
    });
}

/// Each of the two lone tasks starts a job whose task waits for the other's, so the tasks are done
/// only if the helper comes, and if each thread has a lone seat to itself. The caller then runs a
/// job that needs the helper: it is back on its own seat.
#[test]
fn a_helper_comes_to_lone_tasks_and_to_the_job_after_them() {
    explore(2, || {
        let pool = pool(2);
        let _seat = pool.enter();
        let meeting = Meeting::of(2);
        pool.for_each_alone(2, |_| pool.for_each(1, |_| meeting.meet()));
        let meeting = Meeting::of(2);
        pool.for_each(2, |_| meeting.meet());
    });
}

/// The jobs of lone tasks run on one thread, and their results are those of the job around them:
/// loom reports a read that does not happen after the write, and two writes at the same time.
#[test]
fn every_task_of_a_lone_tasks_job_runs_once_on_one_thread() {
    explore(2, || {
        let pool = pool(2);
        let runs = Counters((0..4).map(|_| UnsafeCell::new(0)).collect());
        let on_one_thread = Counters((0..2).map(|_| UnsafeCell::new(0)).collect());
        pool.for_each_alone(2, |lone| {
            assert_eq!(pool.available(), 1);
            pool.for_each(2, |task| {
                runs.count(2 * lone + task);
                on_one_thread.count(lone);
            });
            // A lone task may start lone tasks too, which stay on its thread.
            pool.for_each_alone(2, |_| pool.for_each(2, |_| on_one_thread.count(lone)));
        });
        for task in 0..4 {
            assert_eq!(runs.read(task), 1);
        }
        for lone in 0..2 {
            assert_eq!(on_one_thread.read(lone), 6);
        }
    });
}

#[test]
fn no_lone_task_runs_after_its_job_has_ended() {
    explore(1, || {
        let runs = Arc::new(AtomicUsize::new(0));
        let pool = pool(2);
        for _ in 0..2 {
            let ended = Arc::new(AtomicBool::new(false));
            pool.for_each_alone(2, |_| {
                pool.for_each(2, |_| {
                    assert!(!ended.load(Ordering::Relaxed), "the job has ended");
                    runs.fetch_add(1, Ordering::Relaxed);
                });
            });
            ended.store(true, Ordering::Relaxed);
        }
        drop(pool);
        assert_eq!(runs.load(Ordering::Relaxed), 8);
    });
}

/// Two callers with lone tasks, and one helper that may come to either of them.
#[test]
fn two_callers_with_lone_tasks_each_run_all_of_them() {
    let mut exploration = exploration(1);
    exploration.max_permutations = Some(100_000);
    exploration.check(|| {
        let pool = Arc::new(pool(2));
        let call = |pool: &ThreadPool| {
            let runs = AtomicUsize::new(0);
            pool.for_each_alone(2, |_| {
                pool.for_each(2, |_| {
                    runs.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(runs.load(Ordering::Relaxed), 4);
        };
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || call(&pool))
        };
        call(&pool);
        other.join().unwrap();
    });
}
