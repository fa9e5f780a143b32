//! The inverse discrete cosine transform of JPEG.
//!
//! It is the "accurate integer" transform of libjpeg-turbo (`islow`) as its vector code computes
//! it, bit for bit: sums wrap and results saturate at 16 bits where damaged files overflow.

/// Fraction bits of the constants.
const CONST_BITS: i32 = 13;
/// Fraction bits that the first pass keeps for the second.
const PASS1_BITS: i32 = 2;

/// The coefficients of a block, by rows.
type Block = [i16; 64];
/// The factors of the coefficients, by rows.
type Quantisation = [u16; 64];

/// Returns the samples of a block, by rows: its coefficients times their factors, transformed, plus
/// 128.
#[must_use]
pub fn inverse_dct(block: &Block, quantisation: &Quantisation) -> [[u8; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE2, which is all that this function asks for.
    return unsafe { sse2::transform(block, quantisation) };
    #[cfg(not(target_arch = "x86_64"))]
    portable::transform(block, quantisation)
}

/// The whole transform, one column or row at a time.
#[cfg(any(not(target_arch = "x86_64"), test))]
mod portable {
    use super::{Block, CONST_BITS, PASS1_BITS, Quantisation};

    pub(super) fn transform(block: &Block, quantisation: &Quantisation) -> [[u8; 8]; 8] {
        let mut columns = [[0; 8]; 8];
        let is_one_row = block[8..].iter().all(|&coefficient| coefficient == 0);
        for (x, column) in columns.iter_mut().enumerate() {
            let coefficients = std::array::from_fn(|y| dequantised(block, quantisation, y * 8 + x));
            *column = if is_one_row {
                [(coefficients[0] as i16) << PASS1_BITS; 8]
            } else {
                pass(coefficients, CONST_BITS - PASS1_BITS)
            };
        }
        std::array::from_fn(|y| {
            let row = columns.map(|column| i32::from(column[y]));
            pass(row, CONST_BITS + PASS1_BITS + 3).map(sample)
        })
    }

    fn dequantised(block: &Block, quantisation: &Quantisation, at: usize) -> i32 {
        i32::from(block[at].wrapping_mul(quantisation[at] as i16))
    }

    /// Returns `value / 2^bits`, rounded.
    fn descale(value: i32, bits: i32) -> i32 {
        value.wrapping_add(1 << (bits - 1)) >> bits
    }

    fn mul(value: i32, constant: i32) -> i32 {
        value.wrapping_mul(constant)
    }

    /// Moves a sample around zero to 0 to 255.
    fn sample(value: i16) -> u8 {
        (value.clamp(-128, 127) + 128) as u8
    }

    /// One pass. Sums that the vector code keeps in 16 bits wrap, and its results saturate.
    fn pass(c: [i32; 8], bits: i32) -> [i16; 8] {
        let short = |value: i32| i32::from(value as i16);
        let even = short(c[0] + c[4]).wrapping_shl(CONST_BITS as u32);
        let odd = short(c[0] - c[4]).wrapping_shl(CONST_BITS as u32);
        let turned = mul(c[2], 4_433 + 6_270).wrapping_add(mul(c[6], 4_433));
        let other = mul(c[2], 4_433).wrapping_add(mul(c[6], 4_433 - 15_137));
        let t = [
            even.wrapping_add(turned),
            odd.wrapping_add(other),
            odd.wrapping_sub(other),
            even.wrapping_sub(turned),
        ];
        let (z3, z4) = (short(c[7] + c[3]), short(c[5] + c[1]));
        let y3 = mul(z3, 9_633 - 16_069).wrapping_add(mul(z4, 9_633));
        let y4 = mul(z3, 9_633).wrapping_add(mul(z4, 9_633 - 3_196));
        let add = |a: i32, b: i32, c: i32| a.wrapping_add(b).wrapping_add(c);
        let u = [
            add(mul(c[7], -7_373), mul(c[1], 12_299 - 7_373), y4),
            add(mul(c[5], -20_995), mul(c[3], 25_172 - 20_995), y3),
            add(mul(c[5], 16_819 - 20_995), mul(c[3], -20_995), y4),
            add(mul(c[7], 2_446 - 7_373), mul(c[1], -7_373), y3),
        ];
        std::array::from_fn(|index| {
            let value = if index < 4 {
                t[index].wrapping_add(u[index])
            } else {
                t[7 - index].wrapping_sub(u[7 - index])
            };
            descale(value, bits).clamp(i16::MIN.into(), i16::MAX.into()) as i16
        })
    }
}

/// The whole transform in vectors of eight 16-bit numbers, which every x86-64 processor has.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use super::{Block, CONST_BITS, PASS1_BITS, Quantisation};
    use std::arch::x86_64::{
        __m128i, _mm_add_epi8, _mm_add_epi16, _mm_add_epi32, _mm_cvtsi128_si64, _mm_madd_epi16,
        _mm_mullo_epi16, _mm_or_si128, _mm_packs_epi16, _mm_packs_epi32, _mm_set_epi16,
        _mm_set1_epi8, _mm_set1_epi32, _mm_setzero_si128, _mm_slli_epi16, _mm_srai_epi32,
        _mm_sub_epi16, _mm_sub_epi32, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
        _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };

    /// Computes [`super::inverse_dct`].
    ///
    /// # Safety
    /// The processor must have SSE2, as every x86-64 processor has.
    #[target_feature(enable = "sse2")]
    pub(super) fn transform(block: &Block, quantisation: &Quantisation) -> [[u8; 8]; 8] {
        let rows: [__m128i; 8] = std::array::from_fn(|y| {
            let row = |at: usize| block[y * 8 + at];
            let factor = |at: usize| quantisation[y * 8 + at] as i16;
            _mm_mullo_epi16(load(row), load(factor))
        });
        let below = rows[1..]
            .iter()
            .fold(_mm_setzero_si128(), |all, &row| _mm_or_si128(all, row));
        let is_one_row =
            _mm_cvtsi128_si64(_mm_or_si128(below, _mm_unpackhi_epi64(below, below))) == 0;
        let columns = if is_one_row {
            [_mm_slli_epi16::<PASS1_BITS>(rows[0]); 8]
        } else {
            pass::<{ CONST_BITS - PASS1_BITS }>(rows)
        };
        let rows = transposed(pass::<{ CONST_BITS + PASS1_BITS + 3 }>(transposed(columns)));
        let mut samples = [[0; 8]; 8];
        for (pair, rows) in samples
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(rows.as_chunks::<2>().0)
        {
            let bytes = _mm_add_epi8(_mm_packs_epi16(rows[0], rows[1]), _mm_set1_epi8(-128));
            pair[0] = _mm_cvtsi128_si64(bytes).to_le_bytes();
            pair[1] = _mm_cvtsi128_si64(_mm_unpackhi_epi64(bytes, bytes)).to_le_bytes();
        }
        samples
    }

    /// Gathers eight neighbours.
    ///
    /// # Safety
    /// The processor must have SSE2, as every x86-64 processor has.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(at: impl Fn(usize) -> i16) -> __m128i {
        _mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0))
    }

    /// Two constants, alternating.
    ///
    /// # Safety
    /// The processor must have SSE2, as every x86-64 processor has.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn pair(even: i32, odd: i32) -> __m128i {
        _mm_set1_epi32(even & 0xFFFF | odd << 16)
    }

    /// One pass over eight columns at once.
    ///
    /// # Safety
    /// The processor must have SSE2, as every x86-64 processor has.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn pass<const BITS: i32>(c: [__m128i; 8]) -> [__m128i; 8] {
        let low = |a, b| _mm_unpacklo_epi16(a, b);
        let high = |a, b| _mm_unpackhi_epi16(a, b);
        let zero = _mm_setzero_si128();
        // A 16-bit number in the upper half, shifted down, is that number times 2^CONST_BITS.
        const DOWN: i32 = 16 - CONST_BITS;
        let even = _mm_add_epi16(c[0], c[4]);
        let odd = _mm_sub_epi16(c[0], c[4]);
        let z3 = _mm_add_epi16(c[7], c[3]);
        let z4 = _mm_add_epi16(c[5], c[1]);
        let half = |even: __m128i, odd: __m128i, c26: __m128i, z34, c71, c53| -> [__m128i; 8] {
            let even = _mm_srai_epi32::<DOWN>(even);
            let odd = _mm_srai_epi32::<DOWN>(odd);
            let turned = _mm_madd_epi16(c26, pair(4_433 + 6_270, 4_433));
            let other = _mm_madd_epi16(c26, pair(4_433, 4_433 - 15_137));
            let t = [
                _mm_add_epi32(even, turned),
                _mm_add_epi32(odd, other),
                _mm_sub_epi32(odd, other),
                _mm_sub_epi32(even, turned),
            ];
            let y3 = _mm_madd_epi16(z34, pair(9_633 - 16_069, 9_633));
            let y4 = _mm_madd_epi16(z34, pair(9_633, 9_633 - 3_196));
            let u = [
                _mm_add_epi32(_mm_madd_epi16(c71, pair(-7_373, 12_299 - 7_373)), y4),
                _mm_add_epi32(_mm_madd_epi16(c53, pair(-20_995, 25_172 - 20_995)), y3),
                _mm_add_epi32(_mm_madd_epi16(c53, pair(16_819 - 20_995, -20_995)), y4),
                _mm_add_epi32(_mm_madd_epi16(c71, pair(2_446 - 7_373, -7_373)), y3),
            ];
            let rounding = _mm_set1_epi32(1 << (BITS - 1));
            std::array::from_fn(|index| {
                let value = if index < 4 {
                    _mm_add_epi32(t[index], u[index])
                } else {
                    _mm_sub_epi32(t[7 - index], u[7 - index])
                };
                _mm_srai_epi32::<BITS>(_mm_add_epi32(value, rounding))
            })
        };
        let left = half(
            low(zero, even),
            low(zero, odd),
            low(c[2], c[6]),
            low(z3, z4),
            low(c[7], c[1]),
            low(c[5], c[3]),
        );
        let right = half(
            high(zero, even),
            high(zero, odd),
            high(c[2], c[6]),
            high(z3, z4),
            high(c[7], c[1]),
            high(c[5], c[3]),
        );
        std::array::from_fn(|index| _mm_packs_epi32(left[index], right[index]))
    }

    /// Makes rows of columns.
    ///
    /// # Safety
    /// The processor must have SSE2, as every x86-64 processor has.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn transposed(r: [__m128i; 8]) -> [__m128i; 8] {
        let a: [__m128i; 8] = [
            _mm_unpacklo_epi16(r[0], r[1]),
            _mm_unpackhi_epi16(r[0], r[1]),
            _mm_unpacklo_epi16(r[2], r[3]),
            _mm_unpackhi_epi16(r[2], r[3]),
            _mm_unpacklo_epi16(r[4], r[5]),
            _mm_unpackhi_epi16(r[4], r[5]),
            _mm_unpacklo_epi16(r[6], r[7]),
            _mm_unpackhi_epi16(r[6], r[7]),
        ];
        let b: [__m128i; 8] = [
            _mm_unpacklo_epi32(a[0], a[2]),
            _mm_unpackhi_epi32(a[0], a[2]),
            _mm_unpacklo_epi32(a[1], a[3]),
            _mm_unpackhi_epi32(a[1], a[3]),
            _mm_unpacklo_epi32(a[4], a[6]),
            _mm_unpackhi_epi32(a[4], a[6]),
            _mm_unpacklo_epi32(a[5], a[7]),
            _mm_unpackhi_epi32(a[5], a[7]),
        ];
        std::array::from_fn(|index| {
            let (upper, lower) = (b[index / 2], b[index / 2 + 4]);
            if index % 2 == 0 {
                _mm_unpacklo_epi64(upper, lower)
            } else {
                _mm_unpackhi_epi64(upper, lower)
            }
        })
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_vector_code_gives_what_the_portable_code_gives() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as i16
        };
        for round in 0..if cfg!(miri) { 16 } else { 4_000 } {
            // From small coefficients to such as only damage makes, in few places or in all.
            let (bits, count) = (round % 16, [1, 4, 9, 64][round / 16 % 4]);
            let mut block = [0; 64];
            for _ in 0..count {
                block[random() as usize % 64] = random() >> bits;
            }
            let mut quantisation = [0; 64];
            quantisation.fill_with(|| random() as u16 >> (round % 11));
            assert_eq!(
                inverse_dct(&block, &quantisation),
                portable::transform(&block, &quantisation),
                "{block:?} {quantisation:?}"
            );
        }
    }
}
