//! 8-bit integers on AVX2, and on AVX2 with AVX-VNNI.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16,
};

use super::Operands;
use crate::pack::WeightNumbers;
use crate::simd::avx2::F32x8;

/// 8-bit integers by `vpmaddwd`, widened to 16 bits.
///
/// `vpmaddubsw` multiplies bytes, but limits the sum of two products to 16 bits, which 255 times
/// 127 twice exceeds. So the even bytes of a word and the odd ones are widened and multiplied apart.
pub(crate) struct Int8;

/// The even bytes of each word and the odd ones, as 16-bit numbers.
#[derive(Clone, Copy)]
pub(crate) struct Widened {
    even: __m256i,
    odd: __m256i,
}

impl Operands for Int8 {
    type Floats = F32x8;
    type Pixel = Widened;
    type Weights = Widened;
    type Sums = __m256i;
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> Widened {
        // SAFETY: the caller vouches for AVX2, and for a word at `p`.
        unsafe {
            let words = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            Widened {
                even: _mm256_and_si256(words, _mm256_set1_epi32(0x00ff_00ff)),
                odd: _mm256_srli_epi16::<8>(words),
            }
        }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> Widened {
        // SAFETY: the caller vouches for AVX2, and for eight words from `p` on, unaligned.
        unsafe {
            let words = _mm256_loadu_si256(p.cast());
            Widened {
                even: _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(words)),
                odd: _mm256_srai_epi16::<8>(words),
            }
        }
    }

    #[inline(always)]
    unsafe fn start(_: F32x8, _: *const f32) -> __m256i {
        // SAFETY: the caller vouches for AVX2, which is all that the instruction needs.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: Widened, weights: Widened, sums: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2, which is all that the instructions need.
        unsafe {
            let even = _mm256_madd_epi16(pixel.even, weights.even);
            let odd = _mm256_madd_epi16(pixel.odd, weights.odd);
            _mm256_add_epi32(_mm256_add_epi32(sums, even), odd)
        }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: __m256i) -> F32x8 {
        // SAFETY: the caller vouches for AVX2, which is all that the instruction needs.
        F32x8(unsafe { _mm256_cvtepi32_ps(sums) })
    }
}

/// 8-bit integers by AVX-VNNI's `vpdpbusd`.
pub(crate) struct VnniInt8;

impl Operands for VnniInt8 {
    type Floats = F32x8;
    type Pixel = __m256i;
    type Weights = __m256i;
    type Sums = __m256i;
    const WEIGHTS: WeightNumbers = WeightNumbers::I8;

    #[inline(always)]
    unsafe fn pixel(p: *const f32) -> __m256i {
        // SAFETY: the caller vouches for AVX2, and for a word at `p`.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(p: *const f32) -> __m256i {
        // SAFETY: the caller vouches for AVX2, and for eight words from `p` on, unaligned.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn start(bias: F32x8, integers: *const f32) -> __m256i {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Int8::start(bias, integers) }
    }

    #[inline(always)]
    unsafe fn multiply_add(pixel: __m256i, weights: __m256i, sums: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX-VNNI, which is all that the instruction needs.
        unsafe { _mm256_dpbusd_avx_epi32(sums, pixel, weights) }
    }

    #[inline(always)]
    unsafe fn to_floats(sums: __m256i) -> F32x8 {
        // SAFETY: this method's contract is that of the one that is called.
        unsafe { Int8::to_floats(sums) }
    }
}
