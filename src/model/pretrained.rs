//! What a checkpoint says about itself: timm's `config.json`, whose `pretrained_cfg` decides the preprocessing. Parses and checks; never
//! touches pixels.

use std::path::Path;

use serde::Deserialize;

use super::error::ModelError;

/// Sides of network inputs that we accept, in pixels.
pub const INPUT_SIDES: std::ops::RangeInclusive<usize> = 32..=512;

/// How pixels are interpolated when the checkpoint's test images were resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Antialiased triangle filter.
    Bilinear,
    /// Antialiased Catmull-Rom-like cubic with a = -0.5, as Pillow has it.
    Bicubic,
}

/// How test images of this checkpoint were prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainedCfg {
    /// Network input, height and width in pixels.
    pub input_size: (usize, usize),
    /// The image's shorter side is resized to this many pixels before the crop.
    pub resize: usize,
    /// The filter of that resize.
    pub interpolation: Interpolation,
    /// Subtracted from each of R, G, B, on the scale 0 to 1.
    pub mean: [f32; 3],
    /// Divides each of R, G, B after that.
    pub std: [f32; 3],
    /// How many classes the checkpoint says it has, if it does.
    pub num_classes: Option<usize>,
}

impl Default for PretrainedCfg {
    /// torchvision's classification preset: shorter side 256 (bilinear), centre crop 224, ImageNet's mean and deviation
    /// (torchvision `references/classification/presets.py`).
    fn default() -> Self {
        Self {
            input_size: (224, 224),
            resize: 256,
            interpolation: Interpolation::Bilinear,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            num_classes: None,
        }
    }
}

/// timm's `config.json`, the part that we read.
#[derive(Deserialize)]
struct ConfigFile {
    architecture: Option<String>,
    num_classes: Option<usize>,
    pretrained_cfg: Option<RawCfg>,
}

#[derive(Deserialize)]
struct RawCfg {
    input_size: Option<[usize; 3]>,
    test_input_size: Option<[usize; 3]>,
    interpolation: Option<Interpolation>,
    crop_pct: Option<f64>,
    test_crop_pct: Option<f64>,
    crop_mode: Option<String>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    num_classes: Option<usize>,
    first_conv: Option<String>,
    classifier: Option<String>,
}

impl PretrainedCfg {
    /// Reads and checks a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let invalid = |reason: String| ModelError::Config {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
        Self::parse(&text).map_err(invalid)
    }

    /// Parses the text of a `config.json`; the error says which field is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: ConfigFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if let Some(architecture) = &file.architecture
            && architecture != "resnet50"
        {
            return Err(format!(
                "`architecture` is \"{architecture}\", but this service runs \"resnet50\""
            ));
        }
        let raw = file.pretrained_cfg.ok_or(
            "there is no `pretrained_cfg`, which timm's checkpoints have and which decides the preprocessing",
        )?;
        raw.check(file.num_classes)
    }
}

impl RawCfg {
    fn check(self, num_classes: Option<usize>) -> Result<PretrainedCfg, String> {
        let default = PretrainedCfg::default();
        only(self.crop_mode, "center", "crop_mode")?;
        only(self.first_conv, "conv1", "first_conv")?;
        only(self.classifier, "fc", "classifier")?;
        let size = self.test_input_size.or(self.input_size).unwrap_or([
            3,
            default.input_size.0,
            default.input_size.1,
        ]);
        let [channels, height, width] = size;
        if channels != 3 || !INPUT_SIDES.contains(&height) || !INPUT_SIDES.contains(&width) {
            return Err(format!(
                "the input size is {size:?}, expected [3, height, width] with sides from {} to {}",
                INPUT_SIDES.start(),
                INPUT_SIDES.end()
            ));
        }
        let crop_pct = self.test_crop_pct.or(self.crop_pct).unwrap_or(0.875);
        if !(0.25..=1.0).contains(&crop_pct) {
            return Err(format!("the crop is {crop_pct}, expected 0.25 to 1"));
        }
        let (mean, std) = (
            self.mean.unwrap_or(default.mean),
            self.std.unwrap_or(default.std),
        );
        if mean.iter().any(|m| !m.is_finite() || m.abs() > 255.0) {
            return Err(format!(
                "`mean` is {mean:?}, expected numbers on the scale 0 to 1"
            ));
        }
        if std
            .iter()
            .any(|s| !s.is_finite() || *s < 1e-4 || *s > 255.0)
        {
            return Err(format!(
                "`std` is {std:?}, expected positive numbers on the scale 0 to 1"
            ));
        }
        Ok(PretrainedCfg {
            input_size: (height, width),
            // timm's create_transform: floor(size / crop_pct), of the shorter side.
            resize: (height.min(width) as f64 / crop_pct).floor() as usize,
            interpolation: self.interpolation.unwrap_or(default.interpolation),
            mean,
            std,
            num_classes: self.num_classes.or(num_classes),
        })
    }
}

/// An optional field that, where present, must have the one value that we carry out.
fn only(found: Option<String>, expected: &str, field: &str) -> Result<(), String> {
    match found {
        Some(value) if value != expected => Err(format!(
            "`{field}` is \"{value}\", but only \"{expected}\" is supported"
        )),
        _ => Ok(()),
    }
}
