//! AVX-512: sixteen lanes, thirty-two registers. Which of its parts the processor has is found out in
//! `isa`.

use super::Vector;
use std::arch::x86_64::{
    __m256bh, __m256i, __m512, _CMP_UNORD_Q, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256,
    _mm256_storeu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_and_epi32, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_cvtps_epi32,
    _mm512_cvtusepi32_epi8, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_mask_and_epi32, _mm512_mask_or_epi32, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_packs_epi32, _mm512_packus_epi16, _mm512_permutexvar_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srli_epi32,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps, _mm512_testn_epi32_mask,
};

/// Sixteen single-precision numbers in a zmm register, on a processor with AVX-512F and AVX512BW.
/// If `BF16`, it has AVX512_BF16 too, whose instruction then rounds to bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Registers<const BF16: bool>(pub(crate) __m512);

/// Sixteen numbers, without AVX512_BF16.
pub(crate) type F32x16 = Registers<false>;

/// Sixteen numbers, with AVX512_BF16.
pub(crate) type F32x16Bf16 = Registers<true>;

impl<const BF16: bool> Vector for Registers<BF16> {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn splat_at(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512F, and for one float at `p`.
        Self(unsafe { _mm512_set1_ps(*p) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen floats from `p` on, unaligned.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen floats to write at `p`,
        // unaligned.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_fnmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_add_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_max_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instruction needs.
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0))) })
    }

    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        // SAFETY: the caller vouches for AVX-512F, which is all that the instructions need.
        Self(unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_epi32(_mm512_castps_si512(self.0), upper))
        })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen 16-bit numbers at `p`.
        Self(unsafe {
            let numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(numbers))
        })
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller vouches for AVX-512F, if `BF16` for AVX512_BF16, and for sixteen 16-bit
        // numbers to write at `p`. A register of bfloat16 numbers is the same 256 bits as one of
        // integers.
        unsafe {
            if BF16 {
                let rounded = _mm512_cvtneps_pbh(self.0);
                let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
                _mm256_storeu_si256(p.cast(), rounded);
                return;
            }
            let bits = _mm512_castps_si512(self.0);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let denormal = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
            let odd = _mm512_and_epi32(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, half);
            let sign = _mm512_set1_epi32(i32::MIN);
            let rounded = _mm512_mask_and_epi32(rounded, denormal, bits, sign);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, quiet);
            let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(p.cast(), upper);
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen bytes at `p`.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) })
    }

    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller vouches for AVX-512F, and for sixteen bytes to write at `p`.
        unsafe {
            // A NaN passes, and becomes the integer of the largest magnitude as all that has no
            // integer of its own. Read without a sign, that one is limited to 255.
            let positive = _mm512_max_ps(_mm512_setzero_ps(), self.0);
            let bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(positive));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn store_u8_quad(quad: [Self; 4], p: *mut u8, bounded: bool) {
        // SAFETY: the caller vouches for AVX-512F and AVX512BW, and for 64 bytes to write at `p`.
        unsafe {
            let mut quad = quad.map(|register| register.0);
            if !bounded {
                // What has no integer of its own would become the smallest one. The minimum with a
                // NaN is its second operand.
                let limit = _mm512_set1_ps(255.0);
                for register in &mut quad {
                    *register = _mm512_min_ps(*register, limit);
                }
            }
            // Packing limits the rest.
            let a = _mm512_cvtps_epi32(quad[0]);
            let b = _mm512_cvtps_epi32(quad[1]);
            let c = _mm512_cvtps_epi32(quad[2]);
            let d = _mm512_cvtps_epi32(quad[3]);
            let words = (_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            // Packing works within each 128 bits: these hold four bytes of each register.
            let bytes = _mm512_packus_epi16(words.0, words.1);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi32(order, bytes));
        }
    }
}
