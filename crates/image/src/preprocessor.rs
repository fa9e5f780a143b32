//! Carries a [`Preprocessing`] out: resize, centre crop and normalisation of an upright picture, as
//! torchvision, timm and transformers do them at evaluation.
//!
//! Resize and crop are one step: only the part of the resized picture that the crop shows is
//! computed (see `resample`). A crop that is larger than the resized picture is filled up with
//! black.

use crate::error::PreprocessingError;
use crate::pixels::RgbImage;
use crate::preprocessing::{Channels, CropOffset, Preprocessing, Resize, Size};
use crate::resample::{Span, window};

/// The longest side of a resize or crop, in pixels. No checkpoint comes near it; it bounds what a
/// configuration file can make us allocate.
const MAX_SIDE: u32 = 4096;

/// Prepares pictures for a network. Its settings have been checked, so preparing cannot fail.
///
/// ```
/// use imgclass_image::{Preprocessing, Preprocessor, RgbImage};
///
/// let preprocessor = Preprocessor::new(Preprocessing::default())?;
/// let picture = RgbImage::new(640, 480, vec![128; 640 * 480 * 3]).expect("a picture with pixels");
/// assert_eq!(preprocessor.apply(&picture).len(), 3 * 224 * 224);
/// # Ok::<(), imgclass_image::PreprocessingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    settings: Preprocessing,
}

/// The part of an upright picture that the network sees, in that picture's pixels. It reaches
/// beyond the picture where the crop is larger than the resized picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// Distance from the picture's left edge.
    pub left: f64,
    /// Distance from the picture's top edge.
    pub top: f64,
    /// Extent to the right of `left`.
    pub width: f64,
    /// Extent below `top`.
    pub height: f64,
}

impl Region {
    /// Returns the same part of the picture after its width is multiplied by `across` and its
    /// height by `down`.
    #[must_use]
    pub fn scaled(self, across: f64, down: f64) -> Self {
        Self {
            left: self.left * across,
            top: self.top * down,
            width: self.width * across,
            height: self.height * down,
        }
    }
}

impl Preprocessor {
    /// Checks the settings of a preprocessing.
    ///
    /// # Errors
    /// [`PreprocessingError`] for a side of resize or crop that is zero or over 4096 pixels, for a
    /// mean that is not finite, and for a standard deviation that is not finite and positive.
    pub fn new(settings: Preprocessing) -> Result<Self, PreprocessingError> {
        let resized = match settings.resize {
            Resize::ShorterSide(side) => Size::square(side),
            Resize::Exact(size) => size,
        };
        let sides = [
            ("resize height", resized.height),
            ("resize width", resized.width),
            ("crop height", settings.crop.height),
            ("crop width", settings.crop.width),
        ];
        for (what, side) in sides {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(PreprocessingError::Side {
                    what,
                    found: u64::from(side),
                    max: MAX_SIDE,
                });
            }
        }
        for channel in 0..3 {
            let (mean, std) = (settings.mean[channel], settings.std[channel]);
            if !mean.is_finite() || !std.is_finite() || std <= 0.0 {
                return Err(PreprocessingError::Normalisation { channel, mean, std });
            }
        }
        Ok(Self { settings })
    }

    /// Returns the settings that this preprocessor carries out.
    #[must_use]
    pub fn settings(&self) -> &Preprocessing {
        &self.settings
    }

    /// Returns the network's input: planar `[3, crop height, crop width]`, normalised.
    #[must_use]
    pub fn apply(&self, picture: &RgbImage) -> Vec<f32> {
        self.normalise(&self.pixels(picture))
    }

    /// Returns the network's input before it is normalised: red, green, blue, interleaved
    /// `[crop height, crop width, 3]`. A device that normalises by itself takes this, which is a
    /// quarter of the bytes.
    #[must_use]
    pub fn pixels(&self, picture: &RgbImage) -> Vec<u8> {
        self.pixels_of_reduced(picture, (picture.width(), picture.height()))
    }

    /// Returns what [`Preprocessor::pixels`] returns, for a `picture` that was decoded at a reduced
    /// size. `full` is its full width and height, which decides about proportions and crop.
    #[must_use]
    pub fn pixels_of_reduced(&self, picture: &RgbImage, full: (u32, u32)) -> Vec<u8> {
        let cropped = self.crop(picture, full);
        let (height, width) = self.settings.crop.dims();
        if cropped.pixels.len() == 3 * height * width {
            return cropped.pixels;
        }
        let mut input = vec![0; 3 * height * width];
        let rows = input
            .chunks_exact_mut(3 * width)
            .skip(cropped.down.black_before);
        let row_bytes = cropped.row_bytes();
        for (to, from) in rows.zip(cropped.pixels.chunks_exact(row_bytes)) {
            to[3 * cropped.across.black_before..][..row_bytes].copy_from_slice(from);
        }
        input
    }

    /// Returns the least width and height at which a picture of this full size can be decoded so
    /// that it is still at least twice as large as the resize makes it. The resize then averages two
    /// pixels or more in each direction, which hides most of what a reduced size loses.
    #[must_use]
    pub fn twice_resized(&self, full: (u32, u32)) -> (u32, u32) {
        let (width, height) = resized(self.settings.resize, full);
        let twice = |side: u64| u32::try_from(side.saturating_mul(2)).unwrap_or(u32::MAX);
        (twice(width), twice(height))
    }

    /// Normalises the `pixels` of [`Preprocessor::pixels`], and returns them as planes: `[3, crop
    /// height, crop width]`.
    #[must_use]
    pub fn normalise(&self, pixels: &[u8]) -> Vec<f32> {
        let (pixels, _) = pixels.as_chunks::<3>();
        let mut input = Vec::with_capacity(3 * pixels.len());
        for channel in 0..3 {
            // In torchvision's order of operations and in its precision, once for each value of a
            // byte.
            let divisor = 255.0 / f32::from(self.settings.scale.maximum());
            let (mean, std) = (self.settings.mean[channel], self.settings.std[channel]);
            let value: [f32; 256] =
                std::array::from_fn(|byte| (byte as f32 / divisor - mean) / std);
            let sample = match self.settings.channels {
                Channels::Rgb => channel,
                Channels::Bgr => 2 - channel,
            };
            input.extend(pixels.iter().map(|pixel| value[usize::from(pixel[sample])]));
        }
        input
    }

    /// Returns what the network sees of an upright picture of this width and height, both at least
    /// 1.
    #[must_use]
    pub fn region(&self, (width, height): (u32, u32)) -> Region {
        let (across, down) = self.axes((width, height));
        let scale = |axis: CropAxis| f64::from(axis.span.source) / axis.span.resized.max(1) as f64;
        Region {
            left: across.start(),
            top: down.start(),
            width: f64::from(self.settings.crop.width),
            height: f64::from(self.settings.crop.height),
        }
        .scaled(scale(across), scale(down))
    }

    /// Resizes the part of the picture that the crop shows.
    fn crop(&self, picture: &RgbImage, full: (u32, u32)) -> Cropped {
        let (mut across, mut down) = self.axes(full);
        across.span.source = picture.width();
        down.span.source = picture.height();
        Cropped {
            pixels: window(picture, across.span, down.span, self.settings.filter),
            across,
            down,
        }
    }

    /// Returns both axes of the crop, across and down, of a picture of this width and height.
    fn axes(&self, (width, height): (u32, u32)) -> (CropAxis, CropAxis) {
        let (resized_width, resized_height) = resized(self.settings.resize, (width, height));
        let Size {
            height: crop_height,
            width: crop_width,
        } = self.settings.crop;
        let offset = self.settings.crop_offset;
        (
            CropAxis::new(width, resized_width, crop_width, offset),
            CropAxis::new(height, resized_height, crop_height, offset),
        )
    }
}

