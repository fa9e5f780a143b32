//! The thread pool: every task runs once, panics reach the caller, and callers share the threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use imgclass_kernels::ThreadPool;

use crate::pool;

#[test]
fn every_task_runs_exactly_once() {
    let counts: &[usize] = if cfg!(miri) {
        &[0, 1, 5]
    } else {
        &[0, 1, 2, 3, 7, 64, 1000]
    };
    for threads in 1..=4 {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for round in 0..if cfg!(miri) { 2 } else { 50 } {
            for &tasks in counts {
                let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(tasks, |index| {
                    runs[index].fetch_add(1, Ordering::Relaxed);
                });
                let all_once = runs.iter().all(|run| run.load(Ordering::Relaxed) == 1);
                assert!(
                    all_once,
                    "{tasks} tasks on {threads} threads, round {round}"
                );
            }
        }
    }
}

#[test]
fn a_panicking_task_reaches_the_caller_and_leaves_the_pool_usable() {
    let pool = pool(3);
    for _ in 0..if cfg!(miri) { 2 } else { 3 } {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(20, |index| {
                assert!(index % 10 != 7, "task {index} fails on purpose")
            });
        }));
        let payload = result.expect_err("the panic must arrive");
        let text = payload
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_default();
        assert!(text.contains("fails on purpose"), "{text:?}");
        let done = AtomicUsize::new(0);
        pool.for_each(20, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 20);
    }
}

#[test]
fn concurrent_callers_each_run_all_their_tasks() {
    // More callers than threads: the third waits for a seat.
    let pool = pool(2);
    let rounds = if cfg!(miri) { 3 } else { 200 };
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    pool.for_each(8, |index| {
                        total.fetch_add(index, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 3 * rounds * 28);
}

/// Waits until a caller could count on `threads` threads.
fn until_available(pool: &ThreadPool, threads: usize) {
    while pool.available() != threads {
        std::thread::yield_now();
    }
}

#[test]
fn as_many_callers_as_threads_have_a_thread_each() {
    let pool = pool(3);
    let all_here = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let seat = pool.enter();
                all_here.wait();
                assert_eq!(pool.available(), 1);
                let me = std::thread::current().id();
                pool.for_each(20, |_| assert_eq!(std::thread::current().id(), me));
                all_here.wait();
                drop(seat);
            });
        }
    });
    // The cores of callers that have left are kept for them for a moment.
    until_available(&pool, 3);
}

