//! 8-bit integers without any intrinsics.

use super::Operands;
use crate::pack::WeightNumbers;
use crate::simd::portable::F32x4;

/// 8-bit integers as plain Rust arithmetic.
pub(crate) struct Int8;

impl Operands for Int8 {
    type Floats = F32x4;
    type Pixel = [i32; 4];
    type Weights = [[i8; 4]; 4];
    type Sums = [i32; 4];
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> [i32; 4] {
        // SAFETY: the caller vouches for a word at `p`, which is four bytes.
        let bytes: [u8; 4] = unsafe { *p.cast() };
        bytes.map(i32::from)
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> [[i8; 4]; 4] {
        // SAFETY: the caller vouches for four words from `p` on, each of which is four bytes.
        unsafe { *p.cast() }
    }

    #[inline(always)]
    unsafe fn start(_: F32x4, _: *const f32) -> [i32; 4] {
        [0; 4]
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: [i32; 4], weights: [[i8; 4]; 4], sums: [i32; 4]) -> [i32; 4] {
        std::array::from_fn(|lane| {
            let products = pixel.iter().zip(weights[lane]);
            products.fold(sums[lane], |sum, (x, w)| sum + x * i32::from(w))
        })
    }

    #[inline(always)]
    unsafe fn to_floats(sums: [i32; 4]) -> F32x4 {
        F32x4(sums.map(|sum| sum as f32))
    }
}
