//! Number types on NEON, and on NEON with the instructions for dot products of 8-bit integers.
//!
//! All of them multiply by one word of a register of four, so that a pixel's words are loaded four
//! at a time.
//!
//! `bfdot` and `bfmmla` are not used: what they round between the two products of a word differs
//! from `vdpbf16ps` and from two multiply-adds.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vcvtq_f32_s32, vdupq_laneq_s32, vdupq_n_s32,
    vdupq_n_u8, vdupq_n_u32, veorq_u8, vfmaq_laneq_f32, vget_low_s8, vld1q_dup_f32, vld1q_f32,
    vld1q_s8, vld1q_s32, vld1q_u8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s32,
    vreinterpretq_s8_s32, vreinterpretq_s8_u8, vreinterpretq_s32_s8, vreinterpretq_u8_u32,
    vzip1q_s32, vzip2q_s32,
};
use std::arch::asm;

use super::Operands;
use crate::pack::WeightNumbers;
use crate::simd::Vector;
use crate::simd::neon::F32x4;

/// Float32.
pub(crate) struct Float32;

impl Operands for Float32 {
    type Floats = F32x4;
    type Pixel = float32x4_t;
    type Weights = float32x4_t;
    type Sums = float32x4_t;
    const WEIGHTS: WeightNumbers = WeightNumbers::F32;
    const BY_LANE: bool = true;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for NEON, and for a word at `p`.
        unsafe { vld1q_dup_f32(p) }
    }

    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, unaligned.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, unaligned.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn start(bias: F32x4, _: *const f32) -> float32x4_t {
        bias.0
    }

    // A pixel's word is in all lanes, so that this one serves.
    #[inline(always)]
    unsafe fn multiply_add(
        pixel: float32x4_t,
        weights: float32x4_t,
        sums: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add_lane::<0>(pixel, weights, sums) }
    }

    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: float32x4_t,
        weights: float32x4_t,
        sums: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        unsafe { vfmaq_laneq_f32::<J>(sums, weights, pixel) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: float32x4_t) -> F32x4 {
        F32x4(sums)
    }
}

/// Bfloat16, widened: the bits of [`super::WidenedBf16`].
pub(crate) struct Bf16;

impl Operands for Bf16 {
    type Floats = F32x4;
    type Pixel = [F32x4; 2];
    type Weights = [F32x4; 2];
    type Sums = float32x4_t;
    const WEIGHTS: WeightNumbers = WeightNumbers::Bf16;
    const BY_LANE: bool = true;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> [F32x4; 2] {
        // SAFETY: the caller vouches for NEON, and for a word at `p`.
        unsafe {
            let words = F32x4::splat_at(p);
            [words.lower_bf16(), words.upper_bf16()]
        }
    }

    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> [F32x4; 2] {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::weights(p) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> [F32x4; 2] {
        // SAFETY: this method's contract is that of those that are called.
        unsafe {
            let words = F32x4::load(p);
            [words.lower_bf16(), words.upper_bf16()]
        }
    }

    #[inline(always)]
    unsafe fn start(bias: F32x4, _: *const f32) -> float32x4_t {
        bias.0
    }

    // A pixel's word is in all lanes, so that this one serves.
    #[inline(always)]
    unsafe fn multiply_add(
        pixel: [F32x4; 2],
        weights: [F32x4; 2],
        sums: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add_lane::<0>(pixel, weights, sums) }
    }

    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: [F32x4; 2],
        weights: [F32x4; 2],
        sums: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        unsafe {
            let sums = vfmaq_laneq_f32::<J>(sums, weights[1].0, pixel[1].0);
            vfmaq_laneq_f32::<J>(sums, weights[0].0, pixel[0].0)
        }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: float32x4_t) -> F32x4 {
        F32x4(sums)
    }
}

/// Returns the word at `p`, which needs no alignment, in all lanes.
///
/// # Safety
/// - The processor has NEON.
/// - `p` spans one initialised word.
#[inline(always)]
unsafe fn words(p: *const f32) -> uint8x16_t {
    // SAFETY: the caller vouches for NEON, and for four bytes at `p`.
    unsafe { vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())) }
}

/// Returns the numbers less 128, which fit signed bytes.
///
/// # Safety
/// - The processor has NEON.
#[inline(always)]
unsafe fn signed(numbers: uint8x16_t) -> int8x16_t {
    // SAFETY: the caller vouches for NEON, which is all that the instructions need.
    unsafe { vreinterpretq_s8_u8(veorq_u8(numbers, vdupq_n_u8(128))) }
}

/// 8-bit integers without instructions for dot products. Products of signed bytes fit 16 bits
/// (`smull`), and pairs of them are added to sums of 32 bits (`sadalp`). A vector's sums take two
/// registers: for each output channel those of a word's even pair of numbers and of its odd pair.
pub(crate) struct WidenedInt8;

