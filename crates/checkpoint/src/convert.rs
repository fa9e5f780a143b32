//! Converts the weights files of PyTorch and Keras into safetensors with a configuration.
//!
//! No code in a file is run. Numbers change only where the other form demands it. What a file costs
//! in memory is a small multiple of its size, whatever it says about itself. The whole network is
//! checked before anything is written. Then the results go to a temporary folder beside the output,
//! are loaded from there as a user would load them, and move to their places.

mod archive;
mod config;
mod keras;
mod pickle;
mod pytorch;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use tempfile::TempDir;

use crate::architecture::Architecture;
use crate::checkpoint::{Checkpoint, MAX_BYTES};
use crate::error::CheckpointError;
use crate::hub::{CONFIG_FILE, PREPROCESSOR_FILE};
use crate::opening::{CheckpointInfo, OpenCheckpoint, Overrides};
use crate::source::WeightsSource;
use crate::tensors::TensorSource;
use crate::text::shown;

/// What a conversion has written.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The configuration beside it.
    pub config: PathBuf,
    /// The network.
    pub architecture: Architecture,
    /// The number of classes.
    pub classes: usize,
    /// Where the weights were found in the file, if there was a choice: one sentence each, without
    /// the full stop.
    pub notes: Vec<String>,
    /// The names of what the file holds beside the network's weights.
    pub left_out: Vec<String>,
}

/// A tensor as it will be written.
struct StoredTensor<'a> {
    name: String,
    dims: Vec<usize>,
    dtype: Dtype,
    /// Little-endian, row-major.
    bytes: Cow<'a, [u8]>,
}

impl StoredTensor<'_> {
    fn from_f32(name: String, dims: Vec<usize>, values: &[f32]) -> Self {
        Self {
            name,
            dims,
            dtype: Dtype::F32,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl View for &StoredTensor<'_> {
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

/// The weights of another program's file.
struct ForeignTensors<'a> {
    tensors: Vec<StoredTensor<'a>>,
    /// As in [`Converted`].
    notes: Vec<String>,
    /// As in [`Converted`].
    left_out: Vec<String>,
}

/// The program that wrote a file. It decides about a network where nothing else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    PyTorch,
    Keras,
}

/// Reads PyTorch's `.pth` or Keras' `.h5` or `.keras`, recognised by their bytes, and writes
/// `output` with a `config.json` beside it.
///
/// A `config.json` beside `input` is copied as it is, with its `preprocessor_config.json`. Without
/// one, `overrides` decide. Where they say nothing, the program that wrote the file decides: Keras'
/// ResNets are v1, prepared as Caffe's, with an epsilon of 1.001e-5.
///
/// # Errors
/// [`CheckpointError::Convert`] for a file that cannot be read, for a result that does not load,
/// and for a place that is taken. Nothing is written then.
pub fn convert(
    input: &Path,
    output: &Path,
    overrides: &Overrides,
) -> Result<Converted, CheckpointError> {
    let failed = |reason: String| CheckpointError::Convert {
        path: input.to_owned(),
        reason,
    };
    let target = Target::new(input, output, overrides).map_err(failed)?;
    let (file, origin) = read_foreign(input).map_err(failed)?;
    let foreign = match origin {
        Origin::PyTorch => pytorch::read_tensors(&file),
        Origin::Keras => keras::read_tensors(&file),
    };
    let ForeignTensors {
        tensors,
        notes,
        left_out,
    } = foreign.map_err(failed)?;
    let serialized = serialize(&tensors).map_err(failed)?;
    drop(tensors);
    drop(file);
    // The path stands in errors: "the weights in it do not fit ...".
    let checkpoint = Checkpoint::from_bytes(Path::new("in it"), serialized);
    let checkpoint = checkpoint.map_err(|e| failed(e.to_string()))?;
    check_whole(&checkpoint).map_err(|e| failed(e.to_string()))?;
    // Beside the output, so that the last step is a change of name.
    let stage = Stage::new(output)?;
    std::fs::write(stage.weights(), checkpoint.bytes()).map_err(|e| unwritten(output, &e))?;
    let loaded = target
        .write_config(&stage, &checkpoint, origin, overrides)
        .and_then(|()| {
            drop(checkpoint);
            load(&stage)
        })
        // The file that is named there will be gone.
        .map_err(|e| {
            failed(
                e.to_string()
                    .replace(&*stage.weights().to_string_lossy(), "in it"),
            )
        })?;
    target.move_results(&stage)?;
    stage.remove();
    Ok(Converted {
        weights: output.to_owned(),
        config: target.config,
        architecture: loaded.architecture,
        classes: loaded.classes,
        notes,
        left_out,
    })
}

