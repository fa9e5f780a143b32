//! Writes the configuration that goes with converted weights: timm's form, and under `imgclass`
//! what that form cannot say.

use imgclass_image::{Channels, Scale};
use serde_json::{Map, Value, json};

use super::Origin;
use crate::architecture::{Architecture, Block, Variant};
use crate::checkpoint::Checkpoint;
use crate::description::ImgclassFields;
use crate::error::CheckpointError;
use crate::labels::Label;
use crate::opening::{Overrides, read_labels};
use crate::preprocessing::Preset;

/// The epsilon of the batch norms of Keras' ResNets (`keras/src/applications/resnet.py`).
const KERAS_EPSILON: f64 = 1.001e-5;

/// Returns the text of the `config.json` of a converted checkpoint. `overrides` decide, and where
/// they say nothing, the program that wrote the original.
pub(super) fn make_config(
    checkpoint: &Checkpoint,
    origin: Origin,
    overrides: &Overrides,
) -> Result<String, CheckpointError> {
    let architecture = checkpoint.architecture();
    let (variant, preset, epsilon) = match origin {
        Origin::PyTorch => (Variant::V1_5, Preset::Torchvision, None),
        Origin::Keras => (Variant::V1, Preset::Caffe, Some(KERAS_EPSILON)),
    };
    let variant = overrides.variant.unwrap_or(variant);
    let preset = overrides.preprocessing.unwrap_or(preset);
    let mut config = Map::new();
    config.insert("architecture".to_owned(), architecture.name().into());
    config.insert("num_classes".to_owned(), checkpoint.classes()?.into());
    config.insert("num_features".to_owned(), architecture.features().into());
    if let Some(path) = &overrides.labels {
        let (names, descriptions) = split_labels(read_labels(path)?);
        config.insert("label_names".to_owned(), names);
        config.insert("label_descriptions".to_owned(), descriptions);
    }
    config.insert("pretrained_cfg".to_owned(), make_pretrained_cfg(preset));
    let fields = make_imgclass_fields(&architecture, variant, preset, epsilon);
    config.insert("imgclass".to_owned(), json!(fields));
    // Maps of strings and numbers: nothing that JSON could not hold.
    Ok(format!("{:#}\n", Value::Object(config)))
}

fn make_pretrained_cfg(preset: Preset) -> Value {
    let preprocessing = preset.preprocessing();
    let crop = preprocessing.crop;
    json!({
        "input_size": [3, crop.height, crop.width],
        "interpolation": preprocessing.filter.to_string(),
        // Both presets: the shorter side to 256, a crop of 224.
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": preprocessing.mean.map(shortest_decimal),
        "std": preprocessing.std.map(shortest_decimal),
        "first_conv": "conv1",
        "classifier": "fc",
    })
}

fn make_imgclass_fields(
    architecture: &Architecture,
    variant: Variant,
    preset: Preset,
    batch_norm_epsilon: Option<f64>,
) -> ImgclassFields {
    let preprocessing = preset.preprocessing();
    ImgclassFields {
        variant: (architecture.block() == Block::Bottleneck).then(|| variant.to_string()),
        batch_norm_epsilon,
        channels: (preprocessing.channels == Channels::Bgr).then(|| "bgr".to_owned()),
        scale: (preprocessing.scale == Scale::Byte).then_some(255),
    }
}

/// Returns the decimal number that a person would have written for this `f32`.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Returns labels in timm's form: keys in the order of the classes, and what they stand for.
fn split_labels(labels: Vec<Label>) -> (Value, Value) {
    let mut descriptions = Map::new();
    let key = |label: Label| match label.wnid {
        Some(wnid) => {
            descriptions.insert(wnid.clone(), label.names.join(", ").into());
            wnid.into()
        }
        None => Value::from(label.names.join(", ")),
    };
    let names = labels.into_iter().map(key).collect();
    (Value::Array(names), Value::Object(descriptions))
}