/// Returns width and height of the whole picture after the resize, as torchvision computes them.
fn resized(resize: Resize, (width, height): (u32, u32)) -> (u64, u64) {
    let (width, height) = (u64::from(width), u64::from(height));
    match resize {
        Resize::Exact(size) => (u64::from(size.width), u64::from(size.height)),
        Resize::ShorterSide(side) => {
            let side = u64::from(side);
            if width <= height {
                (side, side * height / width)
            } else {
                (side * width / height, side)
            }
        }
    }
}

/// The part of the resized picture that the crop shows, and where it lies in the crop.
struct Cropped {
    /// Interleaved `[down.span.length, across.span.length, 3]`.
    pixels: Vec<u8>,
    across: CropAxis,
    down: CropAxis,
}

impl Cropped {
    /// Returns the bytes of one row of `pixels`.
    fn row_bytes(&self) -> usize {
        3 * self.across.span.length as usize
    }
}

/// One axis of the centre crop.
#[derive(Debug, Clone, Copy)]
struct CropAxis {
    /// The resized pixels that the crop shows.
    span: Span,
    /// How many black pixels come before them, where the crop is larger than the resized picture.
    black_before: usize,
}

impl CropAxis {
    /// Places a crop of `crop` pixels on an axis that is resized from `source` to `resized` pixels.
    ///
    /// torchvision's `CenterCrop` begins at `round((resized - crop) / 2)`, with Python's rounding
    /// of halves to even; transformers' `center_crop` begins at `(resized - crop) // 2`. A picture
    /// that is smaller than the crop gets `(crop - resized) // 2` black pixels before it and the
    /// rest after it.
    fn new(source: u32, resized: u64, crop: u32, offset: CropOffset) -> Self {
        let spare = resized.saturating_sub(u64::from(crop));
        let half = spare / 2;
        let offset = match offset {
            CropOffset::HalfToEven => half + (spare & half & 1),
            CropOffset::HalfDown => half,
        };
        // Never over `crop`, so it fits.
        let length = resized.min(u64::from(crop)) as u32;
        Self {
            span: Span {
                source,
                resized,
                offset,
                length,
            },
            black_before: (crop - length) as usize / 2,
        }
    }

    /// Returns where the crop begins, in resized pixels; below zero where black pixels come first.
    fn start(self) -> f64 {
        self.span.offset as f64 - self.black_before as f64
    }
}