impl Operands for WidenedInt8 {
    type Floats = F32x4;
    type Pixel = int8x16_t;
    type Weights = int8x16_t;
    type Sums = [int32x4_t; 2];
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;
    const BY_LANE: bool = true;
    const PIXEL_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for a word at `p`.
        unsafe { signed(words(p)) }
    }

    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, which are sixteen bytes.
        unsafe { signed(vld1q_u8(p.cast())) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, which are sixteen bytes.
        unsafe { vld1q_s8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn start(_: F32x4, integers: *const f32) -> [int32x4_t; 2] {
        // SAFETY: the caller vouches for NEON, and for four words at `integers`.
        unsafe {
            let (integers, zero) = (vld1q_s32(integers.cast()), vdupq_n_s32(0));
            [vzip1q_s32(integers, zero), vzip2q_s32(integers, zero)]
        }
    }

    // A pixel's word is in all lanes, so that this one serves.
    #[inline(always)]
    unsafe fn multiply_add(
        pixel: int8x16_t,
        weights: int8x16_t,
        sums: [int32x4_t; 2],
    ) -> [int32x4_t; 2] {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add_lane::<0>(pixel, weights, sums) }
    }

    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: int8x16_t,
        weights: int8x16_t,
        sums: [int32x4_t; 2],
    ) -> [int32x4_t; 2] {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        unsafe {
            let word = vreinterpretq_s8_s32(vdupq_laneq_s32::<J>(vreinterpretq_s32_s8(pixel)));
            let first = vmull_s8(vget_low_s8(weights), vget_low_s8(word));
            let second = vmull_high_s8(weights, word);
            [vpadalq_s16(sums[0], first), vpadalq_s16(sums[1], second)]
        }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: [int32x4_t; 2]) -> F32x4 {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        F32x4(unsafe { vcvtq_f32_s32(vpaddq_s32(sums[0], sums[1])) })
    }
}

/// Returns `sums` plus the dot products of each four of `weights` with four of `pixel`, word `J`.
///
/// # Safety
/// - The processor has the target feature, and `J` is below 4.
#[target_feature(enable = "dotprod")]
#[inline]
unsafe fn sdot<const J: i32>(sums: int32x4_t, weights: int8x16_t, pixel: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the instruction reads and writes nothing but its registers, and the processor has it.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {pixel:v}.4b[{word}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            pixel = in(vreg) pixel,
            word = const J,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Returns what [`sdot`] does, where the numbers of `pixel` have no sign.
///
/// # Safety
/// - The processor has the target feature, and `J` is below 4.
#[target_feature(enable = "i8mm")]
#[inline]
unsafe fn sudot<const J: i32>(sums: int32x4_t, weights: int8x16_t, pixel: uint8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the instruction reads and writes nothing but its registers, and the processor has it.
    unsafe {
        asm!(
            "sudot {sums:v}.4s, {weights:v}.16b, {pixel:v}.4b[{word}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            pixel = in(vreg) pixel,
            word = const J,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// 8-bit integers by `sdot`, which multiplies signed bytes.
pub(crate) struct SignedInt8;

impl Operands for SignedInt8 {
    type Floats = F32x4;
    type Pixel = int8x16_t;
    type Weights = int8x16_t;
    type Sums = int32x4_t;
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;
    const BY_LANE: bool = true;
    const PIXEL_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for a word at `p`.
        unsafe { signed(words(p)) }
    }

    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, which are sixteen bytes.
        unsafe { signed(vld1q_u8(p.cast())) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> int8x16_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, which are sixteen bytes.
        unsafe { vld1q_s8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn start(_: F32x4, integers: *const f32) -> int32x4_t {
        // SAFETY: the caller vouches for NEON, and for four words at `integers`.
        unsafe { vld1q_s32(integers.cast()) }
    }

    // A pixel's word is in all lanes, so that this one serves.
    #[inline(always)]
    unsafe fn multiply_add(pixel: int8x16_t, weights: int8x16_t, sums: int32x4_t) -> int32x4_t {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add_lane::<0>(pixel, weights, sums) }
    }

    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: int8x16_t,
        weights: int8x16_t,
        sums: int32x4_t,
    ) -> int32x4_t {
        // SAFETY: the caller vouches for dot products, and for `J`.
        unsafe { sdot::<J>(sums, weights, pixel) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: int32x4_t) -> F32x4 {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        F32x4(unsafe { vcvtq_f32_s32(sums) })
    }
}

/// 8-bit integers by `sudot`, which multiplies bytes with and without a sign.
pub(crate) struct MixedInt8;

impl Operands for MixedInt8 {
    type Floats = F32x4;
    type Pixel = uint8x16_t;
    type Weights = int8x16_t;
    type Sums = int32x4_t;
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;
    const BY_LANE: bool = true;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> uint8x16_t {
        // SAFETY: the caller vouches for NEON, and for a word at `p`.
        unsafe { words(p) }
    }

    #[inline(always)]
    unsafe fn pixel_lane<const J: i32>(p: *const f32) -> uint8x16_t {
        // SAFETY: the caller vouches for NEON, and for four words at `p`, which are sixteen bytes.
        unsafe { vld1q_u8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> int8x16_t {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { SignedInt8::weights(p) }
    }

    #[inline(always)]
    unsafe fn start(_: F32x4, _: *const f32) -> int32x4_t {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        unsafe { vdupq_n_s32(0) }
    }

    // A pixel's word is in all lanes, so that this one serves.
    #[inline(always)]
    unsafe fn multiply_add(pixel: uint8x16_t, weights: int8x16_t, sums: int32x4_t) -> int32x4_t {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Self::multiply_add_lane::<0>(pixel, weights, sums) }
    }

    #[inline(always)]
    unsafe fn multiply_add_lane<const J: i32>(
        pixel: uint8x16_t,
        weights: int8x16_t,
        sums: int32x4_t,
    ) -> int32x4_t {
        // SAFETY: the caller vouches for i8mm, and for `J`.
        unsafe { sudot::<J>(sums, weights, pixel) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: int32x4_t) -> F32x4 {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { SignedInt8::to_floats(sums) }
    }
}
