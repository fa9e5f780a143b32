//! The vector operations that the kernels are written over, with one file for each instruction set.
//! Which of them runs is decided in [`super::isa`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

/// A register of `LANES` single-precision numbers.
///
/// # Safety
/// Every method of this trait has the same first condition: the caller runs in a function that
/// enables the target features of the instruction set, on a processor that has them. Those with a
/// pointer have a second one, which they state. No pointer needs more alignment than an `f32`.
pub(crate) trait Vector: Copy {
    /// How many numbers a register holds. It divides the channel block of 16.
    const LANES: usize;

    /// Returns zero in all lanes.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn zero() -> Self;

    /// Returns `x` in all lanes.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn splat(x: f32) -> Self;

    /// Returns the number at `p` in all lanes.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans one initialised float.
    unsafe fn splat_at(p: *const f32) -> Self;

    /// Returns `p[0..LANES]`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` initialised floats.
    unsafe fn load(p: *const f32) -> Self;

    /// Writes the lanes to `p[0..LANES]`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` floats that nobody else has access to.
    unsafe fn store(self, p: *mut f32);

    /// Returns `self * b + c`, with one rounding if the instruction set has a fused operation.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;

    /// Returns `c - self * b`, rounded as in `mul_add`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self;

    /// Returns `self + b`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn add(self, b: Self) -> Self;

    /// Returns `self - b`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn sub(self, b: Self) -> Self;

    /// Returns `self * b`.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn mul(self, b: Self) -> Self;

    /// Returns the greater of each pair of lanes, and `b` where either is NaN. So `zero().max(x)`
    /// keeps a NaN visible.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn max(self, b: Self) -> Self;

    /// Returns the bfloat16 in the lower half of each lane's 32 bits.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn lower_bf16(self) -> Self;

    /// Returns the bfloat16 in the upper half of each lane's 32 bits.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    unsafe fn upper_bf16(self) -> Self;

    /// Returns `LANES` bfloat16 numbers.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` initialised 16-bit numbers.
    unsafe fn load_bf16(p: *const u16) -> Self;

    /// Rounds the lanes to bfloat16, to nearest and ties to even, and writes them to
    /// `p[0..LANES]`. Denormal numbers become zero and a NaN stays one, as `vcvtneps2bf16` has it.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` 16-bit numbers that nobody else has access to.
    unsafe fn store_bf16(self, p: *mut u16);

    /// Returns `LANES` bytes, each as a number from 0 to 255.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` initialised bytes.
    unsafe fn load_u8(p: *const u8) -> Self;

    /// Rounds the lanes to integers, to nearest and ties to even, limits them to 0 to 255, and
    /// writes them to `p[0..LANES]`. A NaN becomes 255.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `LANES` bytes that nobody else has access to.
    unsafe fn store_u8(self, p: *mut u8);

    /// Does what [`Self::store_u8`] does with four registers, one after the other. If `bounded`,
    /// the lanes are no NaN and between -2^31 and 2^31.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `p` spans `4 * LANES` bytes that nobody else has access to.
    #[inline(always)]
    unsafe fn store_u8_quad(quad: [Self; 4], p: *mut u8, bounded: bool) {
        let _ = bounded;
        for (index, register) in quad.into_iter().enumerate() {
            // SAFETY: `index` is below 4, so the register's bytes are among those at `p`.
            unsafe { register.store_u8(p.add(index * Self::LANES)) };
        }
    }
}

/// A register of which instructions take a single lane as an operand, at no cost.
pub(crate) trait ByLane: Vector {
    /// Returns lane `J` in all lanes.
    ///
    /// # Safety
    /// - The target features are enabled and present.
    /// - `J` is below `LANES`.
    unsafe fn lane<const J: i32>(self) -> Self;
}

/// Defines a prefetch with the hint that `$hint` names on x86-64, and `$operation` on 64-bit Arm.
macro_rules! prefetches {
    ($($(#[$doc:meta])* $name:ident($pointer:ty) = $hint:ident, $operation:literal;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(p: $pointer) {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            {
                use std::arch::x86_64::{$hint, _mm_prefetch};
                // SAFETY: a prefetch changes nothing visible and never faults; SSE is part of
                // x86-64.
                unsafe { _mm_prefetch::<$hint>(p.cast()) };
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            // SAFETY: a prefetch changes nothing visible and never faults.
            unsafe {
                std::arch::asm!(
                    concat!("prfm ", $operation, ", [{0}]"),
                    in(reg) p,
                    options(readonly, nostack, preserves_flags)
                );
            }
            #[cfg(any(not(any(target_arch = "x86_64", target_arch = "aarch64")), miri))]
            let _ = p;
        }
    )+};
}

prefetches! {
    /// Asks for the cache line at `p` in the second-level cache; any address is allowed.
    prefetch(*const f32) = _MM_HINT_T1, "pldl2keep";
    /// Asks for the cache line at `p` in the first-level cache; any address is allowed.
    prefetch_read(*const f32) = _MM_HINT_T0, "pldl1keep";
    /// Asks for the cache line at `p` in the first-level cache, to be written; any address is
    /// allowed.
    prefetch_write(*mut f32) = _MM_HINT_ET0, "pstl1keep";
}
