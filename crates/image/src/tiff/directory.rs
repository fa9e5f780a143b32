//! Reads the first directory of a TIFF or BigTIFF.

use crate::error::Refusal;

/// The tags that are read.
pub(super) mod tag {
    pub(in super::super) const WIDTH: u16 = 256;
    pub(in super::super) const HEIGHT: u16 = 257;
    pub(in super::super) const BITS: u16 = 258;
    pub(in super::super) const COMPRESSION: u16 = 259;
    pub(in super::super) const PHOTOMETRIC: u16 = 262;
    pub(in super::super) const FILL_ORDER: u16 = 266;
    pub(in super::super) const STRIP_OFFSETS: u16 = 273;
    pub(in super::super) const ORIENTATION: u16 = 274;
    pub(in super::super) const CHANNELS: u16 = 277;
    pub(in super::super) const ROWS_PER_STRIP: u16 = 278;
    pub(in super::super) const STRIP_BYTES: u16 = 279;
    pub(in super::super) const PLANAR: u16 = 284;
    pub(in super::super) const T4_OPTIONS: u16 = 292;
    pub(in super::super) const PREDICTOR: u16 = 317;
    pub(in super::super) const COLOUR_MAP: u16 = 320;
    pub(in super::super) const TILE_WIDTH: u16 = 322;
    pub(in super::super) const TILE_HEIGHT: u16 = 323;
    pub(in super::super) const TILE_OFFSETS: u16 = 324;
    pub(in super::super) const TILE_BYTES: u16 = 325;
    pub(in super::super) const EXTRA_CHANNELS: u16 = 338;
    pub(in super::super) const SAMPLE_FORMAT: u16 = 339;
    pub(in super::super) const JPEG_TABLES: u16 = 347;
    pub(in super::super) const XMP: u16 = 700;
}

/// A directory in the bytes of its file. It holds where things are, not what they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directory {
    pub(super) is_little: bool,
    is_big: bool,
    entries_at: usize,
    count: usize,
}

/// The values of a tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    /// The bytes of each value.
    size: usize,
    is_little: bool,
}

impl Directory {
    /// Finds the first directory.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let is_little = bytes.starts_with(b"II");
        let is_big = bytes.get(if is_little { 2 } else { 3 }) == Some(&43);
        let mut directory = Self {
            is_little,
            is_big,
            entries_at: 0,
            count: 0,
        };
        let number = |at: usize, size: usize| directory.number(bytes, at, size);
        let (at, count_size) = if is_big {
            (number(8, 8)?, 8)
        } else {
            (number(4, 4)?, 2)
        };
        let at = usize::try_from(at).map_err(|_| Refusal::cut_off())?;
        let count = number(at, count_size)?.min(u64::from(u16::MAX)) as usize;
        directory.count = count;
        directory.entries_at = at + count_size;
        let end = directory.entries_at + count * directory.entry_size();
        if end > bytes.len() {
            return Err(Refusal::cut_off());
        }
        Ok(directory)
    }

    fn entry_size(&self) -> usize {
        if self.is_big { 20 } else { 12 }
    }

    fn number(&self, bytes: &[u8], at: usize, size: usize) -> Result<u64, Refusal> {
        let end = at.checked_add(size).ok_or_else(Refusal::cut_off)?;
        let bytes = bytes.get(at..end).ok_or_else(Refusal::cut_off)?;
        Ok(joined(bytes, self.is_little))
    }

    /// Returns the values of a tag, `None` if there are none, or if the file does not hold them
    /// whole.
    pub(super) fn values<'a>(&self, bytes: &'a [u8], tag: u16) -> Option<Values<'a>> {
        let entry_size = self.entry_size();
        let (count_size, inline) = if self.is_big { (8, 8) } else { (4, 4) };
        for index in 0..self.count {
            let entry = self.entries_at + index * entry_size;
            let number = |at: usize, size: usize| self.number(bytes, entry + at, size).ok();
            if number(0, 2)? != u64::from(tag) {
                continue;
            }
            let size = match number(2, 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16 | 17 | 18 => 8,
                _ => return None,
            };
            let count = usize::try_from(number(4, count_size)?).ok()?;
            let length = count.checked_mul(size).filter(|&length| length > 0)?;
            let at = if length <= inline {
                entry + 4 + count_size
            } else {
                usize::try_from(number(4 + count_size, inline)?).ok()?
            };
            return Some(Values {
                bytes: bytes.get(at..at.checked_add(length)?)?,
                size,
                is_little: self.is_little,
            });
        }
        None
    }

    /// Returns the first value of a tag.
    pub(super) fn first(&self, bytes: &[u8], tag: u16) -> Option<u64> {
        self.values(bytes, tag)?.get(0)
    }
}

impl<'a> Values<'a> {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Returns the value at `index`.
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        let at = index.checked_mul(self.size)?;
        let value = self.bytes.get(at..at.checked_add(self.size)?)?;
        Some(joined(value, self.is_little))
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }

    /// Returns the bytes of the values.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

fn joined(bytes: &[u8], is_little: bool) -> u64 {
    let join = |number, &byte: &u8| number << 8 | u64::from(byte);
    if is_little {
        bytes.iter().rev().fold(0, join)
    } else {
        bytes.iter().fold(0, join)
    }
}
