//! How pictures are prepared for a network, as plain data. Checkpoints, the service and the network
//! all describe preprocessing in these terms; [`Preprocessor`](crate::Preprocessor) carries it out.
//!
//! The steps, in their order, and the fields that decide them:
//!
//! | step | fields of [`Preprocessing`] |
//! |---|---|
//! | resize the upright picture, with antialiasing | `resize`, `filter` |
//! | cut out the middle | `crop`, `crop_offset` |
//! | order the channels and bring them to a scale | `channels`, `scale` |
//! | normalise: `(value - mean) / std` | `mean`, `std` |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A height and a width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// Returns the size of a square.
    #[must_use]
    pub const fn square(side: u32) -> Self {
        Self {
            height: side,
            width: side,
        }
    }

    /// Returns `(height, width)` as the dimensions of a tensor.
    #[must_use]
    pub const fn dims(self) -> (usize, usize) {
        (self.height as usize, self.width as usize)
    }
}

/// Shows the size as `HEIGHTxWIDTH`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// The size that a picture is resized to before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resize {
    /// The shorter side gets this many pixels. The longer side keeps the proportions and is rounded
    /// down, as torchvision's `Resize(n)` and timm's crop mode "center" do it.
    ShorterSide(u32),
    /// The picture gets exactly this size, whatever its proportions were, as in timm's crop mode
    /// "squash" and in transformers' ViT and large ConvNext processors.
    Exact(Size),
}

/// A resampling filter. All of them are antialiased: they widen when they shrink a picture.
///
/// The names of [`Display`](fmt::Display) and [`FromStr`] are those of timm's and torchvision's
/// configurations: `bilinear`, `bicubic` and `lanczos`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// The triangle filter, of support 1.
    Bilinear,
    /// Cubic convolution with a = -0.5 as Pillow has it, of support 2.
    Bicubic,
    /// A sinc that is windowed by its own main lobe, of support 3.
    Lanczos,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        })
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "bilinear" => Ok(Self::Bilinear),
            "bicubic" => Ok(Self::Bicubic),
            "lanczos" => Ok(Self::Lanczos),
            other => Err(format!(
                "`{other}` is no supported filter; use bilinear, bicubic or lanczos"
            )),
        }
    }
}

/// The position of a centre crop when the number of pixels to spare is odd. It only decides which
/// of the two sides loses one pixel more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CropOffset {
    /// The offset is half of the spare pixels, with a half rounded to the even number: torchvision
    /// and timm.
    HalfToEven,
    /// The offset is half of the spare pixels, rounded down: transformers.
    HalfDown,
}

/// The order of the network's input channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red, which is Caffe's order.
    Bgr,
}

/// Shows the order as `rgb` or `bgr`.
impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
        })
    }
}

/// The scale of the channels' values before they are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// Values are from 0 to 1.
    Unit,
    /// Values are from 0 to 255, which is Caffe's scale.
    Byte,
}

impl Scale {
    /// Returns the largest value of this scale: 1 or 255.
    #[must_use]
    pub const fn maximum(self) -> u8 {
        match self {
            Self::Unit => 1,
            Self::Byte => 255,
        }
    }
}

/// How pictures are prepared for one network.
///
/// The values are not checked here: [`Preprocessor::new`](crate::Preprocessor::new) does that.
///
/// ```
/// use imgclass_image::{Preprocessing, Resize, Size};
///
/// let larger_input = Preprocessing {
///     resize: Resize::ShorterSide(320),
///     crop: Size::square(288),
///     ..Preprocessing::default()
/// };
/// assert_eq!(larger_input.mean, [0.485, 0.456, 0.406]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// The size that the picture is resized to.
    pub resize: Resize,
    /// The filter of that resize.
    pub filter: Filter,
    /// The size of the centre crop, which is the size of the network's input.
    pub crop: Size,
    /// Where the crop begins when the pixels to spare are odd.
    pub crop_offset: CropOffset,
    /// The order of the channels, of `mean` and of `std`.
    pub channels: Channels,
    /// The scale of the channels' values, of `mean` and of `std`.
    pub scale: Scale,
    /// The mean that is subtracted from each channel.
    pub mean: [f32; 3],
    /// The standard deviation that each channel is divided by after that.
    pub std: [f32; 3],
}

impl Default for Preprocessing {
    /// Returns torchvision's preset for classification: shorter side 256 (bilinear), centre crop of
    /// 224x224, ImageNet's mean and standard deviation (torchvision
    /// `references/classification/presets.py`).
    fn default() -> Self {
        Self {
            resize: Resize::ShorterSide(256),
            filter: Filter::Bilinear,
            crop: Size::square(224),
            crop_offset: CropOffset::HalfToEven,
            channels: Channels::Rgb,
            scale: Scale::Unit,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

impl Preprocessing {
    /// Returns the preprocessing of networks that come from Caffe: blue, green, red from 0 to 255
    /// less ImageNet's means. Keras calls it "caffe" (`keras/src/applications/imagenet_utils.py`).
    /// Resize and crop are those of torchvision's preset.
    #[must_use]
    pub fn caffe() -> Self {
        Self {
            channels: Channels::Bgr,
            scale: Scale::Byte,
            mean: [103.939, 116.779, 123.68],
            std: [1.0; 3],
            ..Self::default()
        }
    }
}
