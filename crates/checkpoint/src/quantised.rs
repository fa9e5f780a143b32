//! Files of 8-bit integers, which `imgclass weights quantize` writes and which load without
//! calibration.
//!
//! Such a file is a safetensors file. One entry of its metadata, `imgclass`, is a JSON object:
//!
//! ```text
//! { "sha256": the digest of the numbers and of the text of `quantised`,
//!   "quantised": { "recipe": 3, "architecture": "resnet50", ..., "float": { "sha256": ... } } }
//! ```
//!
//! The file describes itself whole: network, preprocessing, names of classes. A `config.json` beside
//! it is not read. Which tensors a layer has is the network's business; this module checks names,
//! shapes, types and numbers as tensors are taken, as it does for a float checkpoint.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use imgclass_image::{Preprocessing, Preprocessor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::architecture::{Architecture, Variant};
use crate::checkpoint::{header, to_f32};
use crate::description::Probabilities;
use crate::error::CheckpointError;
use crate::labels::{Label, LabelSource, Labels, MAX_CLASSES};
use crate::opening::CheckpointInfo;
use crate::text::shown;

/// The key of the metadata's entry.
const KEY: &str = "imgclass";

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    /// The digest of the numbers, as they lie in the file, and of the text of `quantised`.
    sha256: Cow<'a, str>,
    #[serde(borrow)]
    quantised: &'a RawValue,
}

/// What a file of 8-bit integers says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantisedDescription {
    /// The version of the recipe by which the integers were made.
    pub recipe: u32,
    /// The network's name, such as `resnet50`.
    architecture: String,
    /// Where bottlenecks have their stride, `v1` or `v1.5`.
    variant: String,
    /// How images are prepared. The normalisation is part of the stem's integers.
    preprocessing: Preprocessing,
    /// How many classes there are.
    classes: usize,
    /// Whether each class has a probability of its own.
    independent: bool,
    /// The names of the classes, where the number of classes does not tell them.
    labels: Option<Vec<StoredLabel>>,
    /// The float checkpoint.
    pub float: FloatCheckpoint,
    /// How the integers compare with the float network.
    pub comparison: Comparison,
}

/// The float checkpoint that integers were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatCheckpoint {
    /// The hub's `owner/name`, the file's name, or `random`.
    pub id: String,
    /// The hub's commit.
    pub revision: Option<String>,
    /// The SHA-256 of the file; `None` for weights by a formula.
    pub sha256: Option<String>,
    /// The type of its numbers, such as `F32`.
    pub stored_type: String,
    /// Whether it is trained.
    pub trained: bool,
}

/// How the network in 8-bit integers compared with the float network on the pictures of its
/// calibration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// How many pictures were compared.
    pub pictures: usize,
    /// For how many of them both had the same first class.
    pub same_class: usize,
    /// The root mean square of the differences between the logits, as a share of the standard
    /// deviation of the float logits.
    pub logit_error: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredLabel {
    wnid: Option<String>,
    name: String,
    names: Vec<String>,
}

impl QuantisedDescription {
    /// Describes the integers that were made of a float checkpoint.
    pub fn of(info: &CheckpointInfo, labels: &Labels, recipe: u32, comparison: Comparison) -> Self {
        let named = matches!(
            labels.source(),
            LabelSource::Checkpoint | LabelSource::File | LabelSource::Head
        );
        let stored = |label: &Label| StoredLabel {
            wnid: label.wnid.clone(),
            name: label.name.clone(),
            names: label.names.clone(),
        };
        Self {
            recipe,
            architecture: info.architecture.name().to_owned(),
            variant: info.architecture.variant().to_string(),
            preprocessing: info.preprocessing.clone(),
            classes: info.classes,
            independent: info.probabilities == Probabilities::Independent,
            labels: named.then(|| labels.iter().map(stored).collect()),
            float: FloatCheckpoint {
                id: info.id.clone(),
                revision: info.revision.clone(),
                sha256: info.sha256.clone(),
                stored_type: info.stored_type.clone(),
                trained: info.trained,
            },
            comparison,
        }
    }

    /// Returns the network.
    fn architecture(&self) -> Result<Architecture, String> {
        let named = Architecture::named(&self.architecture);
        let named =
            named.ok_or_else(|| format!("`{}` is no network", shown(&self.architecture)))?;
        Ok(named.with_variant(self.variant.parse::<Variant>()?))
    }

