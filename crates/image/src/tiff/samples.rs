//! How the samples of a TIFF are stored, and their conversion to RGB.

use std::fmt;

/// What the numbers of a sample are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Unsigned,
    Signed,
    Float,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "unsigned",
            Self::Signed => "signed",
            Self::Float => "floating-point",
        })
    }
}

/// What the first channels mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Grey {
        /// Whether 0 is white.
        is_inverted: bool,
    },
    Rgb,
    Palette,
    Cmyk,
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grey { .. } => "grey",
            Self::Rgb => "RGB",
            Self::Palette => "a palette",
            Self::Cmyk => "CMYK",
        })
    }
}

impl Colour {
    pub(super) fn channels(self) -> usize {
        match self {
            Self::Grey { .. } | Self::Palette => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }
}

/// How the samples of a pixel are stored.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) bits: u8,
    pub(super) number: Number,
    /// All channels, with those that say nothing of the colour.
    pub(super) channels: usize,
    pub(super) colour: Colour,
    /// Whether the colours are multiplied with the alpha of the channel behind them.
    pub(super) is_premultiplied: bool,
    pub(super) is_little: bool,
}

impl Layout {
    /// Returns whether [`Layout::to_rgb`] can convert such samples.
    pub(super) fn is_known(&self) -> bool {
        if self.channels < self.colour.channels() {
            return false;
        }
        let extra = self.channels - self.colour.channels();
        match (self.colour, self.bits, self.number) {
            (Colour::Grey { .. } | Colour::Palette, 1 | 2 | 4, Number::Unsigned) => extra == 0,
            (Colour::Grey { .. }, 12, Number::Unsigned) => extra == 0,
            (Colour::Grey { .. }, 8, Number::Unsigned | Number::Signed) => extra <= 2,
            (Colour::Palette, 8, Number::Unsigned) => extra <= 2,
            (Colour::Grey { .. }, 16, Number::Unsigned | Number::Signed) => extra <= 2,
            (Colour::Grey { .. }, 32, _) => extra == 0,
            (Colour::Rgb | Colour::Cmyk, 8 | 16, Number::Unsigned) => true,
            _ => false,
        }
    }

    /// Returns the bits of a pixel in all planes.
    pub(super) fn pixel_bits(&self) -> u64 {
        u64::from(self.bits) * self.channels as u64
    }

    /// Returns how many of the channels the colour depends on.
    pub(super) fn used_channels(&self) -> usize {
        self.colour.channels() + usize::from(self.is_premultiplied)
    }

    /// Returns the bytes of a row of `width` pixels, of all channels or of one plane.
    pub(super) fn row_bytes(&self, width: usize, is_one_plane: bool) -> usize {
        let channels = if is_one_plane { 1 } else { self.channels };
        (width * channels * usize::from(self.bits)).div_ceil(8)
    }

