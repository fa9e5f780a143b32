//! Reads Keras' weights of its ResNets (`keras/src/applications/resnet.py`), from HDF5 files of
//! either generation and from `.keras` archives, and brings them to torchvision's names and
//! layouts. Layers are recognised by the names that Keras gave them.

use std::collections::{BTreeMap, HashMap};

use hdf5_reader::dataset::Dataset;
use hdf5_reader::group::Group;
use hdf5_reader::{Hdf5File, OpenOptions};
use serde::Deserialize;

use super::archive::Archive;
use super::{ForeignTensors, StoredTensor};
use crate::text::shown;

/// The member of a `.keras` archive that holds the weights.
const ARCHIVED_WEIGHTS: &str = "model.weights.h5";

/// The deepest nesting of groups that is read. Keras nests five deep, but links can be made to go
/// round.
const MAX_DEPTH: usize = 12;

/// The most numbers that are read, which is half a gigabyte of them. A ResNet-152 has 60 million, but
/// links can show the same ones again and again.
const MAX_NUMBERS: usize = 128 << 20;

/// How many numbers a file may have for each of its bytes. Halves take two bytes, and weights can
/// hardly be compressed; but a data set that was never written, or that holds the same number all
/// over, takes none.
const NUMBERS_PER_BYTE: usize = 1;

/// The most groups and datasets that are looked at. A ResNet-152 has 2,000, and its optimizer's
/// state, where it is not at the root, twice as many. Links can show the same ones again and again.
const MAX_VISITS: usize = 50_000;

/// The variables of one layer by their names: dimensions and values.
type Variables = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Returns whether a zip archive is one of Keras'.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    Archive::read(bytes).is_ok_and(|archive| archive.find(ARCHIVED_WEIGHTS).is_some())
}

/// Reads the network's tensors from a `.h5` file or a `.keras` archive.
pub(super) fn read_tensors(bytes: &[u8]) -> Result<ForeignTensors<'_>, String> {
    let (weights, names) = if bytes.starts_with(b"PK") {
        let archive = Archive::read(bytes)?;
        let names = read_layer_names(archive.member("config.json")?)?;
        (archive.member(ARCHIVED_WEIGHTS)?, names)
    } else {
        (bytes, HashMap::new())
    };
    let options = OpenOptions::default().with_max_read_bytes(size_of::<f32>() * MAX_NUMBERS);
    let file =
        Hdf5File::from_vec_with_options(weights.to_vec(), options).map_err(|e| e.to_string())?;
    let mut reader = Reader {
        names: &names,
        layers: BTreeMap::new(),
        visits: 0,
        numbers: 0,
        most_numbers: MAX_NUMBERS.min(bytes.len() * NUMBERS_PER_BYTE),
    };
    let root = file.root_group().map_err(|e| e.to_string())?;
    reader.collect_variables(&root, &mut Vec::new())?;
    let mut layers = reader.layers;
    if names.is_empty() && layers.contains_key("batch_normalization") {
        return Err(
            "its layers have numbers for names, as in Keras 3's .weights.h5: save the whole model, \
             as .keras or .h5"
                .to_owned(),
        );
    }
    fold_biases(&mut layers)?;
    let mut tensors = Vec::new();
    let mut owners = HashMap::new();
    for (layer, variables) in layers {
        for (variable, (dims, values)) in variables {
            let tensor = convert_variable(&layer, &variable, dims, &values)?;
            if let Some(other) = owners.insert(tensor.name.clone(), layer.clone()) {
                return Err(format!(
                    "its layers `{}` and `{}` would both be `{}`: a ResNet of ours has one dense \
                     layer, so a model with a further one cannot be converted",
                    shown(&other),
                    shown(&layer),
                    tensor.name
                ));
            }
            tensors.push(tensor);
        }
    }
    Ok(ForeignTensors {
        tensors,
        notes: Vec::new(),
        left_out: Vec::new(),
    })
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

/// Reads the variables of a file, within a budget.
struct Reader<'a> {
    /// The layers' own names, as [`read_layer_names`] has them.
    names: &'a HashMap<String, String>,
    layers: BTreeMap<String, Variables>,
    visits: usize,
    numbers: usize,
    most_numbers: usize,
}

impl Reader<'_> {
    /// Reads every variable below a group, by its layer.
    fn collect_variables(&mut self, group: &Group, path: &mut Vec<String>) -> Result<(), String> {
        if path.len() > MAX_DEPTH {
            let path = shown(&path.join("/"));
            return Err(format!("its groups are nested too deep at {path}"));
        }
        let (groups, datasets) = group.members().map_err(|e| e.to_string())?;
        self.visits += 1 + groups.len() + datasets.len();
        if self.visits > MAX_VISITS {
            return Err(format!(
                "it has more than {MAX_VISITS} groups and datasets, more than any ResNet: do links \
                 lead to the same ones again and again?"
            ));
        }
        for dataset in datasets {
            self.read_variable(&dataset, path)?;
        }
        for inner in groups {
            // What the optimizer kept is no part of the network.
            if path.is_empty() && ["optimizer_weights", "optimizer"].contains(&inner.name()) {
                continue;
            }
            path.push(inner.name().to_owned());
            self.collect_variables(&inner, path)?;
            path.pop();
        }
        Ok(())
    }

    fn read_variable(&mut self, dataset: &Dataset, path: &[String]) -> Result<(), String> {
        let place = || shown(&format!("{}/{}", path.join("/"), dataset.name()));
        let layer = find_layer(path, self.names).ok_or_else(|| {
            format!(
                "it has weights at {}, which no Keras ResNet has: is it another network's file?",
                place()
            )
        })?;
        let sides = dataset.shape().iter().copied();
        let count = sides.fold(1u64, u64::saturating_mul);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(format!(
                "the variable at {} has no numbers, its shape is {:?}",
                place(),
                dataset.shape()
            ));
        }
        self.numbers = self.numbers.saturating_add(count);
        if self.numbers > self.most_numbers {
            return Err(format!(
                "it has more numbers than any ResNet, or than its bytes can hold, at {}",
                place()
            ));
        }
        let values = dataset
            .read_array::<f32>()
            .map_err(|e| format!("{}: {e}", place()))?;
        let dims = values.shape().to_vec();
        let values: Vec<f32> = values.iter().copied().collect();
        let variable = dataset.name().trim_end_matches(":0").to_owned();
        let variables = self.layers.entry(layer.clone()).or_default();
        if variables.insert(variable, (dims, values)).is_some() {
            return Err(format!(
                "the variable at {} is there twice in layer `{}`",
                place(),
                shown(&layer)
            ));
        }
        Ok(())
    }
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
) -> Result<StoredTensor<'static>, String> {
    let unknown = || {
        format!(
            "layer {} has a variable {} of shape {dims:?}, which no Keras ResNet has: is it another \
             network's file?",
            shown(layer),
            shown(variable)
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
