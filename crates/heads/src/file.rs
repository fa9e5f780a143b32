//! The file of a head: safetensors with a JSON description in its metadata.
//!
//! | tensor | shape | what it holds |
//! |---|---|---|
//! | `weight` | `[classes, features]` | the weights, divided by the temperature |
//! | `bias` | `[classes]` | the biases, divided by the temperature |
//! | `familiarity.mean` | `[features]` | the mean of the training pictures' features |
//! | `familiarity.directions` | `[classes, features]` | the classes' mean directions |
//! | `familiarity.quantiles` | `[n]` | held-out scores, rising |
//!
//! All are F32. The metadata's only entry, `imgclass.head`, holds labels, network, recipe and
//! evaluation. Nothing in a file is trusted: sizes, shapes and numbers are checked before use.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::evaluation::Evaluation;
use crate::examples::LABEL_LENGTH;
use crate::familiarity::Familiarity;
use crate::head::{Head, NetworkId, Recipe};

/// The largest file that is read, in bytes. A head of 10,000 classes has 170 MB.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// The entry of the metadata that makes a safetensors file a head.
const KEY: &str = "imgclass.head";

/// The version of the format.
const VERSION: u32 = 1;

/// Why a head's file cannot be used.
#[derive(Debug, Error)]
pub enum HeadFileError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The file is no head, or a damaged one.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error("{}: it cannot be written: {reason}", path.display())]
    Unwritten {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// The JSON of the metadata.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    labels: Vec<String>,
    network: NetworkId,
    recipe: Recipe,
    evaluation: Evaluation,
}

impl Head {
    /// Reads a head, and returns it with the SHA-256 of its file in lower-case hexadecimal.
    ///
    /// # Errors
    /// [`HeadFileError`] says what is wrong with the file.
    pub fn read(path: &Path) -> Result<(Self, String), HeadFileError> {
        let unreadable = |reason| HeadFileError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let damaged = |reason| HeadFileError::Damaged {
            path: path.to_owned(),
            reason,
        };
        // Opening a FIFO would wait for somebody to write into it.
        let metadata = path.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(damaged("it is no regular file".to_owned()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(damaged(format!(
                "it has more than {MAX_FILE_BYTES} bytes, which no head has"
            )));
        }
        let head = Self::from_bytes(&bytes).map_err(damaged)?;
        Ok((head, hex::encode(Sha256::digest(&bytes))))
    }

    /// Reads a head from the bytes of a file.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let not_whole = |error| format!("it is no safetensors file, or not whole: {error}");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(not_whole)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(not_whole)?;
        let description = description(&metadata)?;
        let (classes, features) = match tensors.tensor("weight").map(|view| view.shape().to_vec()) {
            Ok(shape) => match shape[..] {
                [classes, features] if classes >= 2 && features >= 1 => (classes, features),
                _ => {
                    return Err(format!(
                        "tensor `weight` has the shape {shape:?}, expected [classes, features]"
                    ));
                }
            },
            Err(_) => return Err("there is no tensor `weight` in it".to_owned()),
        };
        check_labels(&description.labels, classes)?;
        let head = Self {
            labels: description.labels,
            dims: features,
            weights: numbers(&tensors, "weight", &[classes, features])?,
            bias: numbers(&tensors, "bias", &[classes])?,
            familiarity: Familiarity {
                mean: numbers(&tensors, "familiarity.mean", &[features])?,
                directions: numbers(&tensors, "familiarity.directions", &[classes, features])?,
                quantiles: quantiles(&tensors)?,
            },
            network: description.network,
            recipe: description.recipe,
            evaluation: description.evaluation,
        };
        match tensors
            .names()
            .into_iter()
            .find(|name| !NAMES.contains(name))
        {
            Some(extra) => Err(format!(
                "there is a tensor {extra:?} in it, which heads do not have"
            )),
            None => Ok(head),
        }
    }

    /// Returns the bytes of the head's file.
    ///
    /// # Errors
    /// A text that says what is wrong; never for a head that was trained or read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let description = Description {
            version: VERSION,
            labels: self.labels.clone(),
            network: self.network.clone(),
            recipe: self.recipe.clone(),
            evaluation: self.evaluation.clone(),
        };
        let json = serde_json::to_string(&description).map_err(|e| e.to_string())?;
        let (classes, features) = (self.labels.len(), self.dims);
        let familiarity = &self.familiarity;
        let tensors = [
            (vec![classes, features], &self.weights),
            (vec![classes], &self.bias),
            (vec![features], &familiarity.mean),
            (vec![classes, features], &familiarity.directions),
            (vec![familiarity.quantiles.len()], &familiarity.quantiles),
        ];
        let bytes = tensors.map(|(shape, values)| {
            (
                shape,
                values
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect::<Vec<u8>>(),
            )
        });
        let views = NAMES.iter().zip(&bytes).map(|(name, (shape, bytes))| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (*name, view))
        });
        let views = views
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        let metadata = HashMap::from([(KEY.to_owned(), json)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| e.to_string())
    }
}

/// The names of the tensors.
const NAMES: [&str; 5] = [
    "weight",
    "bias",
    "familiarity.mean",
    "familiarity.directions",
    "familiarity.quantiles",
];

fn description(metadata: &Metadata) -> Result<Description, String> {
    let json = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(KEY));
    let json = json.ok_or_else(|| {
        format!(
            "it is a safetensors file, but no head: its metadata has no entry {KEY:?}; \
             `imgclass train` writes heads"
        )
    })?;
    /// The part that every version has.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let wrong = |error: serde_json::Error| format!("its description is damaged: {error}");
    let Version { version } = serde_json::from_str(json).map_err(wrong)?;
    if version != VERSION {
        return Err(format!(
            "it is a head of version {version}, and this imgclass reads version {VERSION}: train it again, or update"
        ));
    }
    serde_json::from_str(json).map_err(wrong)
}

fn check_labels(labels: &[String], classes: usize) -> Result<(), String> {
    if labels.len() != classes {
        return Err(format!(
            "it has {} labels for {classes} classes",
            labels.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for label in labels {
        if label.trim().is_empty() || label.chars().count() > LABEL_LENGTH {
            return Err(format!(
                "label {} is empty or longer than {LABEL_LENGTH} characters",
                seen.len()
            ));
        }
        if !seen.insert(label) {
            return Err(format!("it has the label {label:?} twice"));
        }
    }
    Ok(())
}

/// Reads a tensor's numbers, all of which must be finite.
fn numbers(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let view = tensors
        .tensor(name)
        .map_err(|_| format!("there is no tensor `{name}` in it"))?;
    if view.shape() != shape || view.dtype() != Dtype::F32 {
        return Err(format!(
            "tensor `{name}` is {:?} {:?}, expected F32 {shape:?}",
            view.dtype(),
            view.shape()
        ));
    }
    let values: Vec<f32> = view
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    match values.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(format!(
            "element {at} of tensor `{name}` is {}, expected a finite number",
            values[at]
        )),
        None => Ok(values),
    }
}

fn quantiles(tensors: &SafeTensors<'_>) -> Result<Vec<f32>, String> {
    let name = "familiarity.quantiles";
    let shape = tensors
        .tensor(name)
        .map_or(Vec::new(), |view| view.shape().to_vec());
    let values = numbers(tensors, name, &shape)?;
    if shape.len() != 1 || values.is_empty() || !values.is_sorted() {
        return Err(format!("tensor `{name}` must be a list of rising numbers"));
    }
    Ok(values)
}
