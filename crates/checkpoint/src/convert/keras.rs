//! Reads Keras' weights of its ResNets (`keras/src/applications/resnet.py`), from HDF5 files of
//! either generation and from `.keras` archives, and brings them to torchvision's names and
//! layouts. Layers are recognised by the names that Keras gave them.

use std::collections::{BTreeMap, HashMap};

use hdf5_reader::group::Group;
use hdf5_reader::{Hdf5File, OpenOptions};
use serde::Deserialize;

use super::StoredTensor;
use super::archive::{list_members, read_member};

/// The member of a `.keras` archive that holds the weights.
const ARCHIVED_WEIGHTS: &str = "model.weights.h5";

/// The deepest nesting of groups that is read. Keras nests five deep, but links can be made to go
/// round.
const MAX_DEPTH: usize = 12;

/// The most numbers that are read, which is a gigabyte of them. A ResNet-152 has 60 million, but
/// links can show the same ones again and again.
const MAX_NUMBERS: usize = 256 << 20;

/// The variables of one layer by their names: dimensions and values.
type Variables = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Returns whether a zip archive is one of Keras'.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    list_members(bytes).is_ok_and(|names| names.iter().any(|name| name == ARCHIVED_WEIGHTS))
}

/// Reads the network's tensors from a `.h5` file or a `.keras` archive.
pub(super) fn read_tensors(bytes: Vec<u8>) -> Result<Vec<StoredTensor>, String> {
    let (weights, names) = if bytes.starts_with(b"PK") {
        let names = read_layer_names(&read_member(&bytes, "config.json")?)?;
        (read_member(&bytes, ARCHIVED_WEIGHTS)?, names)
    } else {
        (bytes, HashMap::new())
    };
    let options = OpenOptions::default().with_max_read_bytes(size_of::<f32>() * MAX_NUMBERS);
    let file = Hdf5File::from_vec_with_options(weights, options).map_err(|e| e.to_string())?;
    let mut layers = BTreeMap::new();
    let root = file.root_group().map_err(|e| e.to_string())?;
    collect_variables(&root, &mut Vec::new(), &names, &mut layers)?;
    if names.is_empty() && layers.contains_key("batch_normalization") {
        return Err(
            "its layers have numbers for names, as in Keras 3's .weights.h5: save the whole model, \
             as .keras or .h5"
                .to_owned(),
        );
    }
    fold_biases(&mut layers)?;
    let mut tensors = Vec::new();
    for (name, variables) in layers {
        for (variable, (dims, values)) in variables {
            tensors.push(convert_variable(&name, &variable, dims, &values)?);
        }
    }
    Ok(tensors)
}

/// Reads the names of the layers. A Keras 3 archive numbers its layers by class
/// (`batch_normalization_3`); the model's own configuration says which they are.
fn read_layer_names(config: &[u8]) -> Result<HashMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Model {
        config: Layers,
    }
    #[derive(Deserialize)]
    struct Layers {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        class_name: String,
        config: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let model: Model =
        serde_json::from_slice(config).map_err(|e| format!("its config.json: {e}"))?;
    let mut seen = HashMap::<String, usize>::new();
    let numbered = model.config.layers.into_iter().map(|layer| {
        let class = to_snake_case(&layer.class_name);
        let count = seen.entry(class.clone()).or_default();
        *count += 1;
        let key = match *count {
            1 => class,
            n => format!("{class}_{}", n - 1),
        };
        (key, layer.config.name)
    });
    Ok(numbered.collect())
}

/// Turns `BatchNormalization` into `batch_normalization`, and `Conv2D` into `conv2d`.
fn to_snake_case(class: &str) -> String {
    let mut text = String::new();
    let mut before = '\0';
    for c in class.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
        before = c;
    }
    text
}

/// Reads every variable below a group, by its layer.
fn collect_variables(
    group: &Group,
    path: &mut Vec<String>,
    names: &HashMap<String, String>,
    layers: &mut BTreeMap<String, Variables>,
) -> Result<(), String> {
    if path.len() > MAX_DEPTH {
        return Err(format!(
            "its groups are nested too deep at {}",
            path.join("/")
        ));
    }
    let (groups, datasets) = group.members().map_err(|e| e.to_string())?;
    for dataset in datasets {
        let read =
            |e: &dyn std::fmt::Display| format!("{}/{}: {e}", path.join("/"), dataset.name());
        let variable = dataset.name().trim_end_matches(":0").to_owned();
        let Some(layer) = find_layer(path, names) else {
            return Err(format!(
                "it has weights at {}/{}, which no Keras ResNet has: is it another network's file?",
                path.join("/"),
                dataset.name()
            ));
        };
        let values = dataset.read_array::<f32>().map_err(|e| read(&e))?;
        let dims = values.shape().to_vec();
        let values: Vec<f32> = values.iter().copied().collect();
        layers
            .entry(layer)
            .or_default()
            .insert(variable, (dims, values));
        let all = layers.values().flat_map(BTreeMap::values);
        if all.map(|(_, values)| values.len()).sum::<usize>() > MAX_NUMBERS {
            return Err("it has more numbers than any ResNet".to_owned());
        }
    }
    for inner in groups {
        // What the optimizer kept is no part of the network.
        if path.is_empty() && ["optimizer_weights", "optimizer"].contains(&inner.name()) {
            continue;
        }
        path.push(inner.name().to_owned());
        collect_variables(&inner, path, names, layers)?;
        path.pop();
    }
    Ok(())
}

