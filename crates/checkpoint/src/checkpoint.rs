//! Reads a safetensors file and hands out its tensors. Each tensor is checked when a layer asks for
//! it: name, shape, type and numbers. A tensor that no layer asked for is an error too, because it
//! belongs to another network.

pub(crate) mod header;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::hub::shard_advice;
use crate::labels::MAX_CLASSES;
use crate::naming::Naming;
use crate::tensors::TensorSource;
use crate::text::shown;

/// The largest file that is read, in bytes. It is the hub's bound on weights, too. ResNet-152 in f64
/// has 482 MB.
pub(crate) const MAX_BYTES: u64 = 2 << 30;

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
    /// [`CheckpointError::Unreadable`]; [`CheckpointError::NotWeights`] for a folder, a part of split
    /// weights and other programs' files; [`CheckpointError::NotSafetensors`] for a file that is cut
    /// off, of an unknown format, or has two tensors of one name.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_bytes(path, read_file(path)?)
    }

    /// Does what [`Checkpoint::open`] does with a file that has been read. `path` is for errors.
    pub(super) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        let invalid = |reason: String| CheckpointError::NotSafetensors {
            path: path.to_owned(),
            reason,
        };
        header::check_length(&bytes).map_err(invalid)?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|e| invalid(shown(&e.to_string())))?;
        if let Some(name) = header::find_repeated_name(&bytes) {
            return Err(invalid(format!("tensor `{}` is there twice", shown(&name))));
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

    /// Returns the whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
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
        check_digest(&self.path, &found, declared)?;
        Ok(found)
    }

    /// Returns the number of classes: the rows of the last layer's weights.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] if there is no such layer or it has another shape.
    pub fn classes(&self) -> Result<usize, CheckpointError> {
        let name = self.last_layer();
        let tensors = self.tensors()?;
        let features = self.architecture.features();
        let found = match tensors.tensor(&name) {
            Ok(view) => match *view.shape() {
                [classes, inputs] if (1..=MAX_CLASSES).contains(&classes) && inputs == features => {
                    return Ok(classes);
                }
                ref other => format!("shape {other:?}"),
            },
            Err(_) => describe_missing(&tensors, &name),
        };
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
            tensor: shown(tensor),
            expected,
            found,
        }
    }
}

/// Compares a file's digest with the one that the hub declared, if it did.
pub(crate) fn check_digest(
    path: &Path,
    found: &str,
    declared: Option<&str>,
) -> Result<(), CheckpointError> {
    match declared {
        Some(declared) if declared != found => Err(CheckpointError::Digest {
            path: path.to_owned(),
            declared: declared.to_owned(),
            found: found.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Reads a whole file of bounded size. The error for anything that is not one safetensors file says
/// what to do with it.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let unreadable = |reason| CheckpointError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let unsuitable = |reason: String| CheckpointError::NotWeights {
        path: path.to_owned(),
        reason,
    };
    if path.is_dir() {
        return Err(unsuitable(describe_folder(path)));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(advice) = shard_advice(&name) {
        return Err(unsuitable(advice.to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    bytes.reserve_exact(usize::try_from(size.min(MAX_BYTES)).unwrap_or(0));
    let mut file = file.take(MAX_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unsuitable(format!(
            "it has more than {MAX_BYTES} bytes, which no ResNet needs"
        )));
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x89HDF") {
        return Err(unsuitable(format!(
            "it is a file of PyTorch or Keras: turn it into a safetensors file with `imgclass weights \
             convert {}`",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Says which file of a folder could be meant.
fn describe_folder(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    names.sort();
    let advice = match &names[..] {
        [] => "holds no *.safetensors file: name a file".to_owned(),
        [one] => format!("holds one: name it, {}", folder.join(one).display()),
        [first, ..] => match names.iter().find_map(|name| shard_advice(name)) {
            Some(advice) => return format!("it is a folder, and {advice}"),
            None => format!(
                "holds {} of them: name one, such as {}",
                names.len(),
                folder.join(first).display()
            ),
        },
    };
    format!("it is a folder, not a safetensors file; it {advice}")
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
                match find_relative(&names) {
                    Some(relative) => format!("one: it looks like {relative}"),
                    None => "one: is it another network's file?".to_owned(),
                },
            )),
        }
    }

    /// Reads and checks the tensor that the file calls `name`.
    fn read_checked(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let expected = || format!("shape {dims:?} of F32, F16, BF16 or F64");
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
    let names = tensors.names();
    if let Some(relative) = find_relative(&names) {
        return format!("no such tensor: it looks like {relative}");
    }
    let suffix = format!(".{name}");
    let candidates = names.iter().filter(|other| other.ends_with(&suffix));
    // Fewest parts first: `module.conv1.weight` is meant rather than `layer1.0.conv1.weight`.
    if let Some(other) = candidates.min_by_key(|other| other.split('.').count()) {
        return format!("no such tensor, but one named `{}`", shown(other));
    }
    let (count, first) = (names.len(), names.iter().min());
    let first = first.map_or_else(String::new, |first| format!(" such as `{}`", shown(first)));
    format!("no such tensor among its {count}{first}")
}

/// Returns the relative of our networks that tensors show by their names.
fn find_relative(names: &[&str]) -> Option<&'static str> {
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    if ends("conv1.0.weight") {
        Some("a ResNet-C, -D or -S, whose stem has several convolutions")
    } else if ends(".filt") {
        Some("a network with blurred pooling, such as timm's resnetblur")
    } else if has(".se.fc") || has(".se_module.") || has(".se.conv") {
        Some("a network with squeeze-and-excitation, such as timm's seresnet")
    } else {
        None
    }
}

/// Returns little-endian numbers of a floating-point type as `f32`; `None` for other types.
pub(crate) fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
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
        // A number that f32 cannot hold becomes infinite, which is refused.
        Dtype::F64 => Some(
            data.as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32)
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
