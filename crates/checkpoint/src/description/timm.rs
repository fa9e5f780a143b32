//! Reads timm's `config.json`, which timm `models/_hub.py` writes. Its `pretrained_cfg` decides the
//! preprocessing. `weights convert` writes the same form and adds a part `imgclass`, for what
//! timm's networks never differ in.

use std::collections::HashMap;

use imgclass_image::{Channels, Filter, Preprocessing, Resize, Scale, Size};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{Description, check_only, parse as parse_json};
use crate::architecture::{Architecture, Variant};
use crate::labels::Label;
use crate::preprocessing::checked;

/// The fields that we read. `fixed_input_size` and `pool_size` say nothing about a network that
/// pools whatever comes.
#[derive(Deserialize)]
struct ConfigFile {
    architecture: Option<String>,
    num_classes: Option<usize>,
    global_pool: Option<String>,
    model_args: Option<HashMap<String, serde_json::Value>>,
    label_names: Option<Vec<String>>,
    label_descriptions: Option<HashMap<String, String>>,
    pretrained_cfg: Option<PretrainedCfg>,
    imgclass: Option<ImgclassFields>,
}

#[derive(Deserialize)]
struct PretrainedCfg {
    input_size: Option<[u32; 3]>,
    test_input_size: Option<[u32; 3]>,
    #[serde(default, deserialize_with = "deserialize_filter")]
    interpolation: Option<Filter>,
    crop_pct: Option<f64>,
    test_crop_pct: Option<f64>,
    crop_mode: Option<String>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    num_classes: Option<usize>,
    first_conv: Option<String>,
    classifier: Option<String>,
    label_names: Option<Vec<String>>,
    label_descriptions: Option<HashMap<String, String>>,
}

/// Our own addition to timm's form, under `imgclass`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImgclassFields {
    /// Where bottlenecks have their stride: `v1` or `v1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    /// The epsilon under the root of every batch norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch_norm_epsilon: Option<f64>,
    /// The order of the channels, of `mean` and of `std`: `rgb` or `bgr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) channels: Option<String>,
    /// The scale of `mean` and `std`: 1 or 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scale: Option<u32>,
}

/// Reads a filter by its name, which is the same in timm as in [`Filter`].
fn deserialize_filter<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Filter>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| name.parse().map_err(D::Error::custom))
        .transpose()
}

/// Arguments of timm's networks that change no arithmetic of ours, or that the tensors' shapes
/// show.
const HARMLESS_ARGS: [&str; 4] = ["num_classes", "in_chans", "drop_rate", "drop_path_rate"];

pub(super) fn parse(text: &str) -> Result<Description, String> {
    let file: ConfigFile = parse_json(text)?;
    let extra = file.imgclass.unwrap_or_default();
    let architecture = file
        .architecture
        .map(|name| find_architecture(&name, &extra));
    check_only(file.global_pool, "avg".to_owned(), "global_pool")?;
    let args = file.model_args.unwrap_or_default();
    if let Some(name) = args.keys().find(|name| !HARMLESS_ARGS.contains(&&***name)) {
        return Err(format!(
            "`model_args` has `{name}`, which would make it another network"
        ));
    }
    let mut cfg = file.pretrained_cfg.ok_or(
        "there is no `pretrained_cfg`, which timm's checkpoints have and which decides the \
         preprocessing",
    )?;
    let names = file.label_names.or(cfg.label_names.take());
    let descriptions = file.label_descriptions.or(cfg.label_descriptions.take());
    let classes = cfg.num_classes.or(file.num_classes);
    Ok(Description {
        architecture: architecture.transpose()?,
        preprocessing: cfg.into_preprocessing(&extra)?,
        classes: classes.map(|classes| (classes, "num_classes")),
        labels: names.map(|names| make_labels(names, &descriptions.unwrap_or_default())),
    })
}