    /// Returns what is known of the checkpoint, and its labels. `id` is the file's name.
    pub(crate) fn info(&self, id: &str, sha256: &str) -> Result<(CheckpointInfo, Labels), String> {
        if !(1..=MAX_CLASSES).contains(&self.classes) {
            return Err(format!("it has {} classes", self.classes));
        }
        Preprocessor::new(self.preprocessing.clone()).map_err(|error| error.to_string())?;
        let labels = match &self.labels {
            None => Labels::for_classes(self.classes),
            Some(stored) if stored.len() == self.classes => {
                let label = |stored: &StoredLabel| Label {
                    wnid: stored.wnid.clone(),
                    name: stored.name.clone(),
                    names: stored.names.clone(),
                };
                let labels = stored.iter().map(label).collect();
                Labels::named(labels, LabelSource::Checkpoint)
            }
            Some(stored) => {
                let (names, classes) = (stored.len(), self.classes);
                return Err(format!("it has {names} names for {classes} classes"));
            }
        };
        let info = CheckpointInfo {
            id: id.to_owned(),
            revision: None,
            sha256: Some(sha256.to_owned()),
            quantised_from: Some(self.float.clone()),
            trained: self.float.trained,
            stored_type: "I8".to_owned(),
            architecture: self.architecture()?,
            preprocessing: self.preprocessing.clone(),
            classes: self.classes,
            probabilities: if self.independent {
                Probabilities::Independent
            } else {
                Probabilities::Exclusive
            },
        };
        Ok((info, labels))
    }
}

/// A tensor of a file that is to be written.
#[derive(Debug, Clone)]
pub struct QuantisedTensor {
    /// The name.
    pub name: String,
    /// The dimensions.
    pub dims: Vec<usize>,
    /// The numbers, row-major.
    pub numbers: StoredNumbers,
}

/// The numbers of a tensor in one of the types that such a file has.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredNumbers {
    /// 8-bit integers.
    Integers(Vec<i8>),
    /// Bytes.
    Bytes(Vec<u8>),
    /// 32-bit floats.
    Floats(Vec<f32>),
    /// 32-bit floats whose lower half is zero; two bytes each are stored.
    Bf16(Vec<f32>),
}

impl StoredNumbers {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Integers(_) => Dtype::I8,
            Self::Bytes(_) => Dtype::U8,
            Self::Floats(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::BF16,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Integers(integers) => integers.iter().map(|x| x.cast_unsigned()).collect(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Floats(floats) => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Bf16(floats) => floats
                .iter()
                .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
        }
    }
}

