//! AVX-512's instructions for 8-bit integers (AVX512_VNNI) and for bfloat16 (AVX512_BF16).

use std::arch::x86_64::{
    __m512, __m512i, _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_dpbf16_ps,
    _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
};

use super::Operands;
use crate::pack::WeightNumbers;
use crate::simd::Vector;
use crate::simd::avx512::{F32x16Bf16, Registers};

/// 8-bit integers by `vpdpbusd`. `BF16` is that of the registers.
pub(crate) struct Int8<const BF16: bool>;

impl<const BF16: bool> Operands for Int8<BF16> {
    type Floats = Registers<BF16>;
    type Pixel = __m512i;
    type Weights = __m512i;
    type Sums = __m512i;
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> __m512i {
        // SAFETY: the caller vouches for AVX-512F, and for a word at `p`.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> __m512i {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen words from `p` on, unaligned.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn start(_: Registers<BF16>, _: *const f32) -> __m512i {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: __m512i, weights: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: the caller vouches for AVX512_VNNI, which is all that the instruction needs.
        unsafe { _mm512_dpbusd_epi32(sums, pixel, weights) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: __m512i) -> Registers<BF16> {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Registers(unsafe { _mm512_cvtepi32_ps(sums) })
    }
}

/// Bfloat16 by `vdpbf16ps`.
pub(crate) struct Bf16;

impl Operands for Bf16 {
    type Floats = F32x16Bf16;
    type Pixel = F32x16Bf16;
    type Weights = F32x16Bf16;
    type Sums = F32x16Bf16;
    const WEIGHTS: WeightNumbers = WeightNumbers::Bf16;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> F32x16Bf16 {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { F32x16Bf16::splat_at(p) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> F32x16Bf16 {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { F32x16Bf16::load(p) }
    }

    #[inline(always)]
    unsafe fn start(bias: F32x16Bf16, _: *const f32) -> F32x16Bf16 {
        bias
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: F32x16Bf16, weights: F32x16Bf16, sums: F32x16Bf16) -> F32x16Bf16 {
        // SAFETY: the caller vouches for AVX512_BF16, which is all that the instruction needs. A
        // register of floats and one of pairs of bfloat16 numbers are the same 512 bits.
        unsafe {
            let pairs = |words: __m512| std::mem::transmute(_mm512_castps_si512(words));
            Registers(_mm512_dpbf16_ps(sums.0, pairs(pixel.0), pairs(weights.0)))
        }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: F32x16Bf16) -> F32x16Bf16 {
        sums
    }
}