/// Reads bytes as a file of PyTorch, as a pickle beside a few storages, or as HDF5.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    match bytes {
        [b'P', b'K', ..] => drop(pytorch::read_tensors(bytes).map(|_| ())),
        [0x80, ..] => {
            let storage = [0; 1024];
            let members = (0..8).map(|i| (format!("data/{i}"), &storage[..]));
            let archive = archive::Archive::of(members);
            let state = pickle::Pickle::read(bytes).and_then(|pickle| {
                let state = pytorch::read_state(&pickle, &archive, "", 1 << 16)?;
                serialize(&state.tensors)
            });
            drop(state);
        }
        _ => drop(keras::read_tensors(bytes).map(|_| ())),
    }
}

/// Returns the bytes of the safetensors file.
fn serialize(tensors: &[StoredTensor<'_>]) -> Result<Vec<u8>, String> {
    if tensors.is_empty() {
        return Err("there are no weights in it".to_owned());
    }
    let mut seen = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !seen.insert(&*tensor.name)) {
        return Err(format!(
            "its tensor `{}` is there twice",
            shown(&twice.name)
        ));
    }
    let views = tensors.iter().map(|tensor| (&*tensor.name, tensor));
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}

/// Checks every tensor against the network that the names show.
fn check_whole(checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let classes = checkpoint.classes()?;
    let tensors = checkpoint.checked_tensors()?;
    for (name, dims) in checkpoint.architecture().tensors(classes) {
        tensors.tensor(&name, &dims)?;
    }
    tensors.check_all_taken()
}

/// Loads the staged checkpoint as `--weights` does, up to the network itself. What does not load is
/// not written.
pub(super) fn load(stage: &Stage) -> Result<CheckpointInfo, CheckpointError> {
    let source = WeightsSource::local(&stage.weights());
    let opened = OpenCheckpoint::open(&source, &Overrides::default())?;
    opened.check_tensors()?;
    Ok(opened.info)
}

/// The places of the results.
pub(super) struct Target {
    weights: PathBuf,
    config: PathBuf,
    /// The configuration beside the input, which is copied.
    given_config: Option<PathBuf>,
}

impl Target {
    fn new(input: &Path, output: &Path, overrides: &Overrides) -> Result<Self, String> {
        let config = output.with_file_name(CONFIG_FILE);
        let given_config = Some(input.with_file_name(CONFIG_FILE)).filter(|path| path.is_file());
        let says = overrides.variant.is_some()
            || overrides.preprocessing.is_some()
            || overrides.labels.is_some();
        if given_config.is_some() && says {
            return Err(format!(
                "there is a {CONFIG_FILE} beside it, which decides variant, preprocessing and labels: \
                 give those options where the result is loaded, or move it away"
            ));
        }
        let in_the_way = |path: &PathBuf| path.exists() && Some(path) != given_config.as_ref();
        if let Some(path) = [output.to_owned(), config.clone()]
            .iter()
            .find(|path| in_the_way(path))
        {
            return Err(format!(
                "{} is there already: remove it, or name another place with --output",
                path.display()
            ));
        }
        Ok(Self {
            weights: output.to_owned(),
            config,
            given_config,
        })
    }

    /// Returns the places of results whose configuration is written anew.
    pub(super) fn free(output: &Path) -> Result<Self, String> {
        let config = output.with_file_name(CONFIG_FILE);
        if let Some(taken) = [output, &config].into_iter().find(|path| path.exists()) {
            return Err(format!(
                "{} is there already: remove it, or name a file in another folder with --output",
                taken.display()
            ));
        }
        Ok(Self {
            weights: output.to_owned(),
            config,
            given_config: None,
        })
    }

