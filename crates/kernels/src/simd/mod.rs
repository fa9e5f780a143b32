//! The vector operations that the kernels are written over, and one file per instruction set. It never chooses one:
//! that is [`super::isa`]'s work.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// A register of `LANES` single-precision numbers.
///
/// Every method is `unsafe` with the same two duties.
///
/// # Safety
/// - The caller runs in a function that enables the target features of the instruction set, on a processor that has them.
/// - Pointers given to `load`, `store` and `splat_at` are valid for as many `f32` as the operation touches; no alignment is needed.
pub(crate) trait Vector: Copy {
    /// Numbers in one register; divides the channel block of 16.
    const LANES: usize;

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// All lanes the number at `p`.
    unsafe fn splat_at(p: *const f32) -> Self;
    /// Lanes from `p[0..LANES]`.
    unsafe fn load(p: *const f32) -> Self;
    /// Lanes to `p[0..LANES]`.
    unsafe fn store(self, p: *mut f32);
    /// `self * b + c`, with one rounding where the instruction set has a fused operation.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded as `mul_add`.
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// The greater of each pair of lanes; `b` where either is NaN, so `zero().max(x)` keeps a NaN visible.
    unsafe fn max(self, b: Self) -> Self;
}

/// Defines a prefetch with the hint that `$hint` names.
macro_rules! prefetches {
    ($($(#[$doc:meta])* $name:ident($pointer:ty) = $hint:ident;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(p: $pointer) {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            {
                use std::arch::x86_64::{$hint, _mm_prefetch};
                // SAFETY: a prefetch changes nothing visible and never faults; SSE is part of x86-64.
                unsafe { _mm_prefetch::<$hint>(p.cast()) };
            }
            #[cfg(any(not(target_arch = "x86_64"), miri))]
            let _ = p;
        }
    )+};
}

prefetches! {
    /// Asks for the cache line at `p` in the second-level cache; any address is allowed.
    prefetch(*const f32) = _MM_HINT_T1;
    /// Asks for the cache line at `p` in the first-level cache; any address is allowed.
    prefetch_read(*const f32) = _MM_HINT_T0;
    /// Asks for the cache line at `p` in the first-level cache, to be written; any address is allowed.
    prefetch_write(*mut f32) = _MM_HINT_ET0;
}
