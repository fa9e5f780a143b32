//! The inverse discrete cosine transform, whole and at reduced size.
//!
//! All sizes give the samples of libjpeg-turbo. The whole transform is a kernel
//! ([`inverse_dct`]); the reduced ones are those of `jidctred.c`.

use imgclass_kernels::inverse_dct;

use super::markers::Quantisation;

/// Fraction bits of the constants.
const CONST_BITS: i32 = 13;
/// Fraction bits that the first pass keeps for the second.
const PASS1_BITS: i32 = 2;

/// A block of coefficients by rows.
pub(super) type Block = [i16; 64];

/// Writes the samples of one block to `out`, of which each row has `stride` samples: `size` rows of
/// `size` samples, where `size` is 8, 4, 2 or 1. `is_flat` tells that all coefficients but the first
/// are zero.
pub(super) fn inverse(
    block: &Block,
    quantisation: &Quantisation,
    is_flat: bool,
    size: usize,
    out: &mut [u8],
    stride: usize,
) {
    if is_flat {
        let sample = flat(block[0], quantisation[0], size);
        for row in out.chunks_mut(stride).take(size) {
            row[..size].fill(sample);
        }
        return;
    }
    match size {
        8 => {
            let samples = inverse_dct(block, quantisation);
            for (row, samples) in out.chunks_mut(stride).zip(&samples) {
                row[..8].copy_from_slice(samples);
            }
        }
        4 => quarter(block, quantisation, out, stride),
        2 => sixteenth(block, quantisation, out, stride),
        _ => out[0] = flat(block[0], quantisation[0], size),
    }
}

/// Returns the one sample of a block whose other coefficients are zero.
fn flat(coefficient: i16, quantisation: u16, size: usize) -> u8 {
    let value = coefficient.wrapping_mul(quantisation as i16);
    match size {
        // As the vector code wraps, see above.
        8 => sample(descale(i32::from(value << PASS1_BITS), PASS1_BITS + 3)),
        _ => sample(descale(i32::from(value), 3)),
    }
}

/// Returns `value / 2^bits`, rounded.
#[inline(always)]
fn descale(value: i32, bits: i32) -> i32 {
    value.wrapping_add(1 << (bits - 1)) >> bits
}

/// Moves a sample around zero to 0 to 255.
#[inline(always)]
fn sample(value: i32) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

#[inline(always)]
fn dequantised(block: &Block, quantisation: &Quantisation, at: usize) -> i32 {
    i32::from(block[at].wrapping_mul(quantisation[at] as i16))
}

/// Half the size in each direction.
fn quarter(block: &Block, quantisation: &Quantisation, out: &mut [u8], stride: usize) {
    // The sum of the even coefficients and that of the odd ones, for output 0 and 1. Output 3 and 2
    // are their differences. Coefficient 4 does not count at this size.
    let pass = |c: [i32; 8], bits: i32| -> [i32; 4] {
        let even = c[0].wrapping_shl(CONST_BITS as u32 + 1);
        let turned = mul(c[2], 15_137).wrapping_add(mul(c[6], -6_270));
        let outer = sum([
            mul(c[7], -4_176),
            mul(c[5], -4_926),
            mul(c[3], 7_373),
            mul(c[1], 20_995),
        ]);
        let inner = sum([
            mul(c[7], -1_730),
            mul(c[5], 11_893),
            mul(c[3], -17_799),
            mul(c[1], 8_697),
        ]);
        let (high, low) = (even.wrapping_add(turned), even.wrapping_sub(turned));
        [
            descale(high.wrapping_add(outer), bits),
            descale(low.wrapping_add(inner), bits),
            descale(low.wrapping_sub(inner), bits),
            descale(high.wrapping_sub(outer), bits),
        ]
    };
    let mut columns = [[0; 4]; 8];
    for (x, column) in columns.iter_mut().enumerate() {
        let coefficients = std::array::from_fn(|y| dequantised(block, quantisation, y * 8 + x));
        *column = pass(coefficients, CONST_BITS - PASS1_BITS + 1);
    }
    for (y, row) in out.chunks_mut(stride).take(4).enumerate() {
        let samples = pass(
            columns.map(|column| column[y]),
            CONST_BITS + PASS1_BITS + 3 + 1,
        );
        row[..4].copy_from_slice(&samples.map(sample));
    }
}

/// A quarter of the size in each direction.
fn sixteenth(block: &Block, quantisation: &Quantisation, out: &mut [u8], stride: usize) {
    let pass = |c: [i32; 8], bits: i32| -> [i32; 2] {
        let even = c[0].wrapping_shl(CONST_BITS as u32 + 2);
        let odd = sum([
            mul(c[7], -5_906),
            mul(c[5], 6_967),
            mul(c[3], -10_426),
            mul(c[1], 29_692),
        ]);
        [
            descale(even.wrapping_add(odd), bits),
            descale(even.wrapping_sub(odd), bits),
        ]
    };
    let mut columns = [[0; 2]; 8];
    for (x, column) in columns.iter_mut().enumerate() {
        let coefficients = std::array::from_fn(|y| dequantised(block, quantisation, y * 8 + x));
        *column = pass(coefficients, CONST_BITS - PASS1_BITS + 2);
    }
    for (y, row) in out.chunks_mut(stride).take(2).enumerate() {
        let samples = pass(
            columns.map(|column| column[y]),
            CONST_BITS + PASS1_BITS + 3 + 2,
        );
        row[..2].copy_from_slice(&samples.map(sample));
    }
}

#[inline(always)]
fn mul(value: i32, constant: i32) -> i32 {
    value.wrapping_mul(constant)
}

#[inline(always)]
fn sum(terms: [i32; 4]) -> i32 {
    terms.into_iter().fold(0, i32::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_one_coefficient_is_flat_at_every_size() {
        for size in [8, 4, 2, 1] {
            for coefficient in [-1_024, -77, 0, 3, 500, 1_023] {
                let (mut block, quantisation) = ([0; 64], [3; 64]);
                block[0] = coefficient;
                let (mut flat, mut full) = ([1; 64], [1; 64]);
                inverse(&block, &quantisation, true, size, &mut flat, 8);
                inverse(&block, &quantisation, false, size, &mut full, 8);
                assert_eq!(flat, full, "{size} {coefficient}");
            }
        }
    }
}