/// Returns the network that timm calls `name`, with what our addition says about it.
fn find_architecture(name: &str, extra: &ImgclassFields) -> Result<Architecture, String> {
    // Training recipes follow the name after a dot.
    let plain = name.split('.').next().unwrap_or(name);
    let known = Architecture::named(plain).ok_or_else(|| {
        format!(
            "`architecture` is \"{name}\", but this service runs {}",
            Architecture::names()
        )
    })?;
    let variant = extra
        .variant
        .as_deref()
        .unwrap_or("v1.5")
        .parse::<Variant>();
    let variant = variant.map_err(|e| format!("`imgclass.variant`: {e}"))?;
    let epsilon = extra
        .batch_norm_epsilon
        .unwrap_or(known.batch_norm_epsilon());
    if !(1e-12..=1e-1).contains(&epsilon) {
        return Err(format!(
            "`imgclass.batch_norm_epsilon` is {epsilon}, expected 1e-12 to 0.1"
        ));
    }
    Ok(known.with_variant(variant).with_batch_norm_epsilon(epsilon))
}

/// Makes labels of the classes' names and of their descriptions, where there are any: ImageNet's
/// names in timm are WordNet ids.
fn make_labels(names: Vec<String>, descriptions: &HashMap<String, String>) -> Vec<Label> {
    let label = |name: String| match descriptions.get(&name) {
        Some(description) => Label::described(name, description),
        None => Label::plain(&name),
    };
    names.into_iter().map(label).collect()
}

impl PretrainedCfg {
    /// Returns the preprocessing, as timm's `transforms_imagenet_eval` does it.
    fn into_preprocessing(self, extra: &ImgclassFields) -> Result<Preprocessing, String> {
        let default = Preprocessing::default();
        check_only(self.first_conv, "conv1".to_owned(), "first_conv")?;
        check_only(self.classifier, "fc".to_owned(), "classifier")?;
        let Size { height, width } = default.crop;
        let size = self.test_input_size.or(self.input_size);
        let [channels, height, width] = size.unwrap_or([3, height, width]);
        if channels != 3 {
            return Err(format!(
                "the input has {channels} channels, but only 3 are supported"
            ));
        }
        let crop_pct = self.test_crop_pct.or(self.crop_pct).unwrap_or(0.875);
        if !(0.25..=1.0).contains(&crop_pct) {
            return Err(format!("the crop is {crop_pct}, expected 0.25 to 1"));
        }
        // floor(size / crop_pct), of the shorter side or of both.
        let scaled = |side: u32| (f64::from(side) / crop_pct).floor() as u32;
        let resize = match self.crop_mode.as_deref() {
            None | Some("center") if height == width => Resize::ShorterSide(scaled(height)),
            Some("squash") => Resize::Exact(Size {
                height: scaled(height),
                width: scaled(width),
            }),
            mode => {
                return Err(format!(
                    "`crop_mode` is {:?} with an input of {height}x{width}, but only \"center\" \
                     with a square input and \"squash\" are supported",
                    mode.unwrap_or("center")
                ));
            }
        };
        let (channels, scale) = extra.channels_and_scale()?;
        checked(Preprocessing {
            resize,
            filter: self.interpolation.unwrap_or(default.filter),
            crop: Size { height, width },
            crop_offset: default.crop_offset,
            channels,
            scale,
            mean: self.mean.unwrap_or(default.mean),
            std: self.std.unwrap_or(default.std),
        })
    }
}

impl ImgclassFields {
    /// Returns the order and the scale of the channels; torchvision's where nothing is said.
    fn channels_and_scale(&self) -> Result<(Channels, Scale), String> {
        let channels = match self.channels.as_deref() {
            None | Some("rgb") => Channels::Rgb,
            Some("bgr") => Channels::Bgr,
            Some(other) => {
                return Err(format!(
                    "`imgclass.channels` is \"{other}\", expected \"rgb\" or \"bgr\""
                ));
            }
        };
        let scale = match self.scale {
            None | Some(1) => Scale::Unit,
            Some(255) => Scale::Byte,
            Some(other) => {
                return Err(format!("`imgclass.scale` is {other}, expected 1 or 255"));
            }
        };
        Ok((channels, scale))
    }
}
