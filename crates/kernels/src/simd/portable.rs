//! Vectors as plain Rust arrays, which the compiler turns into whatever the target's baseline
//! offers. There are no intrinsics here, so Miri can run it.

use super::Vector;

/// Four single-precision numbers: one register of SSE2 or NEON.
#[derive(Clone, Copy)]
pub(crate) struct F32x4(pub(crate) [f32; 4]);

impl F32x4 {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Vector for F32x4 {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn splat_at(p: *const f32) -> Self {
        // SAFETY: the caller vouches for one float at `p`.
        Self([unsafe { *p }; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for four floats from `p` on. An array of them is aligned as
        // one of them.
        Self(unsafe { *p.cast() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for four floats to write at `p`. An array of them is aligned
        // as one of them.
        unsafe { *p.cast() = self.0 }
    }

    // `f32::mul_add` would call a library function where the baseline has no fused instruction.
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| c.0[i] - self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |x, y| x + y)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |x, y| x - y)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |x, y| x * y)
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.zip(b, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() << 16)))
    }

    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for four 16-bit numbers from `p` on. An array of them is
        // aligned as one of them.
        let numbers: [u16; 4] = unsafe { *p.cast() };
        Self(numbers.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller vouches for four 16-bit numbers to write at `p`. An array of them is
        // aligned as one of them.
        unsafe { *p.cast() = self.0.map(round_to_bf16) }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller vouches for four bytes from `p` on.
        let bytes: [u8; 4] = unsafe { *p.cast() };
        Self(bytes.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller vouches for four bytes to write at `p`.
        unsafe { *p.cast() = self.0.map(round_to_u8) }
    }
}

/// Returns the bits of `x` as bfloat16, rounded to nearest and ties to even. A denormal number
/// becomes zero, and a NaN stays one.
pub(crate) fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = if x.is_nan() {
        bits | 0x0040_0000
    } else if bits & 0x7f80_0000 == 0 {
        bits & 0x8000_0000
    } else {
        bits + 0x7fff + (bits >> 16 & 1)
    };
    (rounded >> 16) as u16
}

/// Returns the integer next to `x`, the even one of two, limited to 0 to 255. A NaN becomes 255.
fn round_to_u8(x: f32) -> u8 {
    let limited = if x < 255.0 { x } else { 255.0 };
    let limited = if limited > 0.0 { limited } else { 0.0 };
    // Adding 2^23 leaves no bits for a fraction, so the sum is rounded to an integer. The processor
    // rounds to nearest and ties to even.
    (limited + 8_388_608.0).to_bits() as u8
}
