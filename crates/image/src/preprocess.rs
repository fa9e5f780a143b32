//! A picture to the network's input as torchvision and timm do it at evaluation: resize, centre crop, normalise; it never
//! decodes, and holds no checkpoint's numbers of its own.

use super::error::PreprocessingError;
use super::pixels::RgbImage;
use super::resample::{Filter, Span, window};

/// No checkpoint comes near it; it bounds what a configuration file can make us allocate.
const MAX_SIDE: u32 = 4096;

/// What a picture is resized to before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side to this many pixels, the longer in proportion and rounded down (torchvision's `Resize(n)`,
    /// timm's crop mode "center").
    ShorterSide(u32),
    /// To exactly this size, whatever the proportions (timm's crop mode "squash", transformers' ViT and large ConvNext processors).
    Exact {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// Where a centre crop begins when the pixels to spare are odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// Half of them, a half rounded to the even number (torchvision, timm).
    HalfToEven,
    /// Half of them, rounded down (transformers).
    Down,
}

/// What the network's numbers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planes {
    /// Red, green, blue from 0 to 1.
    RgbUnit,
    /// Red, green, blue from 0 to 255.
    RgbBytes,
    /// Blue, green, red from 0 to 1.
    BgrUnit,
    /// Blue, green, red from 0 to 255 (Caffe).
    BgrBytes,
}

impl Planes {
    fn is_bgr(self) -> bool {
        matches!(self, Self::BgrUnit | Self::BgrBytes)
    }

    /// The largest value before mean and deviation are taken off.
    #[must_use]
    pub fn scale(self) -> u32 {
        match self {
            Self::RgbUnit | Self::BgrUnit => 1,
            Self::RgbBytes | Self::BgrBytes => 255,
        }
    }

    /// The planes' order: `rgb` or `bgr`.
    #[must_use]
    pub fn order(self) -> &'static str {
        if self.is_bgr() { "bgr" } else { "rgb" }
    }
}

/// The part of an upright picture that the network sees, in that picture's pixels. It reaches beyond the picture where the crop is larger
/// than what the resize leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// From the picture's left edge.
    pub left: f64,
    /// From the picture's top edge.
    pub top: f64,
    /// To the right of `left`.
    pub width: f64,
    /// Down from `top`.
    pub height: f64,
}