    /// Joins rows of planes to one row of pixels.
    pub(super) fn interleave<'a>(
        &self,
        planes: impl Iterator<Item = &'a [u8]>,
        width: usize,
        row: &mut Vec<u8>,
    ) {
        let bytes = usize::from(self.bits / 8);
        row.clear();
        row.resize(width * self.channels * bytes, 0);
        for (channel, plane) in planes.enumerate() {
            let samples = plane.chunks_exact(bytes);
            for (pixel, sample) in row.chunks_exact_mut(self.channels * bytes).zip(samples) {
                pixel[channel * bytes..][..bytes].copy_from_slice(sample);
            }
        }
    }

    /// Converts a row of samples.
    pub(super) fn to_rgb(
        &self,
        row: &[u8],
        palette: Option<&[[u8; 3]; 256]>,
        pixels: &mut [[u8; 3]],
    ) {
        match (self.bits, self.colour) {
            (8 | 16, Colour::Rgb | Colour::Cmyk) => self.colours_to_rgb(row, pixels),
            (bits, Colour::Palette) => {
                let colour = |index: usize| palette.map_or([0; 3], |palette| palette[index]);
                self.unpack(row, bits, pixels, |index| colour(index as usize & 0xFF));
            }
            (bits, Colour::Grey { is_inverted }) => {
                let invert = |grey: u8| if is_inverted { 255 - grey } else { grey };
                let largest = u32::from(u8::MAX >> (8 - bits.min(8)));
                let signed = self.number == Number::Signed;
                self.unpack(row, bits, pixels, |value| {
                    let grey = match (bits, self.number) {
                        (1..=8, _) => invert((value * 255 / largest) as u8),
                        (12, _) => invert((value >> 4) as u8),
                        (16, _) if !signed => invert((value >> 8) as u8),
                        // Wide signed integers also lose their lowest byte, and all wide numbers
                        // are cut at 0 and 255.
                        (16, _) => (i32::from(value as u16 as i16) >> 8).clamp(0, 255) as u8,
                        (_, Number::Float) => f32::from_bits(value).clamp(0.0, 255.0) as u8,
                        _ => (value as i32 >> 8).clamp(0, 255) as u8,
                    };
                    [grey; 3]
                });
                if self.is_premultiplied && bits == 8 {
                    for (pixel, stored) in pixels.iter_mut().zip(row.chunks_exact(self.channels)) {
                        *pixel = pixel.map(|grey| divided(grey, stored[1]));
                    }
                }
            }
            _ => {}
        }
    }

    /// Reads the first channel of each pixel.
    fn unpack(
        &self,
        row: &[u8],
        bits: u8,
        pixels: &mut [[u8; 3]],
        colour: impl Fn(u32) -> [u8; 3],
    ) {
        if bits.is_multiple_of(8) {
            let bytes = usize::from(bits / 8);
            let stored = row.chunks_exact(bytes * self.channels);
            for (pixel, stored) in pixels.iter_mut().zip(stored) {
                let join = |number, &byte: &u8| number << 8 | u32::from(byte);
                let stored = &stored[..bytes];
                *pixel = colour(if self.is_little {
                    stored.iter().rev().fold(0, join)
                } else {
                    stored.iter().fold(0, join)
                });
            }
            return;
        }
        // The first pixel is in the highest bits.
        for (x, pixel) in pixels.iter_mut().enumerate() {
            let at = x * usize::from(bits);
            let byte = |index: usize| row.get(at / 8 + index).copied().unwrap_or(0);
            let word = u16::from_be_bytes([byte(0), byte(1)]) << (at % 8);
            *pixel = colour(u32::from(word >> (16 - bits)));
        }
    }

    fn colours_to_rgb(&self, row: &[u8], pixels: &mut [[u8; 3]]) {
        let bytes = usize::from(self.bits / 8);
        // Of 16 bits, the high byte counts.
        let high = if self.is_little { bytes - 1 } else { 0 };
        let stored = row.chunks_exact(bytes * self.channels);
        for (pixel, stored) in pixels.iter_mut().zip(stored) {
            let channel = |index: usize| stored[index * bytes + high];
            *pixel = [channel(0), channel(1), channel(2)];
            if self.colour == Colour::Cmyk {
                let light = 255 - channel(3);
                *pixel = pixel.map(|ink| light - multiplied(ink, light));
            }
            if self.is_premultiplied {
                let alpha = channel(self.colour.channels());
                *pixel = pixel.map(|value| divided(value, alpha));
            }
        }
    }
}

/// Returns the product of two parts of 255, rounded.
fn multiplied(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

/// Divides a value by the alpha that it was multiplied with.
fn divided(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 => 0,
        255 => value,
        alpha => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
    }
}

/// Adds up the differences of a row's samples of `bytes` bytes, channel by channel.
pub(super) fn undo_differences(row: &mut [u8], bytes: usize, channels: usize, is_little: bool) {
    let distance = bytes * channels;
    for at in (distance..row.len() / bytes * bytes).step_by(bytes) {
        let mut carry = 0;
        for byte in 0..bytes {
            let byte = if is_little { byte } else { bytes - 1 - byte };
            let sum = u16::from(row[at + byte]) + u16::from(row[at - distance + byte]) + carry;
            row[at + byte] = sum as u8;
            carry = sum >> 8;
        }
    }
}

/// Adds up the differences of a row of floating-point numbers, of which all highest bytes come
/// first, then all second ones, and so on; and puts the bytes of each number together.
pub(super) fn undo_float_differences(
    row: &mut [u8],
    bytes: usize,
    channels: usize,
    is_little: bool,
) {
    for at in channels..row.len() {
        row[at] = row[at].wrapping_add(row[at - channels]);
    }
    let count = row.len() / bytes;
    let sorted = row.to_vec();
    for (index, number) in row.chunks_exact_mut(bytes).enumerate() {
        for (weight, byte) in (0..bytes).enumerate() {
            let place = if is_little { bytes - 1 - byte } else { byte };
            number[place] = sorted[weight * count + index];
        }
    }
}
