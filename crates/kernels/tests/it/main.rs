//! The CPU kernels through their public interface: every kernel on every instruction set of this
//! machine, against sums in double precision.
//!
//! Under Miri only the portable instruction set exists, and the tables are of few and small shapes:
//! each path through the unsafe code once, at every edge of a tile. Builds with
//! `--cfg loom` hold the models of the thread pool and nothing else, because loom's primitives only
//! work inside a model. `docs/kernels.md` names the commands.

#[cfg(loom)]
mod pool_model;

#[cfg(not(loom))]
mod buffers;
#[cfg(not(loom))]
mod convolution;
#[cfg(not(loom))]
mod network;
#[cfg(not(loom))]
mod numbers;
#[cfg(not(loom))]
mod pointwise;
#[cfg(not(loom))]
mod properties;
#[cfg(not(loom))]
mod reference;
#[cfg(not(loom))]
mod resample;
#[cfg(not(loom))]
mod stem;
#[cfg(not(loom))]
mod threads;

#[cfg(not(loom))]
use std::num::NonZeroUsize;

#[cfg(not(loom))]
use imgclass_kernels::ThreadPool;

/// Returns whether tables are to be shorter, because a tool runs the tests that makes them some
/// fifty times slower: `.ci/nightly` sets `SHORT_TABLES` for valgrind. Miri, which is slower still,
/// has tables of its own.
#[cfg(not(loom))]
fn short_tables() -> bool {
    std::env::var_os("SHORT_TABLES").is_some()
}

/// Returns whether tables are to be longer than a change should wait for: `.ci/nightly` sets
/// `LONG_TABLES`.
#[cfg(not(loom))]
fn long_tables() -> bool {
    std::env::var_os("LONG_TABLES").is_some()
}

/// Returns the thread counts with which a kernel is run: `all`, or under Miri two alone, the pool in
/// which there is most to get wrong.
#[cfg(not(loom))]
fn thread_counts(all: &[usize]) -> &[usize] {
    if cfg!(miri) { &[2] } else { all }
}

#[cfg(not(loom))]
fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).expect("a thread count above zero"))
        .expect("threads")
}