/// The bytes of a tensor, for the safetensors crate.
struct Encoded {
    dims: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl View for &Encoded {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Returns the bytes of a file of 8-bit integers.
///
/// # Errors
/// A text that says which tensor cannot be written: one whose dimensions do not fit its numbers.
pub fn encode(
    description: &QuantisedDescription,
    tensors: &[QuantisedTensor],
) -> Result<Vec<u8>, String> {
    let encoded: Vec<(&str, Encoded)> = tensors
        .iter()
        .map(|tensor| {
            let encoded = Encoded {
                dims: tensor.dims.clone(),
                dtype: tensor.numbers.dtype(),
                bytes: tensor.numbers.bytes(),
            };
            (tensor.name.as_str(), encoded)
        })
        .collect();
    let views = || encoded.iter().map(|(name, encoded)| (*name, encoded));
    let fault = |error: safetensors::SafeTensorError| error.to_string();
    // The crate decides about the order of the numbers, so it lays them out once without the entry.
    let plain = safetensors::serialize(views(), None).map_err(fault)?;
    let text = serde_json::to_string(description).map_err(|error| error.to_string())?;
    let sha256 = digest(numbers_of(&plain), &text);
    drop(plain);
    let entry = Entry {
        sha256: Cow::Borrowed(&sha256),
        quantised: &RawValue::from_string(text).map_err(|error| error.to_string())?,
    };
    let entry = serde_json::to_string(&entry).map_err(|error| error.to_string())?;
    let metadata = HashMap::from([(KEY.to_owned(), entry)]);
    safetensors::serialize(views(), Some(metadata)).map_err(fault)
}

/// Returns what follows the header of a safetensors file.
fn numbers_of(file: &[u8]) -> &[u8] {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return &[];
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    rest.get(length..).unwrap_or_default()
}

fn digest(numbers: &[u8], text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(numbers);
    hash.update(text);
    hex::encode(hash.finalize())
}

/// A file of 8-bit integers in memory, whose description has been checked.
#[derive(Debug)]
pub struct QuantisedFile {
    path: PathBuf,
    bytes: Vec<u8>,
    description: QuantisedDescription,
    title: &'static str,
}

/// Returns the metadata's entry of a file of 8-bit integers; `None` for every other file.
fn entry_of(bytes: &[u8]) -> Option<String> {
    header::check_length(bytes).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    metadata.metadata().as_ref()?.get(KEY).cloned()
}

/// Whether a file is one of 8-bit integers.
pub(crate) fn is_quantised(bytes: &[u8]) -> bool {
    entry_of(bytes).is_some()
}

impl QuantisedFile {
    /// Checks the structure, the description and the digest of a file that has been read.
    ///
    /// # Errors
    /// [`CheckpointError::NotSafetensors`] for a file that is cut off, and
    /// [`CheckpointError::Quantised`] for a description that cannot be used and for a digest that
    /// is not that of the numbers.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        let damaged = |reason: String| CheckpointError::NotSafetensors {
            path: path.to_owned(),
            reason,
        };
        let refused = |reason: String| CheckpointError::Quantised {
            path: path.to_owned(),
            reason,
        };
        header::check_length(&bytes).map_err(damaged)?;
        SafeTensors::deserialize(&bytes).map_err(|e| damaged(shown(&e.to_string())))?;
        if let Some(name) = header::find_repeated_name(&bytes) {
            return Err(damaged(format!("tensor `{}` is there twice", shown(&name))));
        }
        let entry = entry_of(&bytes).ok_or_else(|| refused("it has no description".to_owned()))?;
        let unreadable = |error: serde_json::Error| {
            refused(format!(
                "its description cannot be read: {}; quantise the float checkpoint with this \
                 version of imgclass",
                shown(&error.to_string())
            ))
        };
        let entry: Entry = serde_json::from_str(&entry).map_err(unreadable)?;
        let text = entry.quantised.get();
        let found = digest(numbers_of(&bytes), text);
        if found != entry.sha256 {
            return Err(refused(format!(
                "its numbers have the SHA-256 {found}, but it says {}: it was damaged or changed; \
                 copy it again, or quantise the float checkpoint again",
                shown(&entry.sha256)
            )));
        }
        let description: QuantisedDescription = serde_json::from_str(text).map_err(unreadable)?;
        let title = description.architecture().map_err(refused)?.title();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            description,
            title,
        })
    }

    /// Returns what the file says of itself.
    #[must_use]
    pub fn description(&self) -> &QuantisedDescription {
        &self.description
    }

    /// Returns the whole file.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the SHA-256 of the whole file, in lower-case hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.bytes))
    }

    /// Returns the error that says why the file cannot be used.
    #[must_use]
    pub fn refused(&self, reason: String) -> CheckpointError {
        CheckpointError::Quantised {
            path: self.path.clone(),
            reason,
        }
    }

    /// Returns the error for a use that needs the float checkpoint.
    pub(crate) fn needs_floats(&self) -> CheckpointError {
        let float = &self.description.float;
        let digest = match &float.sha256 {
            Some(sha256) => format!(" (sha256 {})", shown(sha256)),
            None => String::new(),
        };
        self.refused(format!(
            "its weights are 8-bit integers, and this needs the float checkpoint that they were made \
             from: {}{digest}",
            shown(&float.id)
        ))
    }

    /// Returns the file's tensors, each to be checked as it is taken.
    ///
    /// # Errors
    /// [`CheckpointError::NotSafetensors`]; never for a file that was checked.
    pub fn tensors(&self) -> Result<QuantisedTensors<'_>, CheckpointError> {
        let tensors =
            SafeTensors::deserialize(&self.bytes).map_err(|e| CheckpointError::NotSafetensors {
                path: self.path.clone(),
                reason: e.to_string(),
            })?;
        Ok(QuantisedTensors {
            file: self,
            tensors,
            taken: Mutex::default(),
        })
    }
}

