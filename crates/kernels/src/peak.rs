//! Measures the most floating-point work that this machine does in a second. The speed of kernels
//! is compared with it.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::isa::Isa;
use super::pool::ThreadPool;
use super::simd::Vector;

/// How many chains of multiply-adds run side by side. They are more than the latency of one (4 or 5
/// cycles) times those that start in a cycle: 2 on x86-64, where AVX2 has sixteen registers, and up
/// to 4 on 64-bit Arm, which has thirty-two.
const CHAINS: usize = if cfg!(target_arch = "aarch64") {
    24
} else {
    12
};

/// The multiply-adds of each chain in one timing. They take about a millisecond, in which the clock
/// does not change.
const STEPS: usize = 100_000;

/// How often the time is taken. The best time counts, because whatever else runs can only slow it
/// down.
const TIMINGS: usize = 20;

/// Runs the chains. Returns their sum, so that nothing is optimised away, and the number of
/// operations, of which a multiply-add counts as two.
///
/// # Safety
/// - The caller runs in a function that enables the target features of `V`, on a processor that has
///   them.
#[inline(always)]
pub(super) unsafe fn chains<V: Vector>() -> (f32, u64) {
    // SAFETY: the caller vouches for the target features. The store is to an array of 16 floats,
    // and no vector has more lanes.
    unsafe {
        let factor = V::splat(black_box(0.999));
        let mut sums = [V::splat(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = factor.mul_add(factor, *sum);
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

/// Billions of floating-point operations a second that all threads of `pool` together do in
/// multiply-adds that wait for nothing. Takes some tens of milliseconds.
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
