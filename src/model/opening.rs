//! From a source of weights to what a network is built of: the checkpoint, what it says of itself, and the operator's word over that. It
//! runs nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::architecture::Architecture;
use super::checkpoint::{Checkpoint, LoadLog};
use super::classifier::{ModelInfo, Overrides};
use super::conv::Backend;
use super::description::Description;
use super::dtype::ComputeType;
use super::error::ModelError;
use super::formula::FormulaWeights;
use super::labels::{self, Label, LabelSource, Labels};
use super::pretrained::{Preset, PretrainedCfg};
use super::resnet::ResNet;
use super::source::WeightsSource;

/// The number of classes of the formula's network: ImageNet-1k's.
const RANDOM_CLASSES: usize = 1000;

/// Where `VarBuilder` takes its tensors from, and what is known of it before it does.
pub(super) struct Opened {
    pub(super) weights: Weights,
    pub(super) info: ModelInfo,
    /// What the checkpoint's configuration calls the classes, and its path.
    pub(super) labels: Option<(Vec<Label>, PathBuf)>,
}

pub(super) enum Weights {
    Formula(FormulaWeights),
    Checkpoint(Checkpoint),
}

/// Reads a source's files and finds out what is to be built of them.
pub(super) fn open(source: &WeightsSource, overrides: &Overrides) -> Result<Opened, ModelError> {
    let (weights, config, preprocessor, model, revision, declared_sha256) = match source {
        WeightsSource::Random { seed, architecture } => {
            return Ok(untrained(*seed, *architecture, overrides));
        }
        WeightsSource::Files {
            weights,
            config,
            preprocessor,
            model,
            revision,
            declared_sha256,
        } => (
            weights,
            config.as_deref(),
            preprocessor.as_deref(),
            model,
            revision,
            declared_sha256,
        ),
    };
    let description = match config {
        Some(config) => Description::read(config, preprocessor)?,
        None => Description::default(),
    };
    let checkpoint = Checkpoint::open(weights)?;
    let said = description.architecture;
    let architecture = over(said.unwrap_or(checkpoint.architecture()), overrides);
    let checkpoint = checkpoint.of_architecture(architecture);
    let classes = checkpoint.classes()?;
    let mut info = described(model.clone(), architecture, classes);
    info.revision.clone_from(revision);
    info.trained = true;
    info.sha256 = Some(checkpoint.verified_sha256(declared_sha256.as_deref())?);
    info.dtype = checkpoint.dtype()?;
    let preset = overrides.preprocessing.map(Preset::pretrained);
    info.pretrained = preset.unwrap_or(description.pretrained);
    if let (Some((said, field)), Some(path)) = (description.classes, config)
        && said != classes
    {
        let (layer, file) = (checkpoint.last_layer(), weights.display());
        return Err(ModelError::Config {
            path: path.to_owned(),
            reason: format!(
                "`{field}` says {said} classes, but `{layer}` in {file} has {classes} rows"
            ),
        });
    }
    Ok(Opened {
        weights: Weights::Checkpoint(checkpoint),
        info,
        labels: description.labels.zip(config.map(Path::to_owned)),
    })
}

fn untrained(seed: u64, architecture: Architecture, overrides: &Overrides) -> Opened {
    let architecture = over(architecture, overrides);
    let mut info = described("random".to_owned(), architecture, RANDOM_CLASSES);
    let preset = overrides.preprocessing.unwrap_or(Preset::Torchvision);
    info.pretrained = preset.pretrained();
    Opened {
        weights: Weights::Formula(FormulaWeights { seed }),
        info,
        labels: None,
    }
}

fn over(architecture: Architecture, overrides: &Overrides) -> Architecture {
    let variant = overrides.variant.unwrap_or(architecture.variant());
    architecture.with_variant(variant)
}

/// The largest file of labels that is read.
const MAX_LABEL_BYTES: u64 = 16 << 20;

/// The operator's labels, else the checkpoint's, else what fits the number of classes.
pub(super) fn named(
    own: Option<(Vec<Label>, PathBuf)>,
    file: Option<&Path>,
    classes: usize,
) -> Result<Labels, ModelError> {
    let (labels, path, source) = match (file, own) {
        (Some(file), _) => (read_labels(file)?, file.to_owned(), LabelSource::File),
        (None, Some((labels, path))) => (labels, path, LabelSource::Checkpoint),
        (None, None) => return Ok(Labels::for_classes(classes)),
    };
    if labels.len() != classes {
        return Err(ModelError::Labels {
            path,
            reason: format!(
                "there are {} of them, but the checkpoint has {classes} classes",
                labels.len()
            ),
        });
    }
    Ok(Labels::named(labels, source))
}

/// An operator's file of labels.
pub(super) fn read_labels(path: &Path) -> Result<Vec<Label>, ModelError> {
    let invalid = |reason: String| ModelError::Labels {
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

fn described(id: String, architecture: Architecture, classes: usize) -> ModelInfo {
    ModelInfo {
        id,
        revision: None,
        sha256: None,
        trained: false,
        dtype: "F32".to_owned(),
        compute_dtype: ComputeType::F32,
        device: String::new(),
        accelerated: false,
        isa: None,
        threads: 0,
        passes: 1,
        architecture,
        pretrained: PretrainedCfg::default(),
        classes,
        load_time: Duration::ZERO,
    }
}

impl Weights {
    /// The network, and its last layer's weights `[classes, features]`.
    pub(super) fn build(
        &self,
        architecture: &Architecture,
        classes: usize,
        backend: &Backend,
    ) -> Result<(ResNet, Vec<f32>), ModelError> {
        match self {
            Self::Formula(formula) => {
                Ok(build(Box::new(*formula), architecture, classes, backend)?)
            }
            Self::Checkpoint(checkpoint) => {
                let log = LoadLog::default();
                let tensors = checkpoint.backend(log.clone())?;
                let built = build(Box::new(tensors), architecture, classes, backend);
                if let Some(fault) = log.take_fault() {
                    return Err(fault);
                }
                let built = built?;
                checkpoint.nothing_left_over(&log)?;
                Ok(built)
            }
        }
    }
}

fn build<'a>(
    tensors: Box<dyn SimpleBackend + 'a>,
    architecture: &Architecture,
    classes: usize,
    backend: &Backend,
) -> candle_core::Result<(ResNet, Vec<f32>)> {
    // On the CPU and in f32 whatever the device: batch norms are folded in full precision, and what is cast and uploaded is the result.
    let vb: VarBuilder<'a> = VarBuilder::from_backend(tensors, DType::F32, Device::Cpu);
    let net = ResNet::load(&vb, architecture, classes, backend)?;
    let last = vb.get((classes, architecture.features()), "fc.weight")?;
    Ok((net, last.flatten_all()?.to_vec1()?))
}
