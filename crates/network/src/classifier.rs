//! The loaded model: weights, network, labels and what to tell people about them. One call runs a batch; no queue, no threads of its own
//! beyond the kernels' pool, no pixels.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use crate::conv::Backend;
use crate::device::{DeviceChoice, OpenDevice};
use crate::dtype::ComputeType;
use crate::error::NetworkError;
use crate::head;
use crate::input::{Input, Normaliser};
use crate::profile::{self, LayerTime};
use crate::resnet::ResNet;
use crate::weights::build;
use imgclass_checkpoint::{CheckpointInfo, Labels, OpenCheckpoint, Overrides, WeightsSource};
use imgclass_kernels::{Isa, ThreadPool};

/// Each forward pass of four images holds 34 MB: on a machine of many cores and little memory for each, passes share threads instead.
const MOST_PASSES: usize = 8;

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

/// What is loaded, for people.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The checkpoint, the network that it is for, and how its images are prepared.
    pub checkpoint: CheckpointInfo,
    /// What the network computes in.
    pub compute_dtype: ComputeType,
    /// The device that computes, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Whether it is a GPU: batches are larger there, and images cross a bus.
    pub accelerated: bool,
    /// The instruction set of the CPU's kernels; absent on other devices.
    pub isa: Option<String>,
    /// Threads that compute on the CPU.
    pub threads: usize,
    /// How many forward passes make the best of the device at one time. On the CPU as many as there are threads, up to eight: each then
    /// has a thread to itself and waits for no other at the end of a layer; where fewer run, they share the threads. A GPU is one.
    pub passes: usize,
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

impl Classifier {
    /// Reads, checks and packs the weights. Takes well under a second on the CPU.
    pub fn load(source: &WeightsSource, options: &ModelOptions) -> Result<Self, NetworkError> {
        let start = Instant::now();
        let OpenDevice {
            device,
            name,
            dtype,
        } = options.device.open(options.dtype)?;
        let OpenCheckpoint {
            weights,
            info: checkpoint,
            labels,
        } = OpenCheckpoint::open(source, &options.overrides)?;
        let backend = if name == DeviceChoice::Cpu {
            Backend::Packed {
                isa: match &options.isa {
                    Some(name) => Isa::named(name)?,
                    None => Isa::detect(),
                },
                pool: Arc::new(ThreadPool::new(options.threads).map_err(NetworkError::Threads)?),
            }
        } else {
            Backend::Candle {
                device: device.clone(),
                dtype: dtype.into(),
            }
        };
        let (net, class_weights) = build(&weights, &checkpoint, &backend)?;
        let normaliser = Normaliser::new(&checkpoint.preprocessing, &device)?;
        // Candle gives each thread a stream of its own on CUDA: what this one has uploaded must be there before another computes with it.
        device.synchronize()?;
        let (isa, threads) = match &backend {
            Backend::Packed { isa, pool } => (Some(isa.to_string()), pool.threads()),
            Backend::Candle { .. } => (None, 0),
        };
        let info = ModelInfo {
            checkpoint,
            compute_dtype: dtype,
            device: name.to_string(),
            accelerated: !device.is_cpu(),
            isa,
            threads,
            passes: threads.clamp(1, MOST_PASSES),
            load_time: start.elapsed(),
        };
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
        let (height, width) = self.info.checkpoint.preprocessing.crop.dims();
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
    pub fn run_each_size(&self, max_batch_size: usize) -> Result<(), NetworkError> {
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
                return Err(NetworkError::NotFinite);
            }
        }
        Ok(())
    }

    /// Runs images, each planar `[3, height, width]` and normalised, as one batch; the outputs come in the same order. All of them give
    /// what `want` asks for.
    pub fn forward(&self, images: &[&[f32]], want: Want) -> Result<Vec<Output>, NetworkError> {
        self.check(images.iter().map(|image| image.len()))?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let _seat = self.backend.enter();
        self.run(&self.planar(images)?, std::iter::repeat(want))
    }

    /// Runs images of either kind as one batch; image `i` gives what `wants[i]` asks for: nobody pays for what a neighbour wants. An image
    /// without an entry gives logits alone.
    pub fn forward_each(
        &self,
        images: &[&Input],
        wants: &[Want],
    ) -> Result<Vec<Output>, NetworkError> {
        self.check(images.iter().map(|image| image.len()))?;
        let _seat = self.backend.enter();
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
    ) -> Result<Vec<Output>, NetworkError> {
        let wants: Vec<Want> = wants.take(images.len()).collect();
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|&i| images[i].pixels().is_some());
        let batch = Tensor::cat(&[self.planar(planar)?, self.normalised(pixels)?], 0)?;
        let outputs = self.run(&batch, order.iter().map(|&i| wants[i]))?;
        let mut sorted: Vec<(usize, Output)> = order.into_iter().zip(outputs).collect();
        sorted.sort_by_key(|(i, _)| *i);
        Ok(sorted.into_iter().map(|(_, output)| output).collect())
    }

    fn planar(&self, images: &[&[f32]]) -> Result<Tensor, NetworkError> {
        Ok(self
            .backend
            .batch(images, self.info.checkpoint.preprocessing.crop.dims())?)
    }

    fn normalised(&self, images: &[&[u8]]) -> Result<Tensor, NetworkError> {
        let size = self.info.checkpoint.preprocessing.crop.dims();
        Ok(self.normaliser.batch(images, size)?)
    }

    /// Every image must have as many numbers as the network reads.
    fn check(&self, mut lengths: impl Iterator<Item = usize>) -> Result<(), NetworkError> {
        let expected = self.input_len();
        match lengths.find(|length| *length != expected) {
            Some(found) => Err(NetworkError::Input { expected, found }),
            None => Ok(()),
        }
    }

    /// One normalised batch `(n, 3, height, width)`, and what each of its images is to give.
    fn run(
        &self,
        batch: &Tensor,
        wants: impl Iterator<Item = Want>,
    ) -> Result<Vec<Output>, NetworkError> {
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
    pub fn profile(&self, images: &[&Input]) -> Result<Vec<LayerTime>, NetworkError> {
        let (outputs, layers) = profile::record(|| self.forward_each(images, &[]));
        outputs.map(|_| layers)
    }

    /// The class activation map of class `index` over an output's feature map: `[h/32 * w/32]`. `None` without such a class or map.
    pub fn class_activation_map(&self, output: &Output, index: usize) -> Option<Vec<f32>> {
        let features = self.info.checkpoint.architecture.features();
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
