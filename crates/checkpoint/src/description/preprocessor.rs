//! Reads transformers' `preprocessor_config.json`: what its image processors do with these fields
//! at inference, in their form with Pillow and numpy.
//!
//! | processors | resize | crop |
//! |---|---|---|
//! | ConvNext below 384 | the shorter side to `int(size / crop_pct)` | to `size` |
//! | ConvNext from 384 on | to a square of `size` | none |
//! | ViT | to `size`, whatever the proportions | none |
//! | DeiT | to `size`, whatever the proportions | to `crop_size`, if `do_center_crop` |
//! | Bit, CLIP | the shorter side to `size` | to `crop_size`, if `do_center_crop` |
//!
//! ConvNext is what `microsoft/resnet-50` names.

use imgclass_image::{Channels, CropOffset, Filter, Preprocessing, Resize, Scale, Size};
use serde::Deserialize;

use super::{check_only, parse as parse_json};
use crate::preprocessing::checked;

#[derive(Deserialize)]
struct PreprocessorFile {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Sides>,
    crop_pct: Option<f64>,
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<Sides>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    do_flip_channel_order: Option<bool>,
}

/// A size in pixels. Older files have a number where newer ones say which sides it is.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Sides {
    Number(u32),
    Shortest { shortest_edge: u32 },
    Both { height: u32, width: u32 },
}

/// The size from which on a ConvNext processor squeezes the whole image into the square.
const WARPED_FROM: u32 = 384;

/// The share that a ConvNext processor crops where the file does not say it.
const CROP_PCT: f64 = 224.0 / 256.0;

pub(super) fn parse(text: &str) -> Result<Preprocessing, String> {
    let file: PreprocessorFile = parse_json(text)?;
    check_only(file.do_resize, true, "do_resize")?;
    let named = file.image_processor_type.as_ref();
    let named = named.or(file.feature_extractor_type.as_ref());
    let family = named.map_or("ConvNext", |name| {
        let name = name.trim_end_matches("Fast");
        let name = name.trim_end_matches("ImageProcessor");
        name.trim_end_matches("FeatureExtractor")
    });
    let (resize, crop) = match family {
        "ConvNext" => file.conv_next()?,
        "ViT" => {
            let size = file.size()?.both()?;
            (Resize::Exact(size), size)
        }
        "DeiT" => {
            let size = file.size()?.both()?;
            (Resize::Exact(size), file.crop(size)?)
        }
        "Bit" | "BiT" | "CLIP" => {
            let side = file.size()?.shortest()?;
            if file.do_center_crop == Some(false) {
                return Err(
                    "`do_center_crop` is false, which leaves images of many sizes, but the network \
                     runs on one"
                        .to_owned(),
                );
            }
            (Resize::ShorterSide(side), file.crop(Size::square(side))?)
        }
        other => {
            return Err(format!(
                "images are prepared by a \"{other}\" processor, but only ConvNext, ViT, DeiT, Bit \
                 and CLIP are supported"
            ));
        }
    };
    let (mean, std) = file.normalisation()?;
    checked(Preprocessing {
        resize,
        filter: file.filter(family)?,
        crop,
        crop_offset: CropOffset::HalfDown,
        channels: match file.do_flip_channel_order {
            Some(true) => Channels::Bgr,
            _ => Channels::Rgb,
        },
        scale: file.scale()?,
        mean,
        std,
    })
}

impl PreprocessorFile {
    fn size(&self) -> Result<Sides, String> {
        self.size.ok_or_else(|| "there is no `size`".to_owned())
    }

    fn conv_next(&self) -> Result<(Resize, Size), String> {
        let side = self.size()?.shortest()?;
        let crop_pct = self.crop_pct.unwrap_or(CROP_PCT);
        if !(0.25..=1.0).contains(&crop_pct) {
            return Err(format!("`crop_pct` is {crop_pct:?}, expected 0.25 to 1"));
        }
        let resize = if side < WARPED_FROM {
            Resize::ShorterSide((f64::from(side) / crop_pct).floor() as u32)
        } else {
            Resize::Exact(Size::square(side))
        };
        Ok((resize, Size::square(side)))
    }

    /// Returns the crop of processors that crop only if they are told to; `whole` is what they
    /// leave otherwise.
    fn crop(&self, whole: Size) -> Result<Size, String> {
        match (self.do_center_crop, self.crop_size) {
            (Some(false), _) => Ok(whole),
            (_, Some(size)) => size.both(),
            (_, None) => Err("there is no `crop_size`".to_owned()),
        }
    }

    /// Returns the filter, which the file gives by Pillow's number.
    fn filter(&self, family: &str) -> Result<Filter, String> {
        let default = if family == "ViT" { 2 } else { 3 };
        match self.resample.unwrap_or(default) {
            1 => Ok(Filter::Lanczos),
            2 => Ok(Filter::Bilinear),
            3 => Ok(Filter::Bicubic),
            other => Err(format!(
                "`resample` is {other}, expected 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"
            )),
        }
    }

    /// Returns the scale on which the mean is subtracted.
    fn scale(&self) -> Result<Scale, String> {
        let factor = self.rescale_factor.unwrap_or(1.0 / 255.0);
        match self.do_rescale {
            Some(false) => Ok(Scale::Byte),
            _ if (factor * 255.0 - 1.0).abs() < 1e-6 => Ok(Scale::Unit),
            _ if factor == 1.0 => Ok(Scale::Byte),
            _ => Err(format!("`rescale_factor` is {factor}, expected 1/255 or 1")),
        }
    }

    fn normalisation(&self) -> Result<([f32; 3], [f32; 3]), String> {
        if self.do_normalize == Some(false) {
            return Ok(([0.0; 3], [1.0; 3]));
        }
        // The processors' defaults have changed with their versions, and every file that they write
        // has both.
        let missing = |field: &str| format!("there is no `{field}`");
        Ok((
            self.image_mean.ok_or_else(|| missing("image_mean"))?,
            self.image_std.ok_or_else(|| missing("image_std"))?,
        ))
    }
}

impl Sides {
    fn shortest(self) -> Result<u32, String> {
        match self {
            Self::Number(side)
            | Self::Shortest {
                shortest_edge: side,
            } => Ok(side),
            Self::Both { height, width } if height == width => Ok(height),
            Self::Both { .. } => Err(format!("`size` is {self:?}, expected `shortest_edge`")),
        }
    }

    fn both(self) -> Result<Size, String> {
        match self {
            Self::Number(side) => Ok(Size::square(side)),
            Self::Both { height, width } => Ok(Size { height, width }),
            Self::Shortest { .. } => Err(format!("`size` is {self:?}, expected height and width")),
        }
    }
}
