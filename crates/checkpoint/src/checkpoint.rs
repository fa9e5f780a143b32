//! Reads a safetensors file and hands out its tensors. Each tensor is checked when a layer asks for
//! it: name, shape, type and numbers. A tensor that no layer asked for is an error too, because it
//! belongs to another network.

mod header;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::naming::Naming;
use crate::tensors::TensorSource;

/// A whole safetensors file in memory, whose structure has been checked.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    bytes: Vec<u8>,
    naming: Naming,
    /// The network that the file is compared with: the one that its names are nearest to, unless a
    /// configuration says otherwise.
    architecture: Architecture,
}

impl Checkpoint {
    /// Reads the whole file and checks its structure.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`], or [`CheckpointError::NotSafetensors`] for a file that is
    /// cut off, of another format, or has two tensors of one name.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = std::fs::read(path).map_err(|reason| CheckpointError::Unreadable {
            path: path.to_owned(),
            reason,
        })?;
        let invalid = |reason: String| CheckpointError::NotSafetensors {
            path: path.to_owned(),
            reason,
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
        if let Some(name) = header::find_repeated_name(&bytes) {
            return Err(invalid(format!("tensor `{name}` is there twice")));
        }
        let names = tensors.names();
        let naming = Naming::detect(&names);
        let architecture = naming.architecture(&names);
        Ok(Self {
            path: path.to_owned(),
            bytes,
            naming,
            architecture,
        })
    }

    /// Returns the network that this file holds, as far as its tensors' names tell. Only loading
    /// the tensors shows whether it does.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Returns the same file, to be compared with this network.
    #[must_use]
    pub fn with_architecture(self, architecture: Architecture) -> Self {
        Self {
            architecture,
            ..self
        }
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, CheckpointError> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| CheckpointError::NotSafetensors {
            path: self.path.clone(),
            reason: e.to_string(),
        })
    }

    /// Returns the SHA-256 of the file, in lower-case hexadecimal.
    ///
    /// # Errors
    /// [`CheckpointError::Digest`] if it is not the one that the hub `declared`.
    pub fn verified_sha256(&self, declared: Option<&str>) -> Result<String, CheckpointError> {
        let found = hex::encode(Sha256::digest(&self.bytes));
        match declared {
            Some(declared) if declared != found => Err(CheckpointError::Digest {
                path: self.path.clone(),
                declared: declared.to_owned(),
                found,
            }),
            _ => Ok(found),
        }
    }

    /// Returns the number of classes: the rows of the last layer's weights.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] if there is no such layer or it has another shape.
    pub fn classes(&self) -> Result<usize, CheckpointError> {
        let name = self.last_layer();
        let tensors = self.tensors()?;
        let found = match tensors.tensor(&name) {
            Ok(view) => match view.shape() {
                &[classes, _] if classes > 0 => return Ok(classes),
                other => format!("shape {other:?}"),
            },
            Err(_) => describe_missing(&tensors, &name),
        };
        let features = self.architecture.features();
        let expected = format!("the last layer, [classes, {features}]");
        Err(self.misfit(&name, expected, found))
    }

    /// Returns the file's name of the last layer's weights.
    pub fn last_layer(&self) -> String {
        self.naming.file_name("fc.weight")
    }

    /// Returns the type of the stored weights, such as `F32`. It is that of the first convolution,
    /// and `unknown` if the file has none.
    ///
    /// # Errors
    /// [`CheckpointError::NotSafetensors`]; never after [`Checkpoint::open`].
    pub fn dtype(&self) -> Result<String, CheckpointError> {
        Ok(self
            .tensors()?
            .tensor(&self.naming.file_name("conv1.weight"))
            .map_or_else(
                |_| "unknown".to_owned(),
                |view| format!("{:?}", view.dtype()),
            ))
    }

    /// Returns the file's tensors, each to be checked as it is taken.
    ///
    /// # Errors
    /// [`CheckpointError::NotSafetensors`]; never after [`Checkpoint::open`].
    pub fn checked_tensors(&self) -> Result<CheckedTensors<'_>, CheckpointError> {
        Ok(CheckedTensors {
            checkpoint: self,
            tensors: self.tensors()?,
            taken: Mutex::default(),
        })
    }

    /// Returns an error that says what was found instead of a tensor.
    fn misfit(&self, tensor: &str, expected: String, found: String) -> CheckpointError {
        CheckpointError::Tensor {
            origin: self.path.display().to_string(),
            architecture: self.architecture.title(),
            tensor: tensor.to_owned(),
            expected,
            found,
        }
    }
}

