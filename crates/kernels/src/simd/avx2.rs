//! AVX2 and FMA: eight lanes, sixteen registers. Whether the processor has
//! them is found out in `isa`.

use super::Vector;
use std::arch::x86_64::{
    __m256, _CMP_UNORD_Q, _mm_loadl_epi64, _mm_loadu_si128, _mm_packus_epi16, _mm_packus_epi32,
    _mm_storel_epi64, _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_andnot_si256, _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cmpeq_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32, _mm256_extracti128_si256,
    _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

/// Eight single-precision numbers in a ymm register.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(pub(crate) __m256);

impl Vector for F32x8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn splat_at(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, and for one float at `p`.
        Self(unsafe { _mm256_set1_ps(*p) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight floats from `p` on, unaligned.
        Self(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight floats to write at `p`,
        // unaligned.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_fnmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_add_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_max_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instruction needs.
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0))) })
    }

    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, which is all that the instructions need.
        Self(unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(self.0), upper))
        })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight 16-bit numbers at `p`.
        Self(unsafe {
            let numbers = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(numbers))
        })
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight 16-bit numbers to write at
        // `p`.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
            let denormal = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, half);
            let magnitude = _mm256_and_si256(denormal, _mm256_set1_epi32(i32::MAX));
            let rounded = _mm256_blendv_epi8(rounded, bits, denormal);
            let rounded = _mm256_andnot_si256(magnitude, rounded);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let rounded = _mm256_blendv_epi8(rounded, quiet, nan);
            let upper = _mm256_srli_epi32::<16>(rounded);
            let low = _mm256_castsi256_si128(upper);
            let high = _mm256_extracti128_si256::<1>(upper);
            _mm_storeu_si128(p.cast(), _mm_packus_epi32(low, high));
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight bytes at `p`.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) })
    }

    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller vouches for AVX2 and FMA, and for eight bytes to write at `p`.
        unsafe {
            let limited = _mm256_min_ps(self.0, _mm256_set1_ps(255.0));
            let limited = _mm256_max_ps(limited, _mm256_setzero_ps());
            let integers = _mm256_cvtps_epi32(limited);
            let low = _mm256_castsi256_si128(integers);
            let high = _mm256_extracti128_si256::<1>(integers);
            let halves = _mm_packus_epi32(low, high);
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(halves, halves));
        }
    }
}
