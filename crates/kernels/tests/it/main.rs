//! The CPU kernels through their public facade: every kernel on every instruction set of this machine, against sums in
//! double precision. It never times anything.
//!
//! Under Miri only the portable instruction set exists and the shapes shrink; see `docs/kernels.md` for the commands.

mod allocator;
mod convolution;
mod network;
mod pointwise;
mod properties;
mod reference;
mod resample;
mod stem;
mod threads;

use std::num::NonZeroUsize;

use imgclass_kernels::{LargeBlocks, ThreadPool};

/// As the service runs: activations on cache lines, reused.
#[global_allocator]
static ALLOCATOR: LargeBlocks = LargeBlocks;

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).expect("a thread count above zero"))
        .expect("threads")
}
