//! Makes a checkpoint of a network with another last layer, so that a head can be loaded by any
//! program.
//!
//! The result is a safetensors file with torchvision's names and a `config.json` in timm's form. It
//! is written to a temporary folder, loaded from there as a user would load it, and moved to its
//! place only if it is the same network with the same preprocessing.

use std::path::Path;

use imgclass_image::{Channels, Preprocessing, Resize, Scale};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::architecture::Block;
use crate::convert::{Converted, Stage, Target, load, unwritten};
use crate::description::ImgclassFields;
use crate::error::CheckpointError;
use crate::hub::CONFIG_FILE;
use crate::opening::{CheckpointInfo, OpenCheckpoint};

/// A network's last layer.
#[derive(Debug, Clone, Copy)]
pub struct LastLayer<'a> {
    /// The names of the classes.
    pub labels: &'a [String],
    /// The weights `[classes, features]`.
    pub weights: &'a [f32],
    /// The biases `[classes]`.
    pub bias: &'a [f32],
}

/// Writes the network of a checkpoint with another last layer to `output`, and a `config.json`
/// beside it.
///
/// # Errors
/// [`CheckpointError::Convert`] where the layer does not fit the network, where a file is in the way
/// and where the preprocessing cannot be said in timm's form. Nothing is written then.
pub fn merge(
    checkpoint: &OpenCheckpoint,
    layer: LastLayer<'_>,
    output: &Path,
) -> Result<Converted, CheckpointError> {
    let failed = |reason: String| CheckpointError::Convert {
        path: output.to_owned(),
        reason,
    };
    let info = &checkpoint.info;
    let (classes, features) = (layer.labels.len(), info.architecture.features());
    if layer.weights.len() != classes * features || layer.bias.len() != classes {
        return Err(failed(format!(
            "the last layer has {} weights and {} biases, and {classes} classes of {} need {} and {classes}",
            layer.weights.len(),
            layer.bias.len(),
            info.architecture,
            classes * features
        )));
    }
    let target = Target::free(output).map_err(failed)?;
    let tensors = checkpoint.weights.take_all(|source| {
        let mut tensors = Vec::new();
        // The old layer is taken too, because every tensor of a file must be.
        for (name, dims) in info.architecture.tensors(info.classes) {
            let values = source.tensor(&name, &dims)?;
            if !name.starts_with("fc.") {
                tensors.push((name, dims, to_bytes(&values)));
            }
        }
        Ok::<_, CheckpointError>(tensors)
    })?;
    let mut tensors = tensors;
    tensors.push((
        "fc.weight".to_owned(),
        vec![classes, features],
        to_bytes(layer.weights),
    ));
    tensors.push(("fc.bias".to_owned(), vec![classes], to_bytes(layer.bias)));

    let stage = Stage::new(output)?;
    let views = tensors.iter().map(|(name, dims, bytes)| {
        let view = TensorView::new(Dtype::F32, dims.clone(), bytes);
        view.map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let views = views.map_err(|error| failed(error.to_string()))?;
    safetensors::serialize_to_file(views, None, &stage.weights())
        .map_err(|error| failed(error.to_string()))?;
    let config = stage.folder().join(CONFIG_FILE);
    std::fs::write(&config, config_text(info, layer.labels)).map_err(|e| unwritten(&config, &e))?;
    let loaded = load(&stage)?;
    if loaded.preprocessing != info.preprocessing || loaded.architecture != info.architecture {
        return Err(failed(format!(
            "timm's form of configuration cannot say how this network prepares pictures: {:?} became \
             {:?}",
            info.preprocessing, loaded.preprocessing
        )));
    }
    target.move_results(&stage)?;
    stage.remove();
    Ok(target.converted(&loaded))
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Returns the configuration in timm's form, and under `imgclass` what that form cannot say.
fn config_text(info: &CheckpointInfo, labels: &[String]) -> String {
    let architecture = &info.architecture;
    let preprocessing = &info.preprocessing;
    let fields = ImgclassFields {
        variant: (architecture.block() == Block::Bottleneck)
            .then(|| architecture.variant().to_string()),
        batch_norm_epsilon: Some(architecture.batch_norm_epsilon()),
        channels: (preprocessing.channels == Channels::Bgr).then(|| "bgr".to_owned()),
        scale: (preprocessing.scale == Scale::Byte).then_some(255),
    };
    let mut config = Map::new();
    config.insert("architecture".to_owned(), architecture.name().into());
    config.insert("num_classes".to_owned(), labels.len().into());
    config.insert("num_features".to_owned(), architecture.features().into());
    config.insert("label_names".to_owned(), labels.into());
    // A name without a description would be taken for several where it has commas.
    let descriptions = labels.iter().map(|label| (label.clone(), json!(label)));
    config.insert(
        "label_descriptions".to_owned(),
        Value::Object(descriptions.collect()),
    );
    config.insert(
        "pretrained_cfg".to_owned(),
        pretrained_cfg(preprocessing, labels.len()),
    );
    config.insert("imgclass".to_owned(), json!(fields));
    format!("{:#}\n", Value::Object(config))
}

fn pretrained_cfg(preprocessing: &Preprocessing, classes: usize) -> Value {
    let crop = preprocessing.crop;
    let (crop_pct, crop_mode) = match preprocessing.resize {
        Resize::ShorterSide(side) => (f64::from(crop.height) / f64::from(side), "center"),
        Resize::Exact(size) => (f64::from(crop.height) / f64::from(size.height), "squash"),
    };
    let decimal = |x: f32| x.to_string().parse().unwrap_or(f64::from(x));
    json!({
        "num_classes": classes,
        "input_size": [3, crop.height, crop.width],
        "interpolation": preprocessing.filter.to_string(),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": preprocessing.mean.map(decimal),
        "std": preprocessing.std.map(decimal),
        "first_conv": "conv1",
        "classifier": "fc",
    })
}
