//! NEON: four lanes, thirty-two registers. Every 64-bit Arm processor has it.

use std::arch::aarch64::{
    float32x4_t, uint32x4_t, vaddq_f32, vaddq_u32, vandq_u32, vbslq_f32, vbslq_u32, vceqq_f32,
    vceqzq_u32, vcgtq_f32, vcltq_f32, vcombine_u16, vcreate_u8, vcvtnq_u32_f32, vcvtq_f32_u32,
    vdupq_laneq_f32, vdupq_n_f32, vdupq_n_u32, vfmaq_f32, vfmsq_f32, vget_lane_u32, vget_low_u16,
    vld1_u16, vld1q_dup_f32, vld1q_f32, vmovl_u8, vmovl_u16, vmovn_u16, vmovn_u32, vmulq_f32,
    vorrq_u32, vreinterpret_u32_u8, vreinterpretq_f32_u32, vreinterpretq_u32_f32, vshlq_n_u32,
    vshrn_n_u32, vshrq_n_u32, vst1_u16, vst1q_f32, vsubq_f32,
};

use super::{ByLane, Vector};

/// Four single-precision numbers in a register.
#[derive(Clone, Copy)]
pub(crate) struct F32x4(pub(crate) float32x4_t);

impl F32x4 {
    /// Returns the lanes' bits.
    ///
    /// # Safety
    /// - The processor has NEON.
    #[inline(always)]
    unsafe fn bits(self) -> uint32x4_t {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        unsafe { vreinterpretq_u32_f32(self.0) }
    }

    /// Returns lanes of these bits.
    ///
    /// # Safety
    /// - The processor has NEON.
    #[inline(always)]
    unsafe fn from_bits(bits: uint32x4_t) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vreinterpretq_f32_u32(bits) })
    }
}

impl Vector for F32x4 {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vdupq_n_f32(0.0) })
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    unsafe fn splat_at(p: *const f32) -> Self {
        // SAFETY: the caller vouches for NEON, and for one float at `p`.
        Self(unsafe { vld1q_dup_f32(p) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for NEON, and for four floats from `p` on, unaligned.
        Self(unsafe { vld1q_f32(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for NEON, and for four floats to write at `p`, unaligned.
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vfmsq_f32(c.0, self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vaddq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vsubq_f32(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vmulq_f32(self.0, b.0) })
    }

    // `fmax` has an answer of its own to NaN and to zeros of two signs.
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        Self(unsafe { vbslq_f32(vcgtq_f32(self.0, b.0), self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        unsafe { Self::from_bits(vshlq_n_u32::<16>(self.bits())) }
    }

    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instructions need.
        unsafe { Self::from_bits(vandq_u32(self.bits(), vdupq_n_u32(0xffff_0000))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for NEON, and for four 16-bit numbers at `p`.
        unsafe { Self::from_bits(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p)))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: the caller vouches for NEON, and for four 16-bit numbers to write at `p`.
        unsafe {
            let bits = self.bits();
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let denormal = vceqzq_u32(vandq_u32(bits, vdupq_n_u32(0x7f80_0000)));
            let sign = vandq_u32(bits, vdupq_n_u32(0x8000_0000));
            let rounded = vbslq_u32(denormal, sign, rounded);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let rounded = vbslq_u32(vceqq_f32(self.0, self.0), rounded, quiet);
            vst1_u16(p, vshrn_n_u32::<16>(rounded));
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller vouches for NEON, and for four bytes at `p`.
        unsafe {
            let bytes = vcreate_u8(p.cast::<u32>().read_unaligned().into());
            Self(vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes)))))
        }
    }

    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller vouches for NEON, and for four bytes to write at `p`.
        unsafe {
            let most = vdupq_n_f32(255.0);
            let limited = vbslq_f32(vcltq_f32(self.0, most), self.0, most);
            // The conversion limits what is below zero to zero.
            let halves = vmovn_u32(vcvtnq_u32_f32(limited));
            let bytes = vmovn_u16(vcombine_u16(halves, halves));
            let word = vget_lane_u32::<0>(vreinterpret_u32_u8(bytes));
            p.cast::<u32>().write_unaligned(word);
        }
    }
}

impl ByLane for F32x4 {
    #[inline(always)]
    unsafe fn lane<const J: i32>(self) -> Self {
        // SAFETY: the caller vouches for NEON, which is all that the instruction needs.
        Self(unsafe { vdupq_laneq_f32::<J>(self.0) })
    }
}
