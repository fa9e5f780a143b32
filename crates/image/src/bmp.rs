//! Decodes bitmaps of Windows and OS/2 as Pillow does: 1, 2, 4 and 8 bits with a palette, 16, 24 and
//! 32 bits, bit fields, and run lengths of 4 and 8 bits.

use crate::bytes::{array, u16_le, u32_le};
use crate::error::Refusal;

/// Returns the bytes of the file header, which the bitmap header follows. A device-independent
/// bitmap, as programs pass it in memory, has none.
fn file_header(bytes: &[u8]) -> usize {
    if bytes.starts_with(b"BM") { 14 } else { 0 }
}

/// How a bitmap's pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// Indices of a palette, of so many bits each.
    Palette(u32),
    /// Run lengths of indices of 4 or 8 bits.
    RunLengths(u32),
    /// Numbers of so many bits, of which these bits are red, green and blue.
    Fields(u32, [u32; 3]),
}

/// What the headers of a bitmap tell.
#[derive(Debug, Clone)]
pub(super) struct Header {
    width: u32,
    height: u32,
    is_top_down: bool,
    storage: Storage,
    /// The palette's place, its number of colours, and the bytes of each.
    palette: (usize, usize, usize),
    pixels_at: usize,
}

impl Header {
    /// Reads the headers. What follows them is judged when it is decoded.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let start = file_header(bytes);
        let size = u32_le(bytes, start)? as usize;
        let field = |at: usize| start + at;
        // The headers of OS/2 may be shorter than Windows' first one. What they lack is zero.
        let number = |at: usize| {
            if at + 4 <= size {
                u32_le(bytes, field(at))
            } else {
                Ok(0)
            }
        };
        let (width, height, bits) = if size == 12 {
            let [width, height] = [u16_le(bytes, field(4))?, u16_le(bytes, field(6))?];
            (width.into(), i64::from(height), u16_le(bytes, field(10))?)
        } else {
            let height = i32::from_le_bytes(array(bytes, field(8))?);
            let bits = u16_le(bytes, field(14))?;
            (u32_le(bytes, field(4))?, i64::from(height), bits)
        };
        if width == 0 || height == 0 || width > i32::MAX as u32 {
            return Err(Refusal::malformed("it has no pixels"));
        }
        let compression = number(16)?;
        let storage = storage(bytes, size, bits.into(), compression)?;
        let mut palette_at = start + size;
        if size == 40 && matches!(compression, BIT_FIELDS | ALPHA_BIT_FIELDS) {
            palette_at += if compression == BIT_FIELDS { 12 } else { 16 };
        }
        let colour_bytes = if size == 12 { 3 } else { 4 };
        let palette_bits = match storage {
            Storage::Palette(bits) | Storage::RunLengths(bits) => Some(bits),
            Storage::Fields(..) => None,
        };
        let colours = match (palette_bits, number(32)? as usize) {
            (None, _) => 0,
            (Some(bits), 0) => 1 << bits,
            (Some(_), colours @ 1..=65_536) => colours,
            (Some(_), colours) => {
                return Err(Refusal::Malformed(format!(
                    "its palette has {colours} colours"
                )));
            }
        };
        let behind_palette = palette_at + colours * colour_bytes;
        let stated = if start == 0 {
            0
        } else {
            u32_le(bytes, 10)? as usize
        };
        let pixels_at = if stated == 0 || palette_bits.is_some() && stated == start + size {
            behind_palette
        } else {
            stated
        };
        Ok(Self {
            width,
            height: height.unsigned_abs() as u32,
            is_top_down: height < 0,
            storage,
            palette: (palette_at, colours, colour_bytes),
            pixels_at,
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Returns the bytes that decoding holds beside the RGB picture.
    pub(super) fn working_bytes(&self) -> u64 {
        match self.storage {
            Storage::RunLengths(_) => u64::from(self.width) * u64::from(self.height),
            _ => 0,
        }
    }

    /// Decodes the picture to RGB.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let (width, height) = (self.width as usize, self.height as usize);
        let data = bytes.get(self.pixels_at..).unwrap_or_default();
        let palette = self.palette(bytes)?;
        let indices;
        let (data, bits) = match self.storage {
            Storage::RunLengths(bits) => {
                indices = run_lengths(data, bits, width, height)?;
                (indices.as_slice(), 8)
            }
            Storage::Palette(bits) | Storage::Fields(bits, _) => (data, bits),
        };
        let row_bytes = match self.storage {
            Storage::RunLengths(_) => width,
            _ => (width * bits as usize).div_ceil(32) * 4,
        };
        // The last row need not be padded.
        let needed = row_bytes * (height - 1) + (width * bits as usize).div_ceil(8);
        if data.len() < needed {
            return Err(Refusal::cut_off());
        }
        let mut rgb = vec![0; width * height * 3];
        let rows = rgb.chunks_exact_mut(width * 3);
        let read = |(row, data): (&mut [u8], &[u8])| {
            let pixels = row.as_chunks_mut::<3>().0;
            match self.storage {
                Storage::Fields(bits, masks) => fields(data, bits, masks, pixels),
                _ => indexed(data, bits, &palette, pixels),
            }
        };
        if self.is_top_down {
            rows.zip(data.chunks(row_bytes)).for_each(read);
        } else {
            rows.rev().zip(data.chunks(row_bytes)).for_each(read);
        }
        Ok(rgb)
    }

    /// Returns all 256 colours. Those that the file leaves out are black.
    fn palette(&self, bytes: &[u8]) -> Result<[[u8; 3]; 256], Refusal> {
        let (at, colours, colour_bytes) = self.palette;
        let stored = bytes
            .get(at..at + colours * colour_bytes)
            .ok_or_else(Refusal::cut_off)?;
        let mut palette = [[0; 3]; 256];
        for (colour, stored) in palette.iter_mut().zip(stored.chunks_exact(colour_bytes)) {
            *colour = [stored[2], stored[1], stored[0]];
        }
        Ok(palette)
    }
}

const RUNS_OF_8: u32 = 1;
const RUNS_OF_4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const JPEG: u32 = 4;
const PNG: u32 = 5;
const ALPHA_BIT_FIELDS: u32 = 6;

fn storage(bytes: &[u8], size: usize, bits: u32, compression: u32) -> Result<Storage, Refusal> {
    let masks = || -> Result<[u32; 3], Refusal> {
        // They are in the later headers, and behind the first one, which is the same place.
        let mask = |index: usize| u32_le(bytes, file_header(bytes) + 40 + index * 4);
        Ok([mask(0)?, mask(1)?, mask(2)?])
    };
    let unsupported = |what: String| Err(Refusal::Unsupported(format!("a BMP {what}")));
    match (compression, bits) {
        (0, 1 | 2 | 4 | 8) => Ok(Storage::Palette(bits)),
        (0, 16) => Ok(Storage::Fields(16, [0x7C00, 0x03E0, 0x001F])),
        (0, 24 | 32) => Ok(Storage::Fields(bits, [0xFF_0000, 0xFF00, 0xFF])),
        (RUNS_OF_8, 8) | (RUNS_OF_4, 4) => Ok(Storage::RunLengths(bits)),
        (BIT_FIELDS | ALPHA_BIT_FIELDS, 16 | 24 | 32) if size != 64 => match masks()? {
            [0, 0, 0] => Ok(Storage::Fields(bits, [0xFF_0000, 0xFF00, 0xFF])),
            masks if masks.iter().all(|&mask| is_one_run(mask)) => Ok(Storage::Fields(bits, masks)),
            _ => unsupported("whose bit fields have gaps".to_owned()),
        },
        (JPEG | PNG, 0) => unsupported("that holds a JPEG or PNG".to_owned()),
        (BIT_FIELDS | JPEG, _) if size == 64 => {
            unsupported("compressed as OS/2 does (Huffman or 24-bit run lengths)".to_owned())
        }
        _ => unsupported(format!("of {bits} bits with compression {compression}")),
    }
}

/// Returns whether the set bits of a mask follow each other.
fn is_one_run(mask: u32) -> bool {
    mask != 0
        && (mask >> mask.trailing_zeros())
            .checked_add(1)
            .is_none_or(u32::is_power_of_two)
}

/// Reads a row of palette indices of `bits` bits, the first pixel in the highest bits.
fn indexed(data: &[u8], bits: u32, palette: &[[u8; 3]; 256], pixels: &mut [[u8; 3]]) {
    let per_byte = (8 / bits) as usize;
    let mask = u8::MAX >> (8 - bits);
    for (pixels, byte) in pixels.chunks_mut(per_byte).zip(data) {
        for (index, pixel) in (1..).zip(pixels) {
            let index = byte >> (8 - bits * index) & mask;
            *pixel = palette[usize::from(index)];
        }
    }
}

/// Reads a row of pixels of 16, 24 or 32 bits.
fn fields(data: &[u8], bits: u32, masks: [u32; 3], pixels: &mut [[u8; 3]]) {
    let bytes = bits as usize / 8;
    for (pixel, stored) in pixels.iter_mut().zip(data.chunks_exact(bytes)) {
        let number = stored
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u32::from(byte));
        *pixel = masks.map(|mask| {
            let shift = mask.trailing_zeros();
            let largest = u64::from(mask >> shift);
            let value = u64::from((number & mask) >> shift);
            (value * 255 / largest) as u8
        });
    }
}

