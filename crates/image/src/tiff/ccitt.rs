//! Decodes the fax compressions of TIFF (ITU-T T.4 and T.6): modified Huffman, Group 3 in one and
//! two dimensions, and Group 4. The tables of codes are those of the crate `fax`.

use fax::maps::{Mode, black, mode, white};
use fax::{BitReader, Color};

use crate::error::Refusal;

/// Which of the compressions it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows of run lengths, each of which begins at a byte.
    Huffman,
    /// Rows that end-of-line codes divide. If `has_two_dimensions`, a bit behind each of those
    /// codes tells whether the row refers to the one above.
    Group3 { has_two_dimensions: bool },
    /// Rows that all refer to the one above.
    Group4,
}

/// Decodes rows of `width` bits to `out`, of which each row has `row_bytes`. Black is 1.
pub(super) fn decode(
    kind: Kind,
    data: &[u8],
    width: usize,
    row_bytes: usize,
    out: &mut [u8],
) -> Result<(), Refusal> {
    let mut bits = Bits { data, at: 0 };
    let (mut above, mut row) = (Vec::new(), Vec::new());
    for out in out.chunks_exact_mut(row_bytes) {
        row.clear();
        let has_reference = match kind {
            Kind::Huffman => {
                bits.at = bits.at.next_multiple_of(8);
                false
            }
            Kind::Group3 { has_two_dimensions } => {
                bits.skip_end_of_line();
                has_two_dimensions && bits.take_bit() == Some(false)
            }
            Kind::Group4 => true,
        };
        let is_whole = if has_reference {
            read_row_by_reference(&mut bits, &above, width, &mut row)
        } else {
            read_row(&mut bits, width, &mut row)
        };
        if is_whole.is_none() {
            return Err(if bits.at + 16 > data.len() * 8 {
                Refusal::cut_off()
            } else {
                Refusal::malformed("its fax codes are damaged")
            });
        }
        draw(&row, width, out);
        std::mem::swap(&mut above, &mut row);
    }
    Ok(())
}

/// Reads run lengths. `row` gets the places where the colour changes, beginning with white.
fn read_row(bits: &mut Bits<'_>, width: usize, row: &mut Vec<usize>) -> Option<()> {
    let (mut at, mut colour) = (0, Color::White);
    while at < width {
        at += run(bits, colour)?;
        row.push(at.min(width));
        colour = !colour;
    }
    Some(())
}

/// Reads a row that is given by its differences from the row `above`.
fn read_row_by_reference(
    bits: &mut Bits<'_>,
    above: &[usize],
    width: usize,
    row: &mut Vec<usize>,
) -> Option<()> {
    let (mut at, mut colour) = (0, Color::White);
    // The next change above may lie at the very beginning only before the first pixel.
    let mut is_before_first = true;
    while at < width {
        let wanted = usize::from(colour == Color::Black);
        let first = (wanted..above.len())
            .step_by(2)
            .find(|&index| above[index] > at || is_before_first && above[index] == at);
        let change = |index: Option<usize>| {
            index
                .and_then(|index| above.get(index))
                .copied()
                .unwrap_or(width)
        };
        match mode::decode(bits)? {
            Mode::Pass => at = change(first.map(|index| index + 1)),
            Mode::Vertical(by) => {
                at = change(first).checked_add_signed(isize::from(by))?;
                if at > width || row.last().is_some_and(|&last| last > at) {
                    return None;
                }
                row.push(at);
                colour = !colour;
            }
            Mode::Horizontal => {
                for _ in 0..2 {
                    at += run(bits, colour)?;
                    row.push(at.min(width));
                    colour = !colour;
                }
            }
            Mode::Extension | Mode::EOF => return None,
        }
        is_before_first = false;
    }
    Some(())
}

/// Reads the length of a run: codes of multiples of 64, and one of less.
fn run(bits: &mut Bits<'_>, colour: Color) -> Option<usize> {
    let mut length = 0;
    loop {
        let part = match colour {
            Color::White => white::decode(bits)?,
            Color::Black => black::decode(bits)?,
        };
        length += usize::from(part);
        if part < 64 {
            return Some(length);
        }
    }
}

/// Sets the bits of black runs.
fn draw(changes: &[usize], width: usize, out: &mut [u8]) {
    out.fill(0);
    for black in changes.chunks(2) {
        let end = black.get(1).copied().unwrap_or(width);
        for at in black[0]..end {
            out[at / 8] |= 0x80 >> (at % 8);
        }
    }
}

/// The bits of the data, the highest first.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take_bit(&mut self) -> Option<bool> {
        let bit = self.peek(1)? == 1;
        self.at += 1;
        Some(bit)
    }

    /// Passes over an end-of-line code, if one is next: at least eleven zeros and a one.
    fn skip_end_of_line(&mut self) {
        let zeros = (self.at..self.data.len() * 8)
            .take_while(|&at| self.data[at / 8] & (0x80 >> (at % 8)) == 0)
            .count();
        if zeros >= 11 {
            self.at += zeros + 1;
        }
    }
}

impl BitReader for Bits<'_> {
    type Error = std::convert::Infallible;

    /// Behind the end of the data there are zeros, but not more than a code has.
    fn peek(&self, bits: u8) -> Option<u16> {
        if self.at > self.data.len() * 8 {
            return None;
        }
        let byte = |index: usize| {
            let byte = self.data.get(self.at / 8 + index).copied().unwrap_or(0);
            u32::from(byte)
        };
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        let word = word << (8 + self.at % 8);
        Some((word >> (32 - u32::from(bits))) as u16)
    }

    fn consume(&mut self, bits: u8) -> Result<(), Self::Error> {
        self.at += usize::from(bits);
        Ok(())
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        (self.at.next_multiple_of(8) - self.at) as u8
    }
}
