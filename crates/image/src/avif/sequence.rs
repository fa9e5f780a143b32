//! Reads the sequence header of AV1 data, which tells the form of its samples before anything is
//! decoded (section 5.5 of the AV1 specification).

use crate::error::Refusal;
use imgclass_av1::Layout;

use super::container::Colour;

/// What the header tells that decoding a still picture needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SequenceHeader {
    pub(super) depth: u8,
    pub(super) layout: Layout,
    pub(super) colour: Colour,
}

/// The number of an open bitstream unit (OBU) that is a sequence header.
const SEQUENCE_HEADER: u8 = 1;

impl SequenceHeader {
    /// Finds the sequence header near the beginning of a temporal unit, and reads it.
    pub(super) fn find(data: &[u8]) -> Result<Self, Refusal> {
        let mut rest = data;
        loop {
            let [head, ..] = *rest else {
                return Err(Refusal::malformed("its AV1 data has no sequence header"));
            };
            let has_extension = head & 4 != 0;
            let has_size = head & 2 != 0;
            rest = rest
                .get(1 + usize::from(has_extension)..)
                .ok_or_else(Refusal::cut_off)?;
            let size = if has_size {
                let (size, length) = leb128(rest)?;
                rest = &rest[length..];
                size
            } else {
                rest.len()
            };
            if head >> 3 & 15 == SEQUENCE_HEADER {
                return Self::read(rest.get(..size).unwrap_or(rest));
            }
            rest = rest.get(size..).ok_or_else(Refusal::cut_off)?;
        }
    }

    fn read(data: &[u8]) -> Result<Self, Refusal> {
        let mut bits = Bits { data, at: 0 };
        let profile = bits.take(3)?;
        let _still_picture = bits.flag()?;
        let is_reduced = bits.flag()?;
        if is_reduced {
            let _level = bits.take(5)?;
        } else {
            read_operating_points(&mut bits)?;
        }
        let width_bits = bits.take(4)? + 1;
        let height_bits = bits.take(4)? + 1;
        // The size of frames is judged by the decoder, which gets the file's as its limit.
        let _most_width = bits.take(width_bits)?;
        let _most_height = bits.take(height_bits)?;
        if !is_reduced && bits.flag()? {
            let _lengths_of_frame_ids = bits.take(7)?;
        }
        let _superblocks_and_intra_tools = bits.take(3)?;
        if !is_reduced {
            read_inter_tools(&mut bits)?;
        }
        let _superres_cdef_restoration = bits.take(3)?;
        Self::read_colour(&mut bits, profile)
    }

    fn read_colour(bits: &mut Bits<'_>, profile: u32) -> Result<Self, Refusal> {
        let is_high = bits.flag()?;
        let depth = match (profile, is_high) {
            (_, false) => 8,
            (2, true) if bits.flag()? => 12,
            _ => 10,
        };
        let is_monochrome = profile != 1 && bits.flag()?;
        let [primaries, transfer, matrix] = if bits.flag()? {
            [bits.take(8)?, bits.take(8)?, bits.take(8)?]
        } else {
            [Colour::UNSPECIFIED; 3].map(u32::from)
        };
        let is_srgb = [primaries, transfer, matrix] == [1, 13, 0];
        let is_full_range = if is_srgb && !is_monochrome {
            true
        } else {
            bits.flag()?
        };
        let layout = match profile {
            _ if is_monochrome => Layout::Monochrome,
            _ if is_srgb => Layout::Full,
            0 => Layout::Half,
            1 => Layout::Full,
            _ if depth < 12 => Layout::HalfWidth,
            _ if !bits.flag()? => Layout::Full,
            _ if bits.flag()? => Layout::Half,
            _ => Layout::HalfWidth,
        };
        Ok(Self {
            depth,
            layout,
            colour: Colour {
                primaries: primaries as u16,
                matrix: matrix as u16,
                is_full_range,
            },
        })
    }
}

/// Passes over timing and operating points.
fn read_operating_points(bits: &mut Bits<'_>) -> Result<(), Refusal> {
    let mut delay_bits = None;
    if bits.flag()? {
        let _units_in_tick = bits.take(32)?;
        let _time_scale = bits.take(32)?;
        if bits.flag()? {
            bits.skip_exponential()?;
        }
        if bits.flag()? {
            delay_bits = Some(bits.take(5)? + 1);
            let _units_in_decoding_tick = bits.take(32)?;
            let _lengths = bits.take(10)?;
        }
    }
    let has_display_delay = bits.flag()?;
    for _ in 0..=bits.take(5)? {
        let _layers = bits.take(12)?;
        let level = bits.take(5)?;
        if level > 7 {
            let _tier = bits.flag()?;
        }
        if let Some(delay_bits) = delay_bits
            && bits.flag()?
        {
            let _decoder_delay = bits.take(delay_bits)?;
            let _encoder_delay = bits.take(delay_bits)?;
            let _low_delay = bits.flag()?;
        }
        if has_display_delay && bits.flag()? {
            let _display_delay = bits.take(4)?;
        }
    }
    Ok(())
}

/// Passes over the tools that only predictions from other frames use.
fn read_inter_tools(bits: &mut Bits<'_>) -> Result<(), Refusal> {
    let _compound_and_filters = bits.take(4)?;
    let has_order_hint = bits.flag()?;
    if has_order_hint {
        let _joint_compound_and_motion = bits.take(2)?;
    }
    let selects_screen_tools = bits.flag()?;
    let has_screen_tools = selects_screen_tools || bits.flag()?;
    if has_screen_tools && !bits.flag()? {
        let _integer_motion = bits.flag()?;
    }
    if has_order_hint {
        let _order_hint_bits = bits.take(3)?;
    }
    Ok(())
}

/// Returns a number in LEB128, of at most 8 bytes, and its length.
fn leb128(bytes: &[u8]) -> Result<(usize, usize), Refusal> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().take(8).enumerate() {
        number |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            let number = usize::try_from(number).map_err(|_| Refusal::cut_off())?;
            return Ok((number, index + 1));
        }
    }
    Err(Refusal::malformed("its AV1 data has a unit without a size"))
}

/// Reads bits from the highest.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// Returns a number of `count` bits, at most 32.
    fn take(&mut self, count: u32) -> Result<u32, Refusal> {
        let mut number = 0;
        for _ in 0..count {
            let byte = *self.data.get(self.at / 8).ok_or_else(Refusal::cut_off)?;
            number = number << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(number)
    }

    fn flag(&mut self) -> Result<bool, Refusal> {
        self.take(1).map(|bit| bit == 1)
    }

    /// Passes over a number in an exponential code: as many bits as there were zeros before a one.
    fn skip_exponential(&mut self) -> Result<(), Refusal> {
        let mut zeros = 0;
        while zeros < 32 && !self.flag()? {
            zeros += 1;
        }
        if zeros < 32 {
            self.take(zeros)?;
        }
        Ok(())
    }
}
