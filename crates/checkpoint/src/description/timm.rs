//! Reads timm's `config.json`, which timm `models/_hub.py` writes. Its `pretrained_cfg` decides the
//! preprocessing. `weights convert` writes the same form and adds a part `imgclass`, for what
//! timm's networks never differ in.
//!
//! Values at the root come before those in `pretrained_cfg`, as in timm: a fine-tuned checkpoint
//! leaves in `pretrained_cfg` what was true of the checkpoint that it started from.

use std::collections::{BTreeMap, HashMap};

use imgclass_image::{Channels, Filter, Preprocessing, Resize, Scale, Size};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Value, json};

use super::{Description, ProblemType, check_only, parse as parse_json};
use crate::architecture::{Architecture, Variant};
use crate::labels::{Label, MAX_CLASSES};
use crate::preprocessing::checked;

/// The fields that we read. `fixed_input_size` and `pool_size` say nothing about a network that
/// pools whatever comes.
#[derive(Deserialize)]
struct ConfigFile {
    architecture: Option<String>,
    num_classes: Option<usize>,
    global_pool: Option<String>,
    model_args: Option<BTreeMap<String, Value>>,
    label_names: Option<LabelNames>,
    label_descriptions: Option<HashMap<String, String>>,
    pretrained_cfg: Option<PretrainedCfg>,
    /// transformers adds it when it saves one of timm's networks.
    problem_type: Option<ProblemType>,
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
    label_names: Option<LabelNames>,
    /// The name of `label_names` in configurations without a `pretrained_cfg`.
    labels: Option<LabelNames>,
    label_descriptions: Option<HashMap<String, String>>,
}

/// The names of the classes: all of them in order, or a table from indices to names, in which
/// classes may be missing.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of names, or a table from indices to names"
)]
enum LabelNames {
    List(Vec<String>),
    // The indices come as texts, because the keys of JSON's objects are texts.
    Table(BTreeMap<String, String>),
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

/// Returns whether an argument of timm's networks leaves the network as it is: because it changes
/// nothing at inference, because the tensors' shapes show it, or because it has the value that the
/// five networks have anyway.
fn keeps_network(name: &str, value: &Value) -> bool {
    let default = match name {
        "num_classes" | "in_chans" | "layers" | "drop_rate" | "drop_path_rate"
        | "drop_block_rate" | "zero_init_last" | "scriptable" | "exportable" => return true,
        "global_pool" => json!("avg"),
        "output_stride" => json!(32),
        "act_layer" => json!("relu"),
        "norm_layer" => json!("batchnorm2d"),
        "cardinality" | "block_reduce_first" | "down_kernel_size" => json!(1),
        "base_width" | "stem_width" => json!(64),
        "channels" => json!([64, 128, 256, 512]),
        "stem_type" | "aa_layer" => json!(""),
        "replace_stem_pool" | "avg_down" | "features_only" => json!(false),
        "block_args" => json!({}),
        _ => Value::Null,
    };
    // timm drops arguments that are null, whatever their names are.
    value.is_null() || *value == default
}

pub(super) fn parse(text: &str) -> Result<Description, String> {
    let file: ConfigFile = parse_json(text)?;
    let extra = file.imgclass.unwrap_or_default();
    let architecture = file
        .architecture
        .map(|name| find_architecture(&name, &extra));
    check_only(file.global_pool, "avg".to_owned(), "global_pool")?;
    let args = file.model_args.unwrap_or_default();
    if let Some((name, value)) = args
        .iter()
        .find(|(name, value)| !keeps_network(name, value))
    {
        return Err(format!(
            "`model_args` has `{name}` with the value {value}, which would make it another network"
        ));
    }
    let mut cfg = match file.pretrained_cfg {
        Some(cfg) => cfg,
        None => parse_old_form(text)?,
    };
    let names = file.label_names.or(cfg.label_names.take());
    let names = names.or(cfg.labels.take());
    let descriptions = file.label_descriptions.or(cfg.label_descriptions.take());
    let argument = args.get("num_classes").and_then(Value::as_u64);
    let argument = argument.and_then(|classes| usize::try_from(classes).ok());
    let classes = argument.or(file.num_classes).or(cfg.num_classes);
    let descriptions = descriptions.unwrap_or_default();
    Ok(Description {
        architecture: architecture.transpose()?,
        preprocessing: cfg.into_preprocessing(&extra)?,
        classes: classes.map(|classes| (classes, "num_classes")),
        labels: names
            .map(|names| make_labels(names, classes, &descriptions))
            .transpose()?,
        problem_type: file.problem_type.unwrap_or_default(),
    })
}

/// Reads a configuration of timm before 0.9, which has the fields of `pretrained_cfg` at the root.
fn parse_old_form(text: &str) -> Result<PretrainedCfg, String> {
    let cfg: PretrainedCfg = parse_json(text)?;
    let says = cfg.input_size.is_some() || cfg.mean.is_some() || cfg.interpolation.is_some();
    says.then_some(cfg).ok_or_else(|| {
        "there is no `pretrained_cfg`, which timm's checkpoints have and which decides the \
         preprocessing"
            .to_owned()
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
/// names in timm are WordNet ids. A class that a table leaves out gets its number for a name.
fn make_labels(
    names: LabelNames,
    classes: Option<usize>,
    descriptions: &HashMap<String, String>,
) -> Result<Vec<Label>, String> {
    let label = |name: String| match descriptions.get(&name) {
        Some(description) => Label::described(name, description),
        None => Label::plain(&name),
    };
    let table = match names {
        LabelNames::List(names) => return Ok(names.into_iter().map(label).collect()),
        LabelNames::Table(table) => table,
    };
    let mut by_index = BTreeMap::new();
    for (key, name) in table {
        let index = key
            .parse::<usize>()
            .ok()
            .filter(|index| *index < classes.unwrap_or(MAX_CLASSES).min(MAX_CLASSES));
        let Some(index) = index else {
            let end = classes.map_or_else(String::new, |classes| format!(" below {classes}"));
            return Err(format!(
                "`label_names` has the key {key:?}, expected the index of a class{end}"
            ));
        };
        by_index.insert(index, name);
    }
    let last = by_index.last_key_value().map_or(0, |(index, _)| index + 1);
    let classes = classes.unwrap_or(last).min(MAX_CLASSES);
    let labels = (0..classes).map(|index| match by_index.remove(&index) {
        Some(name) => label(name),
        None => Label::numbered(index),
    });
    Ok(labels.collect())
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
            return Err(format!("the crop is {crop_pct:?}, expected 0.25 to 1"));
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
            // timm's default; torchvision's is bilinear.
            filter: self.interpolation.unwrap_or(Filter::Bicubic),
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