impl Region {
    /// The same part of a picture that is resized by these factors.
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

/// A checkpoint's preprocessing, checked once.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessing {
    resize: Resize,
    filter: Filter,
    crop: (u32, u32),
    centre: Centre,
    planes: Planes,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Preprocessing {
    /// Resize with `filter`, torchvision's centre crop of `crop` (height, width), then `(x / 255 - mean) / std` for red, green, blue.
    ///
    /// # Errors
    /// A side that is zero or over 4096, or a mean or standard deviation that cannot be used.
    pub fn new(
        resize: Resize,
        filter: Filter,
        crop: (u32, u32),
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Result<Self, PreprocessingError> {
        let resized = match resize {
            Resize::ShorterSide(side) => [side, side],
            Resize::Exact { height, width } => [height, width],
        };
        let sides = [
            ("resize height", resized[0]),
            ("resize width", resized[1]),
            ("crop height", crop.0),
            ("crop width", crop.1),
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
            let (mean, std) = (mean[channel], std[channel]);
            if !mean.is_finite() || !std.is_finite() || std <= 0.0 {
                return Err(PreprocessingError::Normalisation { channel, mean, std });
            }
        }
        Ok(Self {
            resize,
            filter,
            crop,
            centre: Centre::HalfToEven,
            planes: Planes::RgbUnit,
            mean,
            std,
        })
    }

    /// The same with the crop begun elsewhere.
    #[must_use]
    pub fn with_centre(self, centre: Centre) -> Self {
        Self { centre, ..self }
    }

    /// The same with other planes; mean and deviation are in their order and on their scale.
    #[must_use]
    pub fn with_planes(self, planes: Planes) -> Self {
        Self { planes, ..self }
    }

    /// What the network's numbers are made of.
    #[must_use]
    pub fn planes(&self) -> Planes {
        self.planes
    }

    /// What a picture is resized to.
    #[must_use]
    pub fn resize(&self) -> Resize {
        self.resize
    }

    /// The resampling filter.
    #[must_use]
    pub fn filter(&self) -> Filter {
        self.filter
    }

    /// Height and width of the crop, which is the network's input, in pixels.
    #[must_use]
    pub fn crop(&self) -> (u32, u32) {
        self.crop
    }

    /// Means of the planes, in their order and on their scale.
    #[must_use]
    pub fn mean(&self) -> [f32; 3] {
        self.mean
    }

    /// Standard deviations of the planes, in their order and on their scale.
    #[must_use]
    pub fn std(&self) -> [f32; 3] {
        self.std
    }

    /// The network's input, planar `[3, crop height, crop width]`. Only what the crop shows is resized.
    #[must_use]
    pub fn apply(&self, picture: &RgbImage) -> Vec<f32> {
        let (pixels, across, down) = self.cropped(picture);
        self.normalise(&pixels, across, down)
    }

    /// The network's input before it is normalised, interleaved `[crop height, crop width, 3]`: for a device that normalises by itself.
    #[must_use]
    pub fn pixels(&self, picture: &RgbImage) -> Vec<u8> {
        let (pixels, across, down) = self.cropped(picture);
        let (height, width) = (self.crop.0 as usize, self.crop.1 as usize);
        if pixels.len() == 3 * height * width {
            return pixels;
        }
        let mut input = vec![0; 3 * height * width];
        let rows = input.chunks_exact_mut(3 * width).skip(down.before);
        let row_bytes = 3 * across.span.length as usize;
        for (to, from) in rows.zip(pixels.chunks_exact(row_bytes)) {
            to[3 * across.before..][..row_bytes].copy_from_slice(from);
        }
        input
    }

    /// What of the resized picture the crop shows, interleaved, and where that lies in the crop.
    fn cropped(&self, picture: &RgbImage) -> (Vec<u8>, Axis, Axis) {
        let (resized_width, resized_height) = self.resized((picture.width(), picture.height()));
        let across = Axis::new(picture.width(), resized_width, self.crop.1, self.centre);
        let down = Axis::new(picture.height(), resized_height, self.crop.0, self.centre);
        let pixels = window(picture, across.span, down.span, self.filter);
        (pixels, across, down)
    }

    /// What the network sees of an upright picture of this width and height, both at least 1.
    #[must_use]
    pub fn region(&self, (width, height): (u32, u32)) -> Region {
        let (resized_width, resized_height) = self.resized((width, height));
        let across = Axis::new(width, resized_width, self.crop.1, self.centre);
        let down = Axis::new(height, resized_height, self.crop.0, self.centre);
        let scale = |source: u32, resized: u64| f64::from(source) / resized.max(1) as f64;
        Region {
            left: across.start(),
            top: down.start(),
            width: f64::from(self.crop.1),
            height: f64::from(self.crop.0),
        }
        .scaled(scale(width, resized_width), scale(height, resized_height))
    }

    /// Width and height of the whole picture after the resize, as torchvision computes them.
    fn resized(&self, (width, height): (u32, u32)) -> (u64, u64) {
        let (width, height) = (u64::from(width), u64::from(height));
        match self.resize {
            Resize::Exact { height, width } => (u64::from(width), u64::from(height)),
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

    /// Interleaved `[down, across, 3]` bytes to planar floats, surrounded by black where the crop is larger.
    fn normalise(&self, pixels: &[u8], across: Axis, down: Axis) -> Vec<f32> {
        let (height, width) = (self.crop.0 as usize, self.crop.1 as usize);
        let row_bytes = across.span.length as usize * 3;
        let mut input = Vec::with_capacity(3 * height * width);
        for channel in 0..3 {
            // In torchvision's order of operations and in its precision, once per possible value.
            let top = 255.0 / self.planes.scale() as f32;
            let value: [f32; 256] = std::array::from_fn(|byte| {
                (byte as f32 / top - self.mean[channel]) / self.std[channel]
            });
            let sample = if self.planes.is_bgr() {
                2 - channel
            } else {
                channel
            };
            let plane_end = input.len() + height * width;
            input.resize(input.len() + down.before * width, value[0]);
            for row in pixels.chunks_exact(row_bytes) {
                let row_end = input.len() + width;
                input.resize(input.len() + across.before, value[0]);
                let (pixels, _) = row.as_chunks::<3>();
                input.extend(pixels.iter().map(|pixel| value[usize::from(pixel[sample])]));
                input.resize(row_end, value[0]);
            }
            input.resize(plane_end, value[0]);
        }
        input
    }
}

/// One axis of the centre crop: the resized pixels that it shows, and how many black ones come before them.
#[derive(Debug, Clone, Copy)]
struct Axis {
    span: Span,
    before: usize,
}

impl Axis {
    /// Where the crop begins, in resized pixels; below zero where black ones come first.
    fn start(self) -> f64 {
        self.span.offset as f64 - self.before as f64
    }

    /// torchvision's `CenterCrop`: from `round((resized - crop) / 2)` with Python's rounding of halves to even; what is
    /// smaller than the crop gets `(crop - resized) // 2` black pixels before it and the rest after. transformers' `center_crop` begins at
    /// `(resized - crop) // 2`.
    fn new(source: u32, resized: u64, crop: u32, centre: Centre) -> Self {
        let spare = resized.saturating_sub(u64::from(crop));
        let half = spare / 2;
        let offset = match centre {
            Centre::HalfToEven => half + (spare & half & 1),
            Centre::Down => half,
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
            before: (crop - length) as usize / 2,
        }
    }
}
