//! Other programs' weights files into safetensors with a configuration: PyTorch's and Keras'. Runs no code of a file's, changes no number but
//! where a form demands it, and writes nothing before the whole network has been checked.

mod config;
mod keras;
mod pickle;
mod pytorch;

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};

use crate::architecture::Architecture;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::hub::{CONFIG_FILE, PREPROCESSOR_FILE};
use crate::opening::{CheckpointInfo, OpenCheckpoint, Overrides};
use crate::source::WeightsSource;

/// The most bytes of one file that are read: the hub's bound on weights, too.
const MAX_BYTES: u64 = 2 << 30;

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The configuration beside it.
    pub config: PathBuf,
    /// The network.
    pub architecture: Architecture,
    /// How many classes there are.
    pub classes: usize,
}

/// One tensor as it will be written.
struct Tensor {
    name: String,
    dims: Vec<usize>,
    dtype: Dtype,
    /// Little-endian, row-major.
    bytes: Vec<u8>,
}

impl Tensor {
    fn f32(name: String, dims: Vec<usize>, values: &[f32]) -> Self {
        Self {
            name,
            dims,
            dtype: Dtype::F32,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl View for &Tensor {
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

/// What a file gave: its tensors, and what is known of networks in its form.
struct Contents {
    tensors: Vec<Tensor>,
    origin: Origin,
}

/// Who wrote the file, where that decides something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    PyTorch,
    Keras,
}

/// Reads PyTorch's `.pth` or Keras' `.h5` or `.keras`, known by their bytes, and writes `output` with a `config.json` beside it.
///
/// A `config.json` beside `input` goes along as it is, with its `preprocessor_config.json`. Without one, `overrides` decide, and where they
/// say nothing, who wrote the file: Keras' ResNets are v1, prepared as Caffe's, with an epsilon of 1.001e-5.
///
/// # Errors
/// [`CheckpointError::Convert`] for a file that cannot be read or whose place is taken, and every error of loading what it holds. Nothing is
/// written then.
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
    let contents = read(input).map_err(failed)?;
    // Beside the output, so that the last step is a change of name.
    let stage = Stage::new(output)?;
    let views = contents.tensors.iter().map(|t| (t.name.as_str(), t));
    safetensors::serialize_to_file(views, None, &stage.weights())
        .map_err(|e| failed(e.to_string()))?;
    let loaded = target
        .complete(&stage, contents.origin, overrides)
        .and_then(|()| check(&stage))
        // The file that is named there will be gone.
        .map_err(|e| {
            failed(
                e.to_string()
                    .replace(&*stage.weights().to_string_lossy(), "in it"),
            )
        })?;
    target.take(&stage)?;
    Ok(Converted {
        weights: output.to_owned(),
        config: target.config,
        architecture: loaded.architecture,
        classes: loaded.classes,
    })
}

/// Goes the whole way that `--weights` goes, up to the network itself: what would not load is not written.
fn check(stage: &Stage) -> Result<CheckpointInfo, CheckpointError> {
    let source = WeightsSource::local(&stage.weights());
    let opened = OpenCheckpoint::open(&source, &Overrides::default())?;
    opened.check_tensors()?;
    Ok(opened.info)
}

/// Where the results go.
struct Target {
    weights: PathBuf,
    config: PathBuf,
    /// The configuration that goes along.
    described: Option<PathBuf>,
}

impl Target {
    fn new(input: &Path, output: &Path, overrides: &Overrides) -> Result<Self, String> {
        let config = output.with_file_name(CONFIG_FILE);
        let described = Some(input.with_file_name(CONFIG_FILE)).filter(|path| path.is_file());
        let says = overrides.variant.is_some()
            || overrides.preprocessing.is_some()
            || overrides.labels.is_some();
        if described.is_some() && says {
            return Err(format!(
                "there is a {CONFIG_FILE} beside it, which decides variant, preprocessing and labels: give those options where the result is loaded, or move it away"
            ));
        }
        let in_the_way = |path: &PathBuf| path.exists() && Some(path) != described.as_ref();
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
            described,
        })
    }

