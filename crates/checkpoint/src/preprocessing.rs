//! What this service accepts of a checkpoint's preprocessing, and the presets by name. The
//! vocabulary is that of `imgclass_image`; the bounds here are tighter than what can be carried out
//! there.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use imgclass_image::{Preprocessing, Resize, Size};

/// The sides of network inputs that are accepted, in pixels.
pub const INPUT_SIDES: RangeInclusive<u32> = 32..=512;

/// The longest side of a resized picture, in pixels: four times the largest input, because timm's
/// crops are a quarter of the picture at least.
const MAX_RESIZED: u32 = 4 * *INPUT_SIDES.end();

/// The smallest standard deviation, as a share of the scale's largest value.
const MIN_DEVIATION: f32 = 1e-4;

/// Checks the preprocessing that a configuration asks for, and returns it.
///
/// # Errors
/// A text that says which value cannot be accepted and what could: an input or a resize out of
/// bounds, a resize that leaves less than the crop, a mean or a standard deviation off its scale.
pub(crate) fn checked(preprocessing: Preprocessing) -> Result<Preprocessing, String> {
    let crop = preprocessing.crop;
    if !INPUT_SIDES.contains(&crop.height) || !INPUT_SIDES.contains(&crop.width) {
        return Err(format!(
            "the input size is {crop}, expected sides from {} to {}",
            INPUT_SIDES.start(),
            INPUT_SIDES.end()
        ));
    }
    let resized = match preprocessing.resize {
        Resize::ShorterSide(side) => Size::square(side),
        Resize::Exact(size) => size,
    };
    let longest = resized.height.max(resized.width);
    if resized.height < crop.height || resized.width < crop.width || longest > MAX_RESIZED {
        return Err(format!(
            "images are resized to {:?} before a crop of {crop}, expected no less than the crop \
             and up to {MAX_RESIZED}",
            resized.dims()
        ));
    }
    let maximum = f32::from(preprocessing.scale.maximum());
    let (mean, std) = (&preprocessing.mean, &preprocessing.std);
    if mean.iter().any(|m| !(-maximum..=maximum).contains(m)) {
        return Err(format!(
            "the mean is {mean:?}, expected numbers on the scale 0 to {maximum}"
        ));
    }
    let deviations = maximum * MIN_DEVIATION..=maximum;
    if std.iter().any(|s| !deviations.contains(s)) {
        return Err(format!(
            "the standard deviation `std` is {std:?}, expected positive numbers on the scale 0 to \
             {maximum}"
        ));
    }
    Ok(preprocessing)
}

/// A preprocessing by its name, for checkpoints that come without a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// [`Preprocessing::default`].
    Torchvision,
    /// [`Preprocessing::caffe`].
    Caffe,
}

impl Preset {
    /// Returns the preprocessing that the name stands for.
    pub fn preprocessing(self) -> Preprocessing {
        match self {
            Self::Torchvision => Preprocessing::default(),
            Self::Caffe => Preprocessing::caffe(),
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