/// Returns the layer that a path leads to: the innermost part that names one, so that a network
/// within a network is found too.
fn find_layer(path: &[String], names: &HashMap<String, String>) -> Option<String> {
    let inner = path
        .iter()
        .rev()
        .map(|part| names.get(part).unwrap_or(part));
    let wrapping = ["vars", "layers", "model_weights"];
    let mut own = inner.filter(|part| !wrapping.contains(&part.as_str()));
    let last = own.clone().next();
    // A classifier has whatever name its author gave it; its variables show what it is.
    own.find(|part| to_torchvision(part).is_some())
        .or(last)
        .cloned()
}

/// Translates a layer's name into torchvision's: `conv1_conv` into `conv1`, `conv3_block2_1_bn`
/// into `layer2.1.bn1`, `conv3_block1_0_conv` into `layer2.0.downsample.0`. `None` for other
/// layers.
fn to_torchvision(layer: &str) -> Option<String> {
    match layer {
        "conv1_conv" => return Some("conv1".to_owned()),
        "conv1_bn" => return Some("bn1".to_owned()),
        _ => {}
    }
    let mut parts = layer.strip_prefix("conv")?.split('_');
    let stage = parts.next()?.parse::<usize>().ok()?.checked_sub(1)?;
    let block = parts.next()?.strip_prefix("block")?;
    let block = block.parse::<usize>().ok()?.checked_sub(1)?;
    let within = match (parts.next()?, parts.next()?, parts.next()) {
        ("0", "conv", None) => "downsample.0".to_owned(),
        ("0", "bn", None) => "downsample.1".to_owned(),
        (index, kind @ ("conv" | "bn"), None) => format!("{kind}{}", index.parse::<usize>().ok()?),
        _ => return None,
    };
    Some(format!("layer{stage}.{block}.{within}"))
}

/// Returns the name of a variable. Keras 3's variables have numbers for names, in the order in
/// which their layer made them.
fn name_variable(name: &str, normalises: bool) -> &str {
    match (name, normalises) {
        ("0", false) => "kernel",
        ("1", false) => "bias",
        ("0", true) => "gamma",
        ("1", true) => "beta",
        ("2", true) => "moving_mean",
        ("3", true) => "moving_variance",
        (other, _) => other,
    }
}

/// Removes the biases of convolutions, which ours do not have. Taken off the mean of the batch norm
/// that follows, a bias gives the same sums.
fn fold_biases(layers: &mut BTreeMap<String, Variables>) -> Result<(), String> {
    for (name, variables) in layers.iter_mut() {
        let normalises = name.ends_with("_bn");
        let named = std::mem::take(variables).into_iter();
        *variables = named
            .map(|(key, value)| (name_variable(&key, normalises).to_owned(), value))
            .collect();
    }
    let convolutions: Vec<String> = layers
        .keys()
        .filter(|name| to_torchvision(name).is_some() && name.ends_with("_conv"))
        .cloned()
        .collect();
    for name in convolutions {
        let bias = layers
            .get_mut(&name)
            .and_then(|variables| variables.remove("bias"));
        let Some((_, bias)) = bias else {
            continue;
        };
        let norm = name.trim_end_matches("_conv").to_owned() + "_bn";
        let mean = layers
            .get_mut(&norm)
            .and_then(|variables| variables.get_mut("moving_mean"))
            .filter(|(_, mean)| mean.len() == bias.len())
            .ok_or_else(|| {
                format!(
                    "layer {name} has a bias of {}, but layer {norm} no mean of as many",
                    bias.len()
                )
            })?;
        for (mean, bias) in mean.1.iter_mut().zip(bias) {
            *mean -= bias;
        }
    }
    Ok(())
}

/// Brings a variable to torchvision's name and layout. In Keras convolutions are height, width, in,
/// out, and matrices are in, out.
fn convert_variable(
    layer: &str,
    variable: &str,
    dims: Vec<usize>,
    values: &[f32],
) -> Result<StoredTensor, String> {
    let unknown = || {
        format!(
            "layer {layer} has a variable {variable} of shape {dims:?}, which no Keras ResNet has: is \
             it another network's file?"
        )
    };
    let known = to_torchvision(layer);
    let part = match (known.is_some(), variable, dims.len()) {
        (true, "kernel", 4) | (false, "kernel", 2) => "weight",
        (false, "bias", 1) => "bias",
        (true, "gamma", 1) => "weight",
        (true, "beta", 1) => "bias",
        (true, "moving_mean", 1) => "running_mean",
        (true, "moving_variance", 1) => "running_var",
        _ => return Err(unknown()),
    };
    // The one layer that is no convolution and no norm: the classifier.
    let name = format!("{}.{part}", known.unwrap_or_else(|| "fc".to_owned()));
    Ok(match dims[..] {
        [height, width, inputs, outputs] => {
            let taps = height * width;
            let at = |o: usize, i: usize, tap: usize| values[(tap * inputs + i) * outputs + o];
            let moved: Vec<f32> = (0..outputs)
                .flat_map(|o| (0..inputs).map(move |i| (o, i)))
                .flat_map(|(o, i)| (0..taps).map(move |tap| at(o, i, tap)))
                .collect();
            StoredTensor::from_f32(name, vec![outputs, inputs, height, width], &moved)
        }
        [inputs, outputs] => {
            let moved: Vec<f32> = (0..outputs)
                .flat_map(|o| (0..inputs).map(move |i| values[i * outputs + o]))
                .collect();
            StoredTensor::from_f32(name, vec![outputs, inputs], &moved)
        }
        _ => StoredTensor::from_f32(name, dims, values),
    })
}
