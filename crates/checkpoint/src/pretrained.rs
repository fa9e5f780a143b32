//! How a checkpoint wants its images prepared, whichever form it says so in. Plain data with bounds; never touches pixels.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;

/// Sides of network inputs that we accept, in pixels.
pub const INPUT_SIDES: RangeInclusive<usize> = 32..=512;

/// How pixels are interpolated when the checkpoint's test images were resized. All are antialiased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Catmull-Rom-like cubic with a = -0.5, as Pillow has it.
    Bicubic,
    /// Sinc windowed by its own main lobe.
    Lanczos,
}

/// What an image is resized to before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeTo {
    /// The shorter side to this many pixels, the longer one in proportion.
    ShorterSide(usize),
    /// Height and width, whatever the proportions.
    Exact(usize, usize),
}

/// Where a centre crop begins when the pixels to spare are odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// Half of them, a half rounded to the even number: torchvision and timm.
    HalfToEven,
    /// Half of them, rounded down: transformers.
    Down,
}

/// The order of the network's input planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red: Caffe's.
    Bgr,
}

/// The scale that `mean` and `std` are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// 0 to 1.
    Unit,
    /// 0 to 255: Caffe's.
    Byte,
}

/// How test images of this checkpoint were prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainedCfg {
    /// Network input, height and width in pixels: the centre crop.
    pub input_size: (usize, usize),
    /// What the image is resized to before the crop; nowhere smaller than it.
    pub resize: ResizeTo,
    /// The filter of that resize.
    pub interpolation: Interpolation,
    /// Where the crop begins.
    pub centre: Centre,
    /// The order of the planes, of `mean` and of `std`.
    pub channels: Channels,
    /// The scale of `mean` and `std`.
    pub scale: Scale,
    /// Subtracted from each plane.
    pub mean: [f32; 3],
    /// Divides each plane after that.
    pub std: [f32; 3],
}

impl Default for PretrainedCfg {
    /// torchvision's classification preset: shorter side 256 (bilinear), centre crop 224, ImageNet's mean and deviation
    /// (torchvision `references/classification/presets.py`).
    fn default() -> Self {
        Self {
            input_size: (224, 224),
            resize: ResizeTo::ShorterSide(256),
            interpolation: Interpolation::Bilinear,
            centre: Centre::HalfToEven,
            channels: Channels::Rgb,
            scale: Scale::Unit,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

impl PretrainedCfg {
    /// What the networks that come from Caffe were trained on: blue, green, red from 0 to 255 less ImageNet's means, which Keras calls
    /// "caffe" (`keras/src/applications/imagenet_utils.py`). Resize and crop are torchvision's preset's.
    pub fn caffe() -> Self {
        Self {
            channels: Channels::Bgr,
            scale: Scale::Byte,
            mean: [103.939, 116.779, 123.68],
            std: [1.0; 3],
            ..Self::default()
        }
    }

    /// Checks what a configuration asked for; the error says which value cannot be carried out and what could.
    pub(super) fn checked(self) -> Result<Self, String> {
        let (height, width) = self.input_size;
        if !INPUT_SIDES.contains(&height) || !INPUT_SIDES.contains(&width) {
            return Err(format!(
                "the input size is {height}x{width}, expected sides from {} to {}",
                INPUT_SIDES.start(),
                INPUT_SIDES.end()
            ));
        }
        let (resized, longest) = match self.resize {
            ResizeTo::ShorterSide(side) => ((side, side), side),
            ResizeTo::Exact(height, width) => ((height, width), height.max(width)),
        };
        if resized.0 < height || resized.1 < width || longest > MAX_RESIZED {
            return Err(format!(
                "images are resized to {resized:?} before a crop of {height}x{width}, expected no less than the crop and up to {MAX_RESIZED}"
            ));
        }
        let largest = match self.scale {
            Scale::Unit => 1.0,
            Scale::Byte => 255.0,
        };
        if self.mean.iter().any(|m| !(-largest..=largest).contains(m)) {
            return Err(format!(
                "the mean is {:?}, expected numbers on the scale 0 to {largest}",
                self.mean
            ));
        }
        let deviations = largest * 1e-4..=largest;
        if self.std.iter().any(|s| !deviations.contains(s)) {
            return Err(format!(
                "the standard deviation `std` is {:?}, expected positive numbers on the scale 0 to {largest}",
                self.std
            ));
        }
        Ok(self)
    }
}

/// Four times the largest input: timm's crops are a quarter of the image at least.
const MAX_RESIZED: usize = 4 * *INPUT_SIDES.end();

/// A preparation by name, for checkpoints that come without a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// [`PretrainedCfg::default`].
    Torchvision,
    /// [`PretrainedCfg::caffe`].
    Caffe,
}

impl Preset {
    /// What it stands for.
    pub fn pretrained(self) -> PretrainedCfg {
        match self {
            Self::Torchvision => PretrainedCfg::default(),
            Self::Caffe => PretrainedCfg::caffe(),
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "torchvision" => Ok(Self::Torchvision),
            "caffe" => Ok(Self::Caffe),
            other => Err(format!(
                "`{other}` is no preprocessing; use torchvision or caffe"
            )),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchvision => "torchvision",
            Self::Caffe => "caffe",
        })
    }
}