    /// Describes what was written.
    pub(super) fn converted(self, loaded: &CheckpointInfo) -> Converted {
        Converted {
            weights: self.weights,
            config: self.config,
            architecture: loaded.architecture,
            classes: loaded.classes,
            notes: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Puts the configuration beside the staged weights.
    fn write_config(
        &self,
        stage: &Stage,
        checkpoint: &Checkpoint,
        origin: Origin,
        overrides: &Overrides,
    ) -> Result<(), CheckpointError> {
        let config = stage.0.path().join(CONFIG_FILE);
        let Some(beside) = &self.given_config else {
            let text = config::make_config(checkpoint, origin, overrides)?;
            return std::fs::write(&config, text).map_err(|e| unwritten(&config, &e));
        };
        copy(beside, &config)?;
        let preprocessor = beside.with_file_name(PREPROCESSOR_FILE);
        if preprocessor.is_file() {
            copy(&preprocessor, &stage.0.path().join(PREPROCESSOR_FILE))?;
        }
        Ok(())
    }

    /// Moves everything to its place, the weights last.
    pub(super) fn move_results(&self, stage: &Stage) -> Result<(), CheckpointError> {
        for name in [CONFIG_FILE, PREPROCESSOR_FILE] {
            let (from, to) = (stage.0.path().join(name), self.weights.with_file_name(name));
            if from.is_file() && !to.exists() {
                rename(&from, &to)?;
            }
        }
        rename(&stage.weights(), &self.weights)
    }
}

/// A temporary folder beside the output. It is removed with this value, also after an error.
pub(super) struct Stage(TempDir);

impl Stage {
    pub(super) fn new(output: &Path) -> Result<Self, CheckpointError> {
        let parent = output.parent().unwrap_or(Path::new(""));
        let folder = std::fs::create_dir_all(parent).and_then(|()| {
            tempfile::Builder::new()
                .prefix(".imgclass-")
                .suffix(".tmp")
                .tempdir_in(parent)
        });
        folder.map(Self).map_err(|e| unwritten(output, &e))
    }

    /// Returns the folder.
    pub(super) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn weights(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }

    /// Removes the folder, with a warning in the log if it cannot be removed.
    pub(super) fn remove(self) {
        let path = self.0.path().to_owned();
        if let Err(error) = self.0.close() {
            tracing::warn!(path = %path.display(), %error, "a temporary folder is left");
        }
    }
}

/// Reads another program's file, which is recognised by its first bytes.
fn read_foreign(input: &Path) -> Result<(Vec<u8>, Origin), String> {
    if input.is_dir() {
        return Err("it is a folder: name the file in it".to_owned());
    }
    let file = File::open(input).map_err(|e| e.to_string())?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!(
            "it has {size} bytes; no ResNet needs more than {MAX_BYTES}"
        ));
    }
    let mut bytes = Vec::new();
    // A pipe's size is not known before it has been read.
    let mut file = file.take(MAX_BYTES);
    file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let origin = match bytes.get(..4) {
        Some(b"PK\x03\x04") if keras::is_archive(&bytes) => Origin::Keras,
        Some(b"PK\x03\x04") => Origin::PyTorch,
        Some(b"\x89HDF") => Origin::Keras,
        Some([0x80, 2..=5, ..]) => {
            return Err(
                "it is a pickle from before PyTorch 1.6: load it there with torch.load(..., \
                 weights_only=True) and save its state_dict again"
                    .to_owned(),
            );
        }
        _ if bytes.get(8) == Some(&b'{') => {
            return Err("it is a safetensors file: name it with --weights as it is".to_owned());
        }
        _ => {
            return Err(
                "it is neither PyTorch's zip nor HDF5: expected .pth, .bin, .h5 or .keras"
                    .to_owned(),
            );
        }
    };
    Ok((bytes, origin))
}

fn copy(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    std::fs::copy(from, to)
        .map_err(|e| unwritten(to, &e))
        .map(drop)
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    std::fs::rename(from, to).map_err(|e| unwritten(to, &e))
}

pub(super) fn unwritten(path: &Path, error: &std::io::Error) -> CheckpointError {
    CheckpointError::Convert {
        path: path.to_owned(),
        reason: format!("it cannot be written: {error}"),
    }
}