#[test]
#[cfg_attr(miri, ignore = "many threads")]
fn more_callers_than_seats_wait_for_one_another() {
    let pool = pool(20);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| {
                let _seat = pool.enter();
                for _ in 0..10 {
                    pool.for_each(40, |_| {
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 30 * 10 * 40);
}

#[test]
fn a_caller_counts_once_however_often_it_enters() {
    let (one, other) = (pool(4), pool(2));
    let outer = one.enter();
    let inner = one.enter();
    assert_eq!(one.available(), 4, "this caller and three helpers");
    let elsewhere = other.enter();
    assert_eq!(other.available(), 2);
    drop(elsewhere);
    // This is the wrong order: the inner guard then has no seat any more.
    drop(outer);
    let done = AtomicUsize::new(0);
    one.for_each(20, |_| {
        done.fetch_add(1, Ordering::Relaxed);
    });
    drop(inner);
    assert_eq!(done.load(Ordering::Relaxed), 20);
    until_available(&one, 4);
}

#[test]
fn helpers_spread_over_callers_that_come_and_go() {
    let pool = pool(4);
    let rounds = if cfg!(miri) { 3 } else { 300 };
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for caller in 1..=3 {
            let (pool, total) = (&pool, &total);
            scope.spawn(move || {
                for round in 0..rounds {
                    // Some callers hold their seat for several jobs, others take one for each job.
                    let _seat = (round % caller == 0).then(|| pool.enter());
                    for _ in 0..3 {
                        pool.for_each(17, |index| {
                            total.fetch_add(index, Ordering::Relaxed);
                        });
                    }
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 3 * rounds * 3 * 136);
}

#[test]
#[cfg_attr(miri, ignore = "sleeps")]
fn workers_that_went_to_sleep_wake_for_the_next_job() {
    let pool = pool(4);
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let seen = AtomicUsize::new(0);
        pool.for_each(100, |_| {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(seen.load(Ordering::Relaxed), 100);
    }
}

#[test]
fn jobs_inside_a_lone_task_run_on_its_thread_alone() {
    for threads in 1..=4 {
        let pool = pool(threads);
        let inner = AtomicUsize::new(0);
        for _ in 0..if cfg!(miri) { 2 } else { 50 } {
            inner.store(0, Ordering::Relaxed);
            pool.for_each_alone(7, |_| {
                assert_eq!(pool.available(), 1);
                let this = std::thread::current().id();
                pool.for_each(5, |_| {
                    assert_eq!(std::thread::current().id(), this);
                    inner.fetch_add(1, Ordering::Relaxed);
                });
                // A lone task may start lone tasks too.
                pool.for_each_alone(2, |_| {
                    assert_eq!(std::thread::current().id(), this);
                    inner.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(inner.load(Ordering::Relaxed), 7 * 7, "{threads} threads");
            assert_eq!(pool.available(), threads);
        }
    }
}

#[test]
fn lone_tasks_may_start_lone_tasks_to_any_depth() {
    fn descend(pool: &ThreadPool, depth: usize, leaves: &AtomicUsize) {
        if depth == 0 {
            pool.for_each(2, |_| {
                leaves.fetch_add(1, Ordering::Relaxed);
            });
        } else {
            pool.for_each_alone(2, |_| descend(pool, depth - 1, leaves));
        }
    }
    let depth = if cfg!(miri) { 3 } else { 8 };
    for threads in 1..=3 {
        let (pool, leaves) = (pool(threads), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| descend(&pool, depth, &leaves));
            }
        });
        assert_eq!(
            leaves.load(Ordering::Relaxed),
            2 << (depth + 1),
            "{threads} threads"
        );
    }
}

#[test]
fn a_panic_in_a_lone_task_leaves_the_pool_with_all_its_threads() {
    let pool = pool(3);
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each_alone(6, |index| {
                pool.for_each(2, |_| assert!(index % 2 == 0, "on purpose"));
            });
        }));
        assert!(result.is_err());
        assert_eq!(pool.available(), 3);
    }
}

#[test]
fn callers_that_run_lone_tasks_at_the_same_time_do_not_disturb_each_other() {
    let pool = pool(2);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..if cfg!(miri) { 2 } else { 100 } {
                    pool.for_each_alone(4, |_| {
                        pool.for_each(3, |index| {
                            total.fetch_add(index, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    let rounds = if cfg!(miri) { 2 } else { 100 };
    assert_eq!(total.load(Ordering::Relaxed), 3 * rounds * 4 * 3);
}

#[test]
fn a_thread_begins_every_job_with_the_same_part_of_the_tasks() {
    for threads in 2..=4 {
        let pool = pool(threads);
        let _seat = pool.enter();
        let mut first = None;
        for _ in 0..if cfg!(miri) { 3 } else { 100 } {
            // Nobody ends a task before everybody has one, so nobody can take another's.
            let all_have_one = std::sync::Barrier::new(threads);
            let runs: Vec<_> = (0..threads).map(|_| Mutex::new(None)).collect();
            pool.for_each(threads, |index| {
                *runs[index].lock().unwrap() = Some(std::thread::current().id());
                all_have_one.wait();
            });
            let runs: Vec<_> = runs
                .into_iter()
                .map(|run| run.into_inner().unwrap())
                .collect();
            assert_eq!(
                *first.get_or_insert(runs.clone()),
                runs,
                "{threads} threads"
            );
        }
    }
}
