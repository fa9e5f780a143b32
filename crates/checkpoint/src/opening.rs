//! Opens a source of weights: reads its files, compares what they say with each other, and lets the
//! operator's options override them. The result is everything that a network is built of.

use std::path::{Path, PathBuf};

use imgclass_image::Preprocessing;

use crate::architecture::{Architecture, Variant};
use crate::checkpoint::{self, Checkpoint, read_file};
use crate::description::{Description, Probabilities};
use crate::error::CheckpointError;
use crate::formula::FormulaWeights;
use crate::labels::{self, Label, LabelSource, Labels};
use crate::preprocessing::Preset;
use crate::quantised::{self, FloatCheckpoint, QuantisedFile};
use crate::source::{WeightsFiles, WeightsSource};
use crate::tensors::TensorSource;

/// An operator's options about a checkpoint whose own description is missing or wrong.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Where bottlenecks have their stride.
    pub variant: Option<Variant>,
    /// How images are prepared.
    pub preprocessing: Option<Preset>,
    /// A file that names the classes, one to a line in their order: names, or an id, a tab and
    /// names.
    pub labels: Option<PathBuf>,
}

/// What is known about a checkpoint before a network is built of it.
#[derive(Debug, Clone)]
pub struct CheckpointInfo {
    /// The hub's `owner/name`, the file's name, or `random`.
    pub id: String,
    /// The hub's commit, for a checkpoint from there.
    pub revision: Option<String>,
    /// The SHA-256 of the weights file, in lower-case hexadecimal; `None` where there is no file.
    pub sha256: Option<String>,
    /// The float checkpoint that the file's 8-bit integers were made from; `None` where the file is
    /// a float checkpoint itself.
    pub quantised_from: Option<FloatCheckpoint>,
    /// Whether the weights are trained. Those by formula are not, and their answers mean nothing.
    pub trained: bool,
    /// The type of the stored weights, such as `F32`.
    pub stored_type: String,
    /// The network.
    pub architecture: Architecture,
    /// How images must be prepared.
    pub preprocessing: Preprocessing,
    /// How many classes there are.
    pub classes: usize,
    /// How logits become probabilities.
    pub probabilities: Probabilities,
}

impl CheckpointInfo {
    /// Returns the SHA-256 of the float checkpoint: of the file itself, or of the one that its 8-bit
    /// integers were made from. `None` for weights by a formula, also as integers.
    #[must_use]
    pub fn float_digest(&self) -> Option<&str> {
        match &self.quantised_from {
            Some(float) => float.sha256.as_deref(),
            None => self.sha256.as_deref(),
        }
    }
}

/// A checkpoint whose files have been read and whose descriptions have been checked.
pub struct OpenCheckpoint {
    /// The weights, from which a network takes its tensors.
    pub weights: Weights,
    /// What is known about them.
    pub info: CheckpointInfo,
    /// The names of the classes, as many as there are classes.
    pub labels: Labels,
}

/// Weights that are ready to be taken.
#[derive(Debug)]
pub enum Weights {
    /// Weights by a formula, for untrained networks.
    Formula(FormulaWeights),
    /// Weights of a safetensors file.
    Checkpoint(Checkpoint),
    /// 8-bit integers that [`encode`](crate::encode) has written.
    Quantised(QuantisedFile),
}

/// The number of classes of the formula's network: ImageNet-1k's.
const RANDOM_CLASSES: usize = 1000;

impl Weights {
    /// Calls `take` with the tensors. The tensors of a file are checked as they are taken, and
    /// `take` must take all of them.
    ///
    /// # Errors
    /// Those of `take`, else [`CheckpointError::Tensor`] for a tensor that was left over.
    /// [`CheckpointError::Quantised`] for 8-bit integers, which are no float tensors.
    pub fn take_all<T, E: From<CheckpointError>>(
        &self,
        take: impl FnOnce(&dyn TensorSource) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Self::Formula(formula) => take(formula),
            Self::Checkpoint(checkpoint) => {
                let tensors = checkpoint.checked_tensors()?;
                let taken = take(&tensors)?;
                tensors.check_all_taken()?;
                Ok(taken)
            }
            Self::Quantised(file) => Err(file.needs_floats().into()),
        }
    }
}

