//! The upright 8-bit RGB picture, and the conversion of decoded samples to it, as Pillow's
//! `convert("RGB")` does it. Alpha is dropped, not composited, and colour profiles are ignored.

use ::image::metadata::Orientation;
use ::image::{ColorType, DynamicImage};

use crate::ImageError;
use crate::preprocessing::Filter;
use crate::resample::{Span, window};

/// A picture as 8-bit RGB, `[height, width, 3]`: rows from the top, without padding. It has at
/// least one pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl RgbImage {
    /// Wraps `data` of layout `[height, width, 3]`. Returns `None` if its length differs or a side
    /// is zero.
    #[must_use]
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let bytes = (u64::from(width) * u64::from(height)).saturating_mul(3);
        (bytes > 0 && data.len() as u64 == bytes).then_some(Self {
            width,
            height,
            data,
        })
    }

    /// Returns the width in pixels, at least 1.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the samples, `[height, width, 3]`.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the picture shrunk in proportion so that no side is longer than `longest` (at least
    /// 1). A picture that is no larger is returned as it is.
    #[must_use]
    pub fn fitted(self, longest: u32) -> Self {
        let (width, height) = (self.width, self.height);
        let side = width.max(height);
        if side <= longest {
            return self;
        }
        let fit = |n: u32| {
            let scaled =
                (u64::from(n) * u64::from(longest) + u64::from(side) / 2) / u64::from(side);
            // At most `longest`, so it fits.
            scaled.max(1) as u32
        };
        let whole = |source: u32| Span {
            source,
            resized: u64::from(fit(source)),
            offset: 0,
            length: fit(source),
        };
        let data = window(&self, whole(width), whole(height), Filter::Bilinear);
        Self {
            width: fit(width),
            height: fit(height),
            data,
        }
    }

    /// Returns the picture turned as `orientation` asks. `None` never happens, since the length
    /// fits.
    pub(super) fn upright(self, orientation: Orientation) -> Option<Self> {
        let buffer = ::image::RgbImage::from_raw(self.width, self.height, self.data)?;
        let mut picture = DynamicImage::ImageRgb8(buffer);
        picture.apply_orientation(orientation);
        Self::new(picture.width(), picture.height(), picture.into_bytes())
    }
}

/// Returns width and height after `orientation` is applied.
pub(super) fn turned((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// Returns the bytes per pixel that [`to_rgb8`] allocates beside its input.
pub(super) fn extra_bytes(color: ColorType) -> u64 {
    match color {
        ColorType::L8 | ColorType::La8 | ColorType::L16 => 3,
        _ => 0,
    }
}

/// Converts interleaved samples of `color` in native byte order to RGB8.
///
/// Alpha is dropped, not composited. Of 16 bits the high byte is kept, as Pillow's unpackers do for
/// RGB, RGBA and grey with alpha; its clipping of plain 16-bit grey to white is a quirk that no
/// user wants.
///
/// # Errors
/// [`ImageError::Unsupported`] for samples that have neither 8 nor 16 bits.
pub(super) fn to_rgb8(color: ColorType, samples: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    /// The position of the high byte in a native-endian `u16`.
    const HIGH: usize = if cfg!(target_endian = "little") { 1 } else { 0 };
    match color {
        ColorType::Rgb8 => Ok(samples),
        ColorType::L8 => Ok(repeat(&samples, 1, 0)),
        ColorType::La8 => Ok(repeat(&samples, 2, 0)),
        ColorType::L16 => Ok(repeat(&samples, 2, HIGH)),
        ColorType::La16 => Ok(repeat(&samples, 4, HIGH)),
        ColorType::Rgba8 => Ok(pick(samples, 4, [0, 1, 2])),
        ColorType::Rgb16 => Ok(pick(samples, 6, [HIGH, HIGH + 2, HIGH + 4])),
        ColorType::Rgba16 => Ok(pick(samples, 8, [HIGH, HIGH + 2, HIGH + 4])),
        other => Err(ImageError::Unsupported {
            found: format!("an image with {other:?} samples"),
        }),
    }
}

/// Returns byte `at` of every pixel, three times.
fn repeat(samples: &[u8], pixel_bytes: usize, at: usize) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(samples.len() / pixel_bytes * 3);
    for pixel in samples.chunks_exact(pixel_bytes) {
        rgb.extend_from_slice(&[pixel[at]; 3]);
    }
    rgb
}

/// Returns three bytes of every pixel. They are gathered in place: the write position never passes
/// the read position.
fn pick(mut samples: Vec<u8>, pixel_bytes: usize, at: [usize; 3]) -> Vec<u8> {
    let pixels = samples.len() / pixel_bytes;
    for i in 0..pixels {
        let from = i * pixel_bytes;
        let rgb = at.map(|offset| samples[from + offset]);
        samples[i * 3..i * 3 + 3].copy_from_slice(&rgb);
    }
    samples.truncate(pixels * 3);
    samples
}
