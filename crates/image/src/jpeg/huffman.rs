//! Huffman tables (ITU-T T.81, annex C and F.2.2), with a table that decodes short codes at once.

use super::bits::Bits;
use crate::error::Refusal;

/// Codes of up to this many bits are decoded by one look into a table.
const LOOKUP_BITS: u32 = 10;

/// A Huffman table as the file gives it: how many codes there are of each length from 1 to 16, and
/// the symbols in the order of their codes.
#[derive(Clone)]
pub(super) struct Codes {
    pub(super) counts: [u8; 16],
    pub(super) symbols: [u8; 256],
}

/// What a table's symbols are: sizes of DC differences, or runs and sizes of AC coefficients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dc,
    Ac,
}

/// A Huffman table that is ready to decode.
pub(super) struct Table {
    /// By the next bits: the symbol, and the length of its code above it. 0 where the code is
    /// longer.
    lookup: Box<[u16; 1 << LOOKUP_BITS]>,
    /// By the next bits, if they hold a whole AC coefficient of few bits: its value above, then the
    /// run of zeros before it (four bits), then the bits of code and value together (four bits). 0
    /// otherwise.
    small: Box<[i16; 1 << LOOKUP_BITS]>,
    /// The largest code of each length from 0, as the top of 16 bits and with all bits below set;
    /// -1 if there is none.
    largest: [i32; 17],
    /// What to add to a code of each length to get the index of its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    /// Prepares a table.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if its codes do not fit their lengths, or a DC symbol is over 15.
    pub(super) fn new(codes: &Codes, kind: Kind) -> Result<Self, Refusal> {
        let mut table = Self {
            lookup: Box::new([0; 1 << LOOKUP_BITS]),
            small: Box::new([0; 1 << LOOKUP_BITS]),
            largest: [-1; 17],
            offset: [0; 17],
            symbols: codes.symbols,
        };
        let (mut code, mut index) = (0_i32, 0_usize);
        for (length, &count) in (1_u32..).zip(&codes.counts) {
            table.offset[length as usize] = index as i32 - code;
            for _ in 0..count {
                let Some(&symbol) = codes.symbols.get(index) else {
                    return Err(Refusal::malformed("a Huffman table has too many codes"));
                };
                if code >= 1 << length {
                    return Err(Refusal::malformed("a Huffman code does not fit its length"));
                }
                if kind == Kind::Dc && symbol > 15 {
                    return Err(Refusal::malformed("a Huffman table has a wrong symbol"));
                }
                if length <= LOOKUP_BITS {
                    let first = (code as usize) << (LOOKUP_BITS - length);
                    let entry = (length as u16) << 8 | u16::from(symbol);
                    table.lookup[first..first + (1 << (LOOKUP_BITS - length))].fill(entry);
                }
                code += 1;
                index += 1;
            }
            if count > 0 {
                table.largest[length as usize] = (code << (16 - length)) - 1;
            }
            code <<= 1;
        }
        if kind == Kind::Ac {
            table.fill_small();
        }
        Ok(table)
    }

    fn fill_small(&mut self) {
        for (bits, small) in self.small.iter_mut().enumerate() {
            let entry = self.lookup[bits];
            let (length, run, size) = (entry >> 8, entry >> 4 & 15, entry & 15);
            let used = length + size;
            if length == 0 || size == 0 || used > LOOKUP_BITS as u16 {
                continue;
            }
            let value = (bits >> (LOOKUP_BITS as u16 - used)) as i16 & ((1 << size) - 1);
            let value = if value < 1 << (size - 1) {
                value - (1 << size) + 1
            } else {
                value
            };
            if (-128..128).contains(&value) {
                *small = value << 8 | (run << 4 | used) as i16;
            }
        }
    }

    /// Takes one symbol. [`Bits::fill`] must have been called. A code that the table does not have
    /// counts as 0, as in libjpeg.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let entry = self.lookup[bits.peek(LOOKUP_BITS)];
        if entry == 0 {
            return self.long_symbol(bits);
        }
        bits.skip(u32::from(entry >> 8));
        entry as u8
    }

    #[cold]
    #[inline(never)]
    fn long_symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let next = bits.peek(16) as i32;
        for length in LOOKUP_BITS + 1..=16 {
            if next <= self.largest[length as usize] {
                bits.skip(length);
                let code = next >> (16 - length);
                let index = code + self.offset[length as usize];
                return self.symbols[(index & 0xFF) as usize];
            }
        }
        bits.skip(17);
        0
    }

    /// Takes an AC coefficient if the next bits hold it whole: its value and the run of zeros before
    /// it.
    #[inline(always)]
    pub(super) fn small_coefficient(&self, bits: &mut Bits<'_>) -> Option<(usize, i16)> {
        let entry = self.small[bits.peek(LOOKUP_BITS)];
        if entry == 0 {
            return None;
        }
        bits.skip((entry & 15) as u32);
        Some(((entry >> 4 & 15) as usize, entry >> 8))
    }
}

/// Returns the table that the standard gives as an example (annex K.3). Motion JPEG leaves it out of
/// its frames. `which` is 0 for luma and 1 for chroma; there are no others.
pub(super) fn standard(kind: Kind, which: usize) -> Option<Codes> {
    let (counts, symbols): ([u8; 16], &[u8]) = match (kind, which) {
        (Kind::Dc, 0) => (
            [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        (Kind::Dc, 1) => (
            [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        (Kind::Ac, 0) => (
            [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
            &[
                0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51,
                0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1,
                0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0A, 0x16, 0x17, 0x18,
                0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39,
                0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57,
                0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75,
                0x76, 0x77, 0x78, 0x79, 0x7A, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92,
                0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7,
                0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3,
                0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8,
                0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2,
                0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
            ],
        ),
        (Kind::Ac, 1) => (
            [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119],
            &[
                0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07,
                0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09,
                0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25,
                0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38,
                0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56,
                0x57, 0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74,
                0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
                0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5,
                0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA,
                0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6,
                0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2,
                0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
            ],
        ),
        _ => return None,
    };
    let mut padded = [0; 256];
    padded[..symbols.len()].copy_from_slice(symbols);
    Some(Codes {
        counts,
        symbols: padded,
    })
}