impl OpenCheckpoint {
    /// Reads the files of a source and finds out what is to be built of them.
    ///
    /// # Errors
    /// [`CheckpointError`] for files that cannot be read, contradict each other or fit no network
    /// that we know. Tensors are read later, see [`Weights::take_all`].
    pub fn open(source: &WeightsSource, overrides: &Overrides) -> Result<Self, CheckpointError> {
        match source {
            WeightsSource::Random { seed, architecture } => {
                Self::open_formula(*seed, *architecture, overrides)
            }
            WeightsSource::Files(files) => Self::open_files(files, overrides),
        }
    }

    /// Reads every tensor of the network once and checks its name, shape, type and numbers.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] for the first one that does not fit, or that belongs to another
    /// network.
    pub fn check_tensors(&self) -> Result<(), CheckpointError> {
        let CheckpointInfo {
            architecture,
            classes,
            ..
        } = &self.info;
        self.weights.take_all(|tensors| {
            for (name, dims) in architecture.tensors(*classes) {
                tensors.tensor(&name, &dims)?;
            }
            Ok(())
        })
    }

    fn open_files(files: &WeightsFiles, overrides: &Overrides) -> Result<Self, CheckpointError> {
        let bytes = read_file(&files.weights)?;
        if quantised::is_quantised(&bytes) {
            return Self::open_quantised(files, bytes, overrides);
        }
        let config = files.config.as_deref();
        let description = match config {
            Some(config) => Description::read(config, files.preprocessor.as_deref())?,
            None => Description::default(),
        };
        let checkpoint = Checkpoint::from_bytes(&files.weights, bytes)?;
        if description.architecture.is_none() {
            warn_of_relatives(&files.weights, &files.model);
        }
        let said = description
            .architecture
            .unwrap_or(checkpoint.architecture());
        let architecture = override_variant(said, overrides);
        let checkpoint = checkpoint.with_architecture(architecture);
        let classes = checkpoint.classes()?;
        let sha256 = checkpoint.verified_sha256(files.declared_sha256.as_deref())?;
        if let (Some((said, field)), Some(path)) = (description.classes, config)
            && said != classes
        {
            let (layer, file) = (checkpoint.last_layer(), files.weights.display());
            return Err(CheckpointError::Config {
                path: path.to_owned(),
                reason: format!(
                    "`{field}` says {said} classes, but `{layer}` in {file} has {classes} rows"
                ),
            });
        }
        let preset = overrides.preprocessing.map(Preset::preprocessing);
        let own = description.labels.zip(config.map(Path::to_owned));
        Ok(Self {
            info: CheckpointInfo {
                id: files.model.clone(),
                revision: files.revision.clone(),
                sha256: Some(sha256),
                quantised_from: None,
                trained: true,
                stored_type: checkpoint.dtype()?,
                architecture,
                preprocessing: preset.unwrap_or(description.preprocessing),
                classes,
                probabilities: description.problem_type.probabilities(classes),
            },
            labels: choose_labels(own, overrides.labels.as_deref(), classes)?,
            weights: Weights::Checkpoint(checkpoint),
        })
    }

