//! The configuration that goes with converted weights: timm's form, and what that form cannot say under `imgclass`.

use imgclass_image::{Channels, Scale};
use serde_json::{Map, Value, json};

use super::Origin;
use crate::architecture::{Architecture, Block, Variant};
use crate::checkpoint::Checkpoint;
use crate::description::Own;
use crate::error::CheckpointError;
use crate::labels::Label;
use crate::opening::{Overrides, read_labels};
use crate::preprocessing::Preset;

/// Keras' epsilon of its ResNets' batch norms (`keras/src/applications/resnet.py`).
const KERAS_EPSILON: f64 = 1.001e-5;

pub(super) fn text(
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
        let (names, descriptions) = labels(read_labels(path)?);
        config.insert("label_names".to_owned(), names);
        config.insert("label_descriptions".to_owned(), descriptions);
    }
    config.insert("pretrained_cfg".to_owned(), preprocessing(preset));
    let own = own(&architecture, variant, preset, epsilon);
    config.insert("imgclass".to_owned(), json!(own));
    // Maps of strings and numbers: nothing that JSON could not hold.
    Ok(format!("{:#}\n", Value::Object(config)))
}

fn preprocessing(preset: Preset) -> Value {
    let preprocessing = preset.preprocessing();
    let crop = preprocessing.crop;
    json!({
        "input_size": [3, crop.height, crop.width],
        "interpolation": preprocessing.filter.to_string(),
        // Both presets: the shorter side to 256, a crop of 224.
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": preprocessing.mean.map(shortest),
        "std": preprocessing.std.map(shortest),
        "first_conv": "conv1",
        "classifier": "fc",
    })
}

fn own(
    architecture: &Architecture,
    variant: Variant,
    preset: Preset,
    batch_norm_epsilon: Option<f64>,
) -> Own {
    let preprocessing = preset.preprocessing();
    Own {
        variant: (architecture.block() == Block::Bottleneck).then(|| variant.to_string()),
        batch_norm_epsilon,
        channels: (preprocessing.channels == Channels::Bgr).then(|| "bgr".to_owned()),
        scale: (preprocessing.scale == Scale::Byte).then_some(255),
    }
}

/// The decimal number that a reader would have written for this `f32`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// As timm has them: keys in the order of the classes, and what those stand for.
fn labels(labels: Vec<Label>) -> (Value, Value) {
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