/// The tensors of a checkpoint, which are checked one by one, and a record of those that were
/// taken.
#[derive(Debug)]
pub struct CheckedTensors<'a> {
    checkpoint: &'a Checkpoint,
    tensors: SafeTensors<'a>,
    /// The file's names of the tensors that layers took.
    taken: Mutex<BTreeSet<String>>,
}

impl CheckedTensors<'_> {
    /// Checks that every tensor was taken. The counters of batches are left aside: inference does
    /// not need them.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`], which names the first tensor that no layer took.
    pub fn check_all_taken(&self) -> Result<(), CheckpointError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.tensors.names();
        let left = names
            .iter()
            .find(|name| !name.ends_with("num_batches_tracked") && !taken.contains(**name));
        match left {
            None => Ok(()),
            Some(name) => Err(self.checkpoint.misfit(
                name,
                "no tensor of this name".to_owned(),
                "one: is it another network's file?".to_owned(),
            )),
        }
    }

    /// Reads and checks the tensor that the file calls `name`.
    fn read_checked(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let expected = || format!("shape {dims:?} of F32, F16 or BF16");
        let misfit = |found: String| self.checkpoint.misfit(name, expected(), found);
        let view = self
            .tensors
            .tensor(name)
            .map_err(|_| misfit(describe_missing(&self.tensors, name)))?;
        if view.shape() != dims {
            return Err(misfit(format!("shape {:?}", view.shape())));
        }
        let values = to_f32(view.dtype(), view.data())
            .ok_or_else(|| misfit(format!("type {:?}", view.dtype())))?;
        let is_variance = name.ends_with("running_var");
        let wrong = |x: &f32| !x.is_finite() || (is_variance && *x < 0.0);
        match values.iter().position(wrong) {
            Some(at) => Err(self.checkpoint.misfit(
                name,
                if is_variance {
                    "finite numbers, none below zero".to_owned()
                } else {
                    "finite numbers".to_owned()
                },
                format!("{} at element {at}", values[at]),
            )),
            None => Ok(values),
        }
    }
}

/// Describes a missing tensor: by the file's own name for it, if only a wrapper's prefix differs,
/// else by the file's first name.
fn describe_missing(tensors: &SafeTensors<'_>, name: &str) -> String {
    let suffix = format!(".{name}");
    let names = tensors.names();
    let candidates = names.iter().filter(|other| other.ends_with(&suffix));
    // Fewest parts first: `module.conv1.weight` is meant rather than `layer1.0.conv1.weight`.
    if let Some(other) = candidates.min_by_key(|other| other.split('.').count()) {
        return format!("no such tensor, but one named `{other}`");
    }
    let (count, first) = (names.len(), names.iter().min());
    let first = first.map_or_else(String::new, |first| format!(" such as `{first}`"));
    format!("no such tensor among its {count}{first}")
}

/// Returns little-endian numbers of a floating-point type as `f32`; `None` for other types.
fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = |widen: fn(u16) -> f32| {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|b| widen(u16::from_le_bytes(*b)))
            .collect()
    };
    match dtype {
        Dtype::F32 => Some(
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        ),
        Dtype::F16 => Some(halves(|bits| half::f16::from_bits(bits).to_f32())),
        Dtype::BF16 => Some(halves(|bits| half::bf16::from_bits(bits).to_f32())),
        _ => None,
    }
}

impl TensorSource for CheckedTensors<'_> {
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let name = self.checkpoint.naming.file_name(name);
        let values = self.read_checked(&name, dims)?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(name);
        Ok(values)
    }

    fn contains(&self, name: &str) -> bool {
        let name = self.checkpoint.naming.file_name(name);
        self.tensors.tensor(&name).is_ok()
    }
}
