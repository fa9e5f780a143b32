//! The loaded model: weights, network, labels and what to tell people about them. One call runs a batch; no queue, no threads of its own
//! beyond the kernels' pool, no pixels.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::architecture::{Architecture, Variant};
use super::checkpoint::{Checkpoint, LoadLog};
use super::conv::Backend;
use super::description::Description;
use super::device::DeviceChoice;
use super::error::ModelError;
use super::formula::FormulaWeights;
use super::head;
use super::labels::{self, Label, LabelSource, Labels};
use super::pretrained::{Preset, PretrainedCfg};
use super::profile::{self, LayerTime};
use super::resnet::ResNet;
use super::source::WeightsSource;
use crate::kernels::{Isa, ThreadPool};

/// The number of classes of the formula's network: ImageNet-1k's.
const RANDOM_CLASSES: usize = 1000;

/// How to run the network.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The device to compute on.
    pub device: DeviceChoice,
    /// The CPU's instruction set by name; the best one that the processor has, where none is named.
    pub isa: Option<String>,
    /// Threads of the CPU's forward pass.
    pub threads: NonZeroUsize,
    /// What the operator says of the checkpoint, over what it says of itself.
    pub overrides: Overrides,
}

/// What an operator may say of a checkpoint that does not say it, or says it wrongly.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Where the stride is.
    pub variant: Option<Variant>,
    /// How images are prepared.
    pub preprocessing: Option<Preset>,
    /// A file that names the classes, one a line in their order: names, or an id, a tab and names.
    pub labels: Option<PathBuf>,
}

/// What is loaded, for people.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The hub's `owner/name`, a file's path, or `random`.
    pub id: String,
    /// The hub's commit.
    pub revision: Option<String>,
    /// SHA-256 of the weights file.
    pub sha256: Option<String>,
    /// False for weights by formula, whose answers mean nothing.
    pub trained: bool,
    /// The type of the stored weights; the CPU computes in `F32`.
    pub dtype: String,
    /// The device that computes, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The instruction set of the CPU's kernels; absent on other devices.
    pub isa: Option<String>,
    /// Threads of a forward pass on the CPU.
    pub threads: usize,
    /// The network.
    pub architecture: Architecture,
    /// How images must be prepared.
    pub pretrained: PretrainedCfg,
    /// How many classes there are.
    pub classes: usize,
    /// How long reading, checking, folding and packing took.
    pub load_time: Duration,
}

/// What a caller wants beside the logits, because it costs a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Want {
    /// The pooled features.
    pub features: bool,
    /// The last stage's output, for class activation maps.
    pub feature_map: bool,
}

/// One image's results.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// One per class.
    pub logits: Vec<f32>,
    /// The pooled features, where wanted: [`Architecture::features`] of them.
    pub features: Option<Vec<f32>>,
    /// `[features, h/32 * w/32]`, where wanted.
    pub feature_map: Option<Vec<f32>>,
}

/// The network with its labels.
pub struct Classifier {
    net: ResNet,
    backend: Backend,
    device: Device,
    labels: Labels,
    info: ModelInfo,
    /// The last layer's weights `[classes, features]`, which class activation maps need.
    class_weights: Vec<f32>,
}

/// Where `VarBuilder` takes its tensors from, and what is known of it before it does.
struct Opened {
    weights: Weights,
    info: ModelInfo,
    /// What the checkpoint's configuration calls the classes, and its path.
    labels: Option<(Vec<Label>, PathBuf)>,
}

enum Weights {
    Formula(FormulaWeights),
    Checkpoint(Checkpoint),
}

impl Classifier {
    /// Reads, checks and packs the weights. Takes well under a second on the CPU.
    pub fn load(source: &WeightsSource, options: &ModelOptions) -> Result<Self, ModelError> {
        let start = Instant::now();
        let (device, chosen) = options.device.open()?;
        let overrides = &options.overrides;
        let Opened {
            weights,
            mut info,
            labels,
        } = open(source, overrides)?;
        let labels = named(labels, overrides.labels.as_deref(), info.classes)?;
        info.device = chosen.to_string();
        let backend = match device {
            Device::Cpu => {
                let isa = match &options.isa {
                    Some(name) => Isa::named(name)?,
                    None => Isa::detect(),
                };
                info.isa = Some(isa.to_string());
                info.threads = options.threads.get();
                Backend::Packed {
                    isa,
                    pool: Arc::new(ThreadPool::new(options.threads)),
                }
            }
            _ => Backend::Candle,
        };
        let (net, class_weights) =
            weights.build(&info.architecture, info.classes, &device, &backend)?;
        info.load_time = start.elapsed();
        Ok(Self {
            net,
            backend,
            device,
            labels,
            info,
            class_weights,
        })
    }