/// Unpacks run lengths to one index a byte, as Pillow does: what a jump leaves out has index 0, and
/// a run that reaches over the end of its row is cut.
fn run_lengths(data: &[u8], bits: u32, width: usize, height: usize) -> Result<Vec<u8>, Refusal> {
    let total = width * height;
    let mut indices = Vec::with_capacity(total);
    let mut rest = data;
    let mut x = 0;
    while indices.len() < total {
        let Some((&[count, value], behind)) = rest.split_first_chunk() else {
            break;
        };
        rest = behind;
        let count = usize::from(count);
        match (count, value) {
            // The end of the row.
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                x = 0;
            }
            // The end of the picture.
            (0, 1) => break,
            // A jump, to the right and up.
            (0, 2) => {
                let Some((&[right, up], behind)) = rest.split_first_chunk() else {
                    break;
                };
                rest = behind;
                let left_out = usize::from(right) + usize::from(up) * width;
                indices.resize((indices.len() + left_out).min(total), 0);
                x = indices.len() % width;
            }
            // So many pixels one by one, padded to 16 bits.
            (0, count) => {
                let wanted = usize::from(count).min(total - indices.len());
                let bytes = (wanted * bits as usize).div_ceil(8);
                let Some((literal, behind)) = rest.split_at_checked(bytes) else {
                    break;
                };
                if bits == 4 {
                    let halves = literal.iter().flat_map(|&byte| [byte >> 4, byte & 15]);
                    indices.extend(halves.take(wanted));
                } else {
                    indices.extend_from_slice(literal);
                }
                x += usize::from(count);
                rest = behind.get(bytes % 2..).unwrap_or_default();
            }
            (count, value) => {
                let fitting = count
                    .min(width.saturating_sub(x))
                    .min(total - indices.len());
                if bits == 4 {
                    let halves = [value >> 4, value & 15].into_iter().cycle();
                    indices.extend(halves.take(fitting));
                } else {
                    indices.resize(indices.len() + fitting, value);
                }
                x += fitting;
            }
        }
    }
    if indices.len() < total {
        return Err(Refusal::cut_off());
    }
    Ok(indices)
}
