//! The most floating-point work that this machine does in a second: what kernels are held against. It computes nothing of use.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::isa::Isa;
use super::pool::ThreadPool;
use super::simd::Vector;

/// Independent chains of multiply-adds: more than the latency of one (4 or 5 cycles) times those that start in a cycle (2), and few enough
/// for AVX2's sixteen registers.
const CHAINS: usize = 12;

/// Multiply-adds of each chain in one timing: about a millisecond, in which the clock does not change.
const STEPS: usize = 100_000;

/// Timings; the best one counts, because whatever else runs only takes away.
const TIMINGS: usize = 20;

/// Runs the chains; gives their sum, so that nothing is optimised away, and the operations (two for a multiply-add).
///
/// # Safety
/// The caller runs in a function that enables the target features of `V`, on a processor that has them.
#[inline(always)]
pub(super) unsafe fn chains<V: Vector>() -> (f32, u64) {
    // SAFETY: the caller's contract is the vector's; the store is to an array of as many floats.
    unsafe {
        let factor = V::splat(black_box(0.999));
        let mut sums = [V::splat(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = sum.mul_add(factor, factor);
            }
        }
        let mut lanes = [0.0f32; 16];
        let mut total = 0.0;
        for sum in sums {
            sum.store(lanes.as_mut_ptr());
            total += lanes[0];
        }
        (total, 2 * (CHAINS * STEPS * V::LANES) as u64)
    }
}

/// Billions of floating-point operations a second that all threads of `pool` together do in multiply-adds that wait for nothing. Takes
/// some tens of milliseconds.
#[must_use]
pub fn measure_peak_gflops(isa: Isa, pool: &ThreadPool) -> f64 {
    let chains = isa.kernels().chains;
    let mut best = 0.0f64;
    for _ in 0..TIMINGS {
        let operations = AtomicU64::new(0);
        let start = Instant::now();
        pool.for_each(pool.threads(), |_| {
            // SAFETY: an `Isa` exists only where the processor has its features.
            let (sum, done) = unsafe { chains() };
            black_box(sum);
            operations.fetch_add(done, Ordering::Relaxed);
        });
        let seconds = start.elapsed().as_secs_f64();
        best = best.max(operations.into_inner() as f64 / seconds / 1e9);
    }
    best
}