    /// What is loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What the classes are called.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// How many numbers an input has: `3 * height * width`.
    pub fn input_len(&self) -> usize {
        let (height, width) = self.info.pretrained.input_size;
        3 * height * width
    }

    /// Runs images, each planar `[3, height, width]` and normalised, as one batch; the outputs come in the same order. All of them give
    /// what `want` asks for.
    pub fn forward(&self, images: &[&[f32]], want: Want) -> Result<Vec<Output>, ModelError> {
        self.forward_each(images, &vec![want; images.len()])
    }

    /// [`Classifier::forward`] where image `i` gives what `wants[i]` asks for: nobody pays for what a neighbour wants. An image without an
    /// entry gives logits alone.
    pub fn forward_each(
        &self,
        images: &[&[f32]],
        wants: &[Want],
    ) -> Result<Vec<Output>, ModelError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let expected = self.input_len();
        if let Some(wrong) = images.iter().find(|image| image.len() != expected) {
            return Err(ModelError::Input {
                expected,
                found: wrong.len(),
            });
        }
        let size = self.info.pretrained.input_size;
        let batch = self.backend.batch(images, size)?.to_device(&self.device)?;
        let forward = self.net.forward(&batch)?;
        let logits = rows(&forward.logits)?;
        let wants = wants
            .iter()
            .copied()
            .chain(std::iter::repeat(Want::default()));
        let outputs = logits.into_iter().zip(wants).enumerate();
        let outputs = outputs.map(|(index, (logits, want))| {
            let features = want.features.then(|| row(&forward.features, index));
            let feature_map = want.feature_map.then(|| {
                let map = forward.feature_map_of(index)?.flatten_from(1)?;
                row(&map, 0)
            });
            Ok(Output {
                logits,
                features: features.transpose()?,
                feature_map: feature_map.transpose()?,
            })
        });
        outputs.collect()
    }

    /// [`Classifier::forward`], also saying where its time went. Empty on devices other than the CPU.
    pub fn profile(&self, images: &[&[f32]]) -> Result<Vec<LayerTime>, ModelError> {
        let (outputs, layers) = profile::record(|| self.forward(images, Want::default()));
        outputs.map(|_| layers)
    }

    /// The class activation map of class `index` over an output's feature map: `[h/32 * w/32]`. `None` without such a class or map.
    pub fn class_activation_map(&self, output: &Output, index: usize) -> Option<Vec<f32>> {
        let features = self.info.architecture.features();
        let weights = self.class_weights.chunks_exact(features).nth(index)?;
        Some(head::class_activation_map(
            output.feature_map.as_deref()?,
            weights,
        ))
    }
}

fn row(matrix: &Tensor, index: usize) -> Result<Vec<f32>, candle_core::Error> {
    matrix
        .get(index)?
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .to_vec1::<f32>()
}

fn rows(matrix: &Tensor) -> Result<Vec<Vec<f32>>, candle_core::Error> {
    matrix
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .to_vec2::<f32>()
}

fn open(source: &WeightsSource, overrides: &Overrides) -> Result<Opened, ModelError> {
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
fn named(
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
        device: String::new(),
        isa: None,
        threads: 0,
        architecture,
        pretrained: PretrainedCfg::default(),
        classes,
        load_time: Duration::ZERO,
    }
}

impl Weights {
    fn build(
        &self,
        architecture: &Architecture,
        classes: usize,
        device: &Device,
        backend: &Backend,
    ) -> Result<(ResNet, Vec<f32>), ModelError> {
        match self {
            Self::Formula(formula) => Ok(build(
                Box::new(*formula),
                architecture,
                classes,
                device,
                backend,
            )?),
            Self::Checkpoint(checkpoint) => {
                let log = LoadLog::default();
                let tensors = checkpoint.backend(log.clone())?;
                let built = build(Box::new(tensors), architecture, classes, device, backend);
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
    device: &Device,
    backend: &Backend,
) -> candle_core::Result<(ResNet, Vec<f32>)> {
    let vb: VarBuilder<'a> = VarBuilder::from_backend(tensors, DType::F32, device.clone());
    let net = ResNet::load(&vb, architecture, classes, backend)?;
    let last = vb.get((classes, architecture.features()), "fc.weight")?;
    Ok((net, last.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?))
}