    /// Opens a file of 8-bit integers. What the integers depend on cannot be overridden any more.
    fn open_quantised(
        files: &WeightsFiles,
        bytes: Vec<u8>,
        overrides: &Overrides,
    ) -> Result<Self, CheckpointError> {
        let file = QuantisedFile::from_bytes(&files.weights, bytes)?;
        let sha256 = file.sha256();
        checkpoint::check_digest(&files.weights, &sha256, files.declared_sha256.as_deref())?;
        let described = file.description().info(&files.model, &sha256);
        let (mut info, own_labels) = described.map_err(|reason| file.refused(reason))?;
        info.revision.clone_from(&files.revision);
        let baked = |option: &str, value: &dyn std::fmt::Display| {
            file.refused(format!(
                "its integers are for {value}; give {option} to `imgclass weights quantize` instead"
            ))
        };
        if override_variant(info.architecture, overrides) != info.architecture {
            return Err(baked("--variant", &info.architecture.variant()));
        }
        let preset = overrides.preprocessing.map(Preset::preprocessing);
        if preset.is_some_and(|preset| preset != info.preprocessing) {
            return Err(baked("--preprocessing", &"other preprocessing"));
        }
        let labels = match &overrides.labels {
            Some(labels) => choose_labels(None, Some(labels), info.classes)?,
            None => own_labels,
        };
        Ok(Self {
            weights: Weights::Quantised(file),
            info,
            labels,
        })
    }

    fn open_formula(
        seed: u64,
        architecture: Architecture,
        overrides: &Overrides,
    ) -> Result<Self, CheckpointError> {
        let preset = overrides.preprocessing.unwrap_or(Preset::Torchvision);
        Ok(Self {
            weights: Weights::Formula(FormulaWeights { seed }),
            info: CheckpointInfo {
                id: "random".to_owned(),
                revision: None,
                sha256: None,
                quantised_from: None,
                trained: false,
                stored_type: "F32".to_owned(),
                architecture: override_variant(architecture, overrides),
                preprocessing: preset.preprocessing(),
                classes: RANDOM_CLASSES,
                probabilities: Probabilities::Exclusive,
            },
            labels: choose_labels(None, overrides.labels.as_deref(), RANDOM_CLASSES)?,
        })
    }
}

/// Relatives of our networks that have the same tensors, by the names that timm gives them.
const RELATIVES: [&str; 2] = ["resnetaa", "resnetblur"];

/// Warns where only a name tells that weights are those of another network, because no
/// configuration says which they are of.
fn warn_of_relatives(weights: &Path, model: &str) {
    let name = format!("{}/{model}", weights.display()).to_lowercase();
    if let Some(relative) = RELATIVES.iter().find(|relative| name.contains(**relative)) {
        tracing::warn!(
            weights = %weights.display(),
            "by its name this is a {relative}, whose tensors look like a ResNet's; without its \
             config.json it is taken for a ResNet, and its classes will be wrong"
        );
    }
}

/// Returns the network with the operator's variant, if there is one.
fn override_variant(architecture: Architecture, overrides: &Overrides) -> Architecture {
    let variant = overrides.variant.unwrap_or(architecture.variant());
    architecture.with_variant(variant)
}

/// The largest file of labels that is read, in bytes.
const MAX_LABEL_BYTES: u64 = 16 << 20;

/// Returns the operator's labels, else the checkpoint's own, else those that fit the number of
/// classes.
fn choose_labels(
    own: Option<(Vec<Label>, PathBuf)>,
    file: Option<&Path>,
    classes: usize,
) -> Result<Labels, CheckpointError> {
    let (labels, path, source) = match (file, own) {
        (Some(file), _) => (read_labels(file)?, file.to_owned(), LabelSource::File),
        (None, Some((labels, path))) => (labels, path, LabelSource::Checkpoint),
        (None, None) => return Ok(Labels::for_classes(classes)),
    };
    if labels.len() != classes {
        return Err(CheckpointError::Labels {
            path,
            reason: format!(
                "there are {} of them, but the checkpoint has {classes} classes",
                labels.len()
            ),
        });
    }
    Ok(Labels::named(labels, source))
}

/// Reads an operator's file of labels.
pub(super) fn read_labels(path: &Path) -> Result<Vec<Label>, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Labels {
        path: path.to_owned(),
        reason,
    };
    let size = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?;
    if size.len() > MAX_LABEL_BYTES {
        return Err(invalid(format!(
            "it has {} bytes; at most {MAX_LABEL_BYTES} are read",
            size.len()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    labels::parse(&text).map_err(invalid)
}
