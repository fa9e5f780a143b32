//! Decodes the scans of Huffman-coded JPEGs to coefficients: sequential ones (ITU-T T.81, annex F)
//! and progressive ones (annex G), with libjpeg's way of dealing with damage.

use super::bits::Bits;
use super::huffman::Table;
use super::idct::Block;
use super::markers::ZIGZAG;
use crate::error::Refusal;

/// Reads one whole block. Returns whether all its coefficients but the first are zero.
///
/// # Errors
/// [`Refusal::Malformed`] if the sum of the DC differences overflows.
#[inline]
pub(super) fn read_block(
    bits: &mut Bits<'_>,
    (dc, ac): (&Table, &Table),
    prediction: &mut i32,
    block: &mut Block,
) -> Result<bool, Refusal> {
    block[0] = read_dc(bits, dc, prediction)? as i16;
    let mut index = 1;
    while index < 64 {
        bits.fill();
        if let Some((run, value)) = ac.small_coefficient(bits) {
            index += run;
            block[usize::from(ZIGZAG[index])] = value;
        } else {
            let symbol = ac.symbol(bits);
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size != 0 {
                index += run;
                block[usize::from(ZIGZAG[index])] = bits.signed(size) as i16;
            } else if run == 15 {
                index += 15;
            } else {
                break;
            }
        }
        index += 1;
    }
    Ok(index == 1)
}

/// Reads a DC difference and returns the sum of all up to it.
#[inline(always)]
fn read_dc(bits: &mut Bits<'_>, table: &Table, prediction: &mut i32) -> Result<i32, Refusal> {
    bits.fill();
    let size = table.symbol(bits);
    let difference = bits.signed(size.into());
    *prediction = prediction
        .checked_add(difference)
        .ok_or_else(|| Refusal::malformed("a coefficient is out of range"))?;
    Ok(*prediction)
}

/// The first scan of DC coefficients of a progressive JPEG.
pub(super) fn first_dc(
    bits: &mut Bits<'_>,
    table: &Table,
    prediction: &mut i32,
    low: u8,
    block: &mut Block,
) -> Result<(), Refusal> {
    block[0] = (read_dc(bits, table, prediction)? << low) as i16;
    Ok(())
}

/// A later scan of DC coefficients: one more bit.
pub(super) fn refine_dc(bits: &mut Bits<'_>, low: u8, block: &mut Block) {
    if bits.bit() {
        block[0] |= 1 << low;
    }
}

/// The AC coefficients that a scan of a progressive JPEG holds.
pub(super) struct Band<'a> {
    pub(super) table: &'a Table,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) low: u8,
}

impl Band<'_> {
    /// Reads this band of a block for the first time. `skipped` counts the blocks from here on that
    /// have nothing in this band.
    pub(super) fn first(&self, bits: &mut Bits<'_>, skipped: &mut u32, block: &mut Block) {
        if *skipped > 0 {
            *skipped -= 1;
            return;
        }
        let mut index = self.first;
        while index <= self.last {
            bits.fill();
            if let Some((run, value)) = self.table.small_coefficient(bits) {
                index += run;
                block[usize::from(ZIGZAG[index])] = value << self.low;
            } else {
                let symbol = self.table.symbol(bits);
                let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
                if size != 0 {
                    index += run;
                    block[usize::from(ZIGZAG[index])] = (bits.signed(size) << self.low) as i16;
                } else if run == 15 {
                    index += 15;
                } else {
                    *skipped = end_of_band(bits, run) - 1;
                    return;
                }
            }
            index += 1;
        }
    }

    /// Reads one more bit of this band's coefficients.
    pub(super) fn refine(&self, bits: &mut Bits<'_>, skipped: &mut u32, block: &mut Block) {
        let (plus, minus) = (1_i16 << self.low, -1_i16 << self.low);
        let mut index = self.first;
        if *skipped == 0 {
            while index <= self.last {
                bits.fill();
                let symbol = self.table.symbol(bits);
                let (mut zeros, size) = (usize::from(symbol >> 4), symbol & 15);
                let mut value = 0;
                if size != 0 {
                    value = if bits.take(1) != 0 { plus } else { minus };
                } else if zeros != 15 {
                    *skipped = end_of_band(bits, zeros);
                    break;
                }
                // Pass over `zeros` zeros, and over all that is not zero.
                while index <= self.last {
                    let coefficient = &mut block[usize::from(ZIGZAG[index])];
                    if *coefficient != 0 {
                        correct(bits, plus, minus, coefficient);
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    index += 1;
                }
                if value != 0 {
                    block[usize::from(ZIGZAG[index])] = value;
                }
                index += 1;
            }
        }
        if *skipped > 0 {
            while index <= self.last {
                let coefficient = &mut block[usize::from(ZIGZAG[index])];
                if *coefficient != 0 {
                    correct(bits, plus, minus, coefficient);
                }
                index += 1;
            }
            *skipped -= 1;
        }
    }
}

/// Returns how many blocks, from this one on, have nothing more in the band.
#[inline(always)]
fn end_of_band(bits: &mut Bits<'_>, size: usize) -> u32 {
    let extra = if size == 0 { 0 } else { bits.take(size as u32) };
    (1 << size) + extra as u32
}

/// Reads the next bit of a coefficient that is not zero.
#[inline(always)]
fn correct(bits: &mut Bits<'_>, plus: i16, minus: i16, coefficient: &mut i16) {
    if bits.bit() && *coefficient & plus == 0 {
        let step = if *coefficient >= 0 { plus } else { minus };
        *coefficient = coefficient.wrapping_add(step);
    }
}
