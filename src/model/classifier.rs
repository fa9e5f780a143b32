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
use super::device::{DeviceChoice, OpenDevice};
use super::dtype::ComputeType;
use super::error::ModelError;
use super::formula::FormulaWeights;
use super::head;
use super::input::{Input, Normaliser};
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
    /// What to compute in; what suits the device best, where nothing is named.
    pub dtype: Option<ComputeType>,
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
    /// The type of the stored weights.
    pub dtype: String,
    /// What the network computes in.
    pub compute_dtype: ComputeType,
    /// The device that computes, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Whether it is a GPU: batches are larger there, and images cross a bus.
    pub accelerated: bool,
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
    normaliser: Normaliser,
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
        let OpenDevice {
            device,
            name,
            dtype,
        } = options.device.open(options.dtype)?;
        let overrides = &options.overrides;
        let Opened {
            weights,
            mut info,
            labels,
        } = open(source, overrides)?;
        let labels = named(labels, overrides.labels.as_deref(), info.classes)?;
        info.device = name.to_string();
        info.accelerated = !device.is_cpu();
        info.compute_dtype = dtype;
        let backend = if name == DeviceChoice::Cpu {
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
        } else {
            Backend::Candle {
                device: device.clone(),
                dtype: dtype.into(),
            }
        };
        let (net, class_weights) = weights.build(&info.architecture, info.classes, &backend)?;
        let normaliser = Normaliser::new(&info.pretrained, &device)?;
        // Candle gives each thread a stream of its own on CUDA: what this one has uploaded must be there before another computes with it.
        device.synchronize()?;
        info.load_time = start.elapsed();
        Ok(Self {
            net,
            backend,
            normaliser,
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

    /// Whether images should come as [`Input::Pixels`]: on a device at the end of a bus they are a quarter of the bytes. Both kinds are
    /// taken everywhere.
    pub fn takes_pixels(&self) -> bool {
        matches!(self.backend, Backend::Candle { .. })
    }

    /// Runs a batch of every size that will matter, so that the first requests find everything in place, and a model that cannot run says so
    /// before it is ready. On a GPU these are the powers of two up to `max_batch_size`, and that: its libraries choose and load their code
    /// for each shape when they first meet it. The CPU's kernels need one image.
    pub fn run_each_size(&self, max_batch_size: usize) -> Result<(), ModelError> {
        let sizes = match self.info.accelerated {
            true => powers_of_two_and(max_batch_size),
            false => vec![1],
        };
        let image = match self.takes_pixels() {
            true => Input::Pixels(vec![0; self.input_len()]),
            false => Input::Planar(vec![0.0; self.input_len()]),
        };
        for size in sizes {
            let outputs = self.forward_each(&vec![&image; size], &[])?;
            let mut logits = outputs.iter().flat_map(|output| &output.logits);
            if !logits.all(|x| x.is_finite()) {
                return Err(ModelError::NotFinite);
            }
        }
        Ok(())
    }

    /// Runs images, each planar `[3, height, width]` and normalised, as one batch; the outputs come in the same order. All of them give
    /// what `want` asks for.
    pub fn forward(&self, images: &[&[f32]], want: Want) -> Result<Vec<Output>, ModelError> {
        self.check(images.iter().map(|image| image.len()))?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.run(&self.planar(images)?, std::iter::repeat(want))
    }

    /// Runs images of either kind as one batch; image `i` gives what `wants[i]` asks for: nobody pays for what a neighbour wants. An image
    /// without an entry gives logits alone.
    pub fn forward_each(
        &self,
        images: &[&Input],
        wants: &[Want],
    ) -> Result<Vec<Output>, ModelError> {
        self.check(images.iter().map(|image| image.len()))?;
        let planar: Vec<&[f32]> = images.iter().filter_map(|image| image.planar()).collect();
        let pixels: Vec<&[u8]> = images.iter().filter_map(|image| image.pixels()).collect();
        let wants = wants
            .iter()
            .copied()
            .chain(std::iter::repeat(Want::default()));
        match (planar.is_empty(), pixels.is_empty()) {
            (true, true) => Ok(Vec::new()),
            (false, true) => self.run(&self.planar(&planar)?, wants),
            (true, false) => self.run(&self.normalised(&pixels)?, wants),
            (false, false) => self.run_mixed(images, &planar, &pixels, wants),
        }
    }

    /// Prepared images first and pixels after them, and the outputs back in the order of the images.
    fn run_mixed(
        &self,
        images: &[&Input],
        planar: &[&[f32]],
        pixels: &[&[u8]],
        wants: impl Iterator<Item = Want>,
    ) -> Result<Vec<Output>, ModelError> {
        let wants: Vec<Want> = wants.take(images.len()).collect();
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|&i| images[i].pixels().is_some());
        let batch = Tensor::cat(&[self.planar(planar)?, self.normalised(pixels)?], 0)?;
        let outputs = self.run(&batch, order.iter().map(|&i| wants[i]))?;
        let mut sorted: Vec<(usize, Output)> = order.into_iter().zip(outputs).collect();
        sorted.sort_by_key(|(i, _)| *i);
        Ok(sorted.into_iter().map(|(_, output)| output).collect())
    }

    fn planar(&self, images: &[&[f32]]) -> Result<Tensor, ModelError> {
        Ok(self
            .backend
            .batch(images, self.info.pretrained.input_size)?)
    }

    fn normalised(&self, images: &[&[u8]]) -> Result<Tensor, ModelError> {
        let size = self.info.pretrained.input_size;
        Ok(self.normaliser.batch(images, size)?)
    }

    /// Every image must have as many numbers as the network reads.
    fn check(&self, mut lengths: impl Iterator<Item = usize>) -> Result<(), ModelError> {
        let expected = self.input_len();
        match lengths.find(|length| *length != expected) {
            Some(found) => Err(ModelError::Input { expected, found }),
            None => Ok(()),
        }
    }

    /// One normalised batch `(n, 3, height, width)`, and what each of its images is to give.
    fn run(
        &self,
        batch: &Tensor,
        wants: impl Iterator<Item = Want>,
    ) -> Result<Vec<Output>, ModelError> {
        let forward = self.net.forward(batch)?;
        let logits = rows(&forward.logits)?;
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

    /// [`Classifier::forward_each`], but giving where its time went. Empty on devices other than the CPU.
    pub fn profile(&self, images: &[&Input]) -> Result<Vec<LayerTime>, ModelError> {
        let (outputs, layers) = profile::record(|| self.forward_each(images, &[]));
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

/// The powers of two below a number, and the number.
fn powers_of_two_and(last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2));
    let mut sizes: Vec<usize> = powers.take_while(|size| *size < last).collect();
    sizes.push(last);
    sizes
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
        compute_dtype: ComputeType::F32,
        device: String::new(),
        accelerated: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_warmed_up_at_each_power_of_two_and_at_the_largest_batch() {
        for (last, sizes) in [
            (1, vec![1]),
            (2, vec![1, 2]),
            (48, vec![1, 2, 4, 8, 16, 32, 48]),
            (64, vec![1, 2, 4, 8, 16, 32, 64]),
        ] {
            assert_eq!(powers_of_two_and(last), sizes);
        }
    }
}