    /// Puts the configuration beside the staged weights.
    fn complete(
        &self,
        stage: &Stage,
        origin: Origin,
        overrides: &Overrides,
    ) -> Result<(), CheckpointError> {
        let config = stage.0.join(CONFIG_FILE);
        let Some(beside) = &self.described else {
            let checkpoint = Checkpoint::open(&stage.weights())?;
            let text = config::text(&checkpoint, origin, overrides)?;
            return std::fs::write(&config, text).map_err(|e| unwritten(&config, &e));
        };
        copy(beside, &config)?;
        let preprocessor = beside.with_file_name(PREPROCESSOR_FILE);
        if preprocessor.is_file() {
            copy(&preprocessor, &stage.0.join(PREPROCESSOR_FILE))?;
        }
        Ok(())
    }

    /// Moves everything to its place, the weights last.
    fn take(&self, stage: &Stage) -> Result<(), CheckpointError> {
        for name in [CONFIG_FILE, PREPROCESSOR_FILE] {
            let (from, to) = (stage.0.join(name), self.weights.with_file_name(name));
            if from.is_file() && !to.exists() {
                rename(&from, &to)?;
            }
        }
        rename(&stage.weights(), &self.weights)
    }
}

/// A folder of our own, gone with this value.
struct Stage(PathBuf);

impl Stage {
    fn new(output: &Path) -> Result<Self, CheckpointError> {
        let folder = output.with_file_name(format!(".imgclass-{}.tmp", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|e| unwritten(&folder, &e))?;
        Ok(Self(folder))
    }

    fn weights(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a temporary folder is left");
        }
    }
}

fn read(input: &Path) -> Result<Contents, String> {
    let mut file = File::open(input).map_err(|e| e.to_string())?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!(
            "it has {size} bytes; no ResNet needs more than {MAX_BYTES}"
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let origin = match bytes.get(..4) {
        Some(b"PK\x03\x04") if keras::is_archive(&bytes) => Origin::Keras,
        Some(b"PK\x03\x04") => Origin::PyTorch,
        Some(b"\x89HDF") => Origin::Keras,
        Some([0x80, 2..=5, ..]) => {
            return Err(
                "it is a pickle from before PyTorch 1.6: load it there with torch.load(..., weights_only=True) and save its state_dict again"
                    .to_owned(),
            );
        }
        _ => {
            return Err(
                "it is neither PyTorch's zip nor HDF5: expected .pth, .bin, .h5 or .keras"
                    .to_owned(),
            );
        }
    };
    let tensors = match origin {
        Origin::PyTorch => pytorch::tensors(&bytes)?,
        Origin::Keras => keras::tensors(bytes)?,
    };
    if tensors.is_empty() {
        return Err("there are no weights in it".to_owned());
    }
    Ok(Contents { tensors, origin })
}

/// The names of a zip archive's members.
fn members(bytes: &[u8]) -> Result<Vec<String>, String> {
    let archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let names = archive.file_names();
    let names = names.map(|name| {
        name.map(|name| name.into_owned())
            .map_err(|e| e.to_string())
    });
    names.collect()
}

/// A member of a zip archive, whole. Nothing is decompressed: PyTorch and Keras store.
fn member(bytes: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let mut archive =
        zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let entry = archive
        .by_name(name)
        .map_err(|e| format!("its member {name} cannot be read: {e}"))?;
    let mut content = Vec::new();
    entry
        .take(bytes.len() as u64)
        .read_to_end(&mut content)
        .map_err(|e| format!("its member {name} is damaged: {e}"))?;
    Ok(content)
}

fn copy(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    std::fs::copy(from, to)
        .map_err(|e| unwritten(to, &e))
        .map(drop)
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    std::fs::rename(from, to).map_err(|e| unwritten(to, &e))
}

fn unwritten(path: &Path, error: &std::io::Error) -> CheckpointError {
    CheckpointError::Convert {
        path: path.to_owned(),
        reason: format!("it cannot be written: {error}"),
    }
}