/// The tensors of a file of 8-bit integers, which are checked one by one, and a record of those that
/// were taken.
#[derive(Debug)]
pub struct QuantisedTensors<'a> {
    file: &'a QuantisedFile,
    tensors: SafeTensors<'a>,
    taken: Mutex<BTreeSet<String>>,
}

impl QuantisedTensors<'_> {
    /// Returns the numbers of a tensor that must have exactly the dimensions `dims` and a type that
    /// `types` names.
    fn numbers(
        &self,
        name: &str,
        dims: &[usize],
        types: &[Dtype],
    ) -> Result<StoredNumbers, CheckpointError> {
        let types_text = || {
            let types: Vec<String> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
            types.join(" or ")
        };
        let misfit =
            |found| self.misfit(name, format!("shape {dims:?} of {}", types_text()), found);
        let view: TensorView = self
            .tensors
            .tensor(name)
            .map_err(|_| misfit("no such tensor".to_owned()))?;
        if view.shape() != dims {
            return Err(misfit(format!("shape {:?}", view.shape())));
        }
        if !types.contains(&view.dtype()) {
            return Err(misfit(format!("type {:?}", view.dtype())));
        }
        let floats = || to_f32(view.dtype(), view.data()).unwrap_or_default();
        let numbers = match view.dtype() {
            Dtype::I8 => {
                let integers = view.data().iter().map(|byte| byte.cast_signed());
                StoredNumbers::Integers(integers.collect())
            }
            Dtype::U8 => StoredNumbers::Bytes(view.data().to_vec()),
            Dtype::BF16 => StoredNumbers::Bf16(floats()),
            _ => StoredNumbers::Floats(floats()),
        };
        if let StoredNumbers::Floats(floats) | StoredNumbers::Bf16(floats) = &numbers
            && let Some(at) = floats.iter().position(|x| !x.is_finite())
        {
            let found = format!("{} at element {at}", floats[at]);
            return Err(self.misfit(name, "finite numbers".to_owned(), found));
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(name.to_owned());
        Ok(numbers)
    }

    /// Returns a layer's weights: [`StoredNumbers::Integers`] or [`StoredNumbers::Bf16`].
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] if there is no such tensor, or its shape, type or numbers cannot
    /// be used. The same holds for the other methods that return numbers.
    pub fn weights(&self, name: &str, dims: &[usize]) -> Result<StoredNumbers, CheckpointError> {
        self.numbers(name, dims, &[Dtype::I8, Dtype::BF16])
    }

    /// Returns 8-bit integers.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn integers(&self, name: &str, dims: &[usize]) -> Result<Vec<i8>, CheckpointError> {
        match self.numbers(name, dims, &[Dtype::I8])? {
            StoredNumbers::Integers(integers) => Ok(integers),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns bytes.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn bytes(&self, name: &str, dims: &[usize]) -> Result<Vec<u8>, CheckpointError> {
        match self.numbers(name, dims, &[Dtype::U8])? {
            StoredNumbers::Bytes(bytes) => Ok(bytes),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns finite numbers.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn floats(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        match self.numbers(name, dims, &[Dtype::F32])? {
            StoredNumbers::Floats(floats) => Ok(floats),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns scales: finite numbers above zero.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn scales(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let scales = self.floats(name, dims)?;
        // A denormal scale would make infinite numbers of what is divided by it.
        match scales.iter().position(|x| !(x.is_normal() && *x > 0.0)) {
            None => Ok(scales),
            Some(at) => Err(self.misfit(
                name,
                "normal numbers above zero".to_owned(),
                format!("{} at element {at}", scales[at]),
            )),
        }
    }

    /// Checks that every tensor was taken.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`], which names the first tensor that no layer took.
    pub fn check_all_taken(&self) -> Result<(), CheckpointError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.tensors.names();
        names.sort_unstable();
        match names.iter().find(|name| !taken.contains(**name)) {
            None => Ok(()),
            Some(name) => {
                Err(self.misfit(name, "no tensor of this name".to_owned(), "one".to_owned()))
            }
        }
    }

    fn misfit(&self, tensor: &str, expected: String, found: String) -> CheckpointError {
        CheckpointError::Tensor {
            origin: self.file.path.display().to_string(),
            architecture: self.file.title,
            tensor: shown(tensor),
            expected,
            found,
        }
    }
}
