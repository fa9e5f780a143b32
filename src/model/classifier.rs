//! The loaded model: weights, network, labels and what to tell people about them. One call runs a batch; no queue, no threads of its own
//! beyond the kernels' pool, no pixels.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::checkpoint::{Checkpoint, LoadLog};
use super::conv::Backend;
use super::device::DeviceChoice;
use super::error::ModelError;
use super::formula::FormulaWeights;
use super::head;
use super::labels::Labels;
use super::pretrained::PretrainedCfg;
use super::profile::{self, LayerTime};
use super::resnet::ResNet50;
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
    /// The 2048 pooled features.
    pub features: bool,
    /// The last stage's output, for class activation maps.
    pub feature_map: bool,
}

/// One image's results.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// One per class.
    pub logits: Vec<f32>,
    /// 2048 pooled features, where wanted.
    pub features: Option<Vec<f32>>,
    /// `[2048, h/32 * w/32]`, where wanted.
    pub feature_map: Option<Vec<f32>>,
}

/// The network with its labels.
pub struct Classifier {
    net: ResNet50,
    backend: Backend,
    device: Device,
    labels: Labels,
    info: ModelInfo,
    /// The last layer's weights `[classes, 2048]`, which class activation maps need.
    class_weights: Vec<f32>,
}

/// Where `VarBuilder` takes its tensors from, and what is known of it before it does.
struct Opened {
    weights: Weights,
    info: ModelInfo,
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
        let Opened { weights, mut info } = open(source)?;
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
        let (net, class_weights) = weights.build(info.classes, &device, &backend)?;
        info.load_time = start.elapsed();
        Ok(Self {
            net,
            backend,
            device,
            labels: Labels::for_classes(info.classes),
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
        let features = super::resnet::FEATURES;
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

fn open(source: &WeightsSource) -> Result<Opened, ModelError> {
    match source {
        WeightsSource::Random(seed) => Ok(Opened {
            weights: Weights::Formula(FormulaWeights { seed: *seed }),
            info: described(
                "random".to_owned(),
                None,
                PretrainedCfg::default(),
                RANDOM_CLASSES,
            ),
        }),
        WeightsSource::Files {
            weights,
            config,
            model,
            revision,
            declared_sha256,
        } => {
            let checkpoint = Checkpoint::open(weights)?;
            let pretrained = config
                .as_deref()
                .map_or_else(|| Ok(PretrainedCfg::default()), PretrainedCfg::read)?;
            let classes = checkpoint.classes()?;
            agree(&pretrained, config.as_deref(), weights, classes)?;
            let mut info = described(model.clone(), revision.clone(), pretrained, classes);
            info.trained = true;
            info.sha256 = Some(checkpoint.verified_sha256(declared_sha256.as_deref())?);
            info.dtype = checkpoint.dtype()?;
            Ok(Opened {
                weights: Weights::Checkpoint(checkpoint),
                info,
            })
        }
    }
}

/// The configuration's number of classes must be the checkpoint's.
fn agree(
    cfg: &PretrainedCfg,
    config: Option<&Path>,
    weights: &Path,
    classes: usize,
) -> Result<(), ModelError> {
    match (cfg.num_classes, config) {
        (Some(said), Some(path)) if said != classes => Err(ModelError::Config {
            path: PathBuf::from(path),
            reason: format!(
                "`num_classes` is {said}, but `fc.weight` in {} has {classes} rows",
                weights.display()
            ),
        }),
        _ => Ok(()),
    }
}

fn described(
    id: String,
    revision: Option<String>,
    pretrained: PretrainedCfg,
    classes: usize,
) -> ModelInfo {
    ModelInfo {
        id,
        revision,
        sha256: None,
        trained: false,
        dtype: "F32".to_owned(),
        device: String::new(),
        isa: None,
        threads: 0,
        pretrained,
        classes,
        load_time: Duration::ZERO,
    }
}

impl Weights {
    fn build(
        &self,
        classes: usize,
        device: &Device,
        backend: &Backend,
    ) -> Result<(ResNet50, Vec<f32>), ModelError> {
        match self {
            Self::Formula(formula) => Ok(build(Box::new(*formula), classes, device, backend)?),
            Self::Checkpoint(checkpoint) => {
                let log = LoadLog::default();
                let tensors = checkpoint.backend(log.clone())?;
                let built = build(Box::new(tensors), classes, device, backend);
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
    classes: usize,
    device: &Device,
    backend: &Backend,
) -> candle_core::Result<(ResNet50, Vec<f32>)> {
    let vb: VarBuilder<'a> = VarBuilder::from_backend(tensors, DType::F32, device.clone());
    let net = ResNet50::load(&vb, classes, backend)?;
    let last = vb.get((classes, super::resnet::FEATURES), "fc.weight")?;
    Ok((net, last.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?))
}
