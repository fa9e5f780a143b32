//! The loaded model: its network, and what is known of it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgclass_checkpoint::{CheckpointInfo, Labels, OpenCheckpoint, Overrides, WeightsSource};
use imgclass_kernels::{Isa, ThreadPool};

use crate::backend::Backend;
use crate::calibration::{self, Cache, Calibration, Fidelity};
use crate::candle::CandleBackend;
use crate::cpu::{CpuBackend, CpuNumbers};
use crate::device::{DeviceChoice, OpenDevice};
use crate::dtype::ComputeType;
use crate::error::NetworkError;
use crate::head;
use crate::input::{Input, Normalisation};
use crate::network::{FixedSizeResNet, Network, Output, Want};
use crate::profile::{self, LayerTime};
use crate::weights::build;

/// Says how to run the network.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The device to compute on.
    pub device: DeviceChoice,
    /// The type to compute in. `None` takes the type that suits the device best.
    pub dtype: Option<ComputeType>,
    /// The CPU's instruction set by name. `None` takes the best one that the processor has.
    pub isa: Option<String>,
    /// How many threads the CPU's forward pass takes.
    pub threads: NonZeroUsize,
    /// The folder in which the ranges for 8-bit integers are kept from start to start. `None`
    /// measures them at each start.
    pub cache: Option<PathBuf>,
    /// A folder of pictures on which the ranges for 8-bit integers are measured, at each start.
    /// `None` takes generated pictures.
    pub calibrate: Option<PathBuf>,
    /// What the operator says of the checkpoint. It takes precedence over what the checkpoint says
    /// of itself.
    pub overrides: Overrides,
}

/// Describes the loaded model to people.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The checkpoint, the network that it is for, and how its images are prepared.
    pub checkpoint: CheckpointInfo,
    /// The type that the network computes in.
    pub compute_dtype: ComputeType,
    /// How far the network in 8-bit integers is from the one in float32; `None` for other types.
    pub fidelity: Option<Fidelity>,
    /// The device that computes, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Whether the device is a GPU. Batches are larger there, and images cross a bus.
    pub accelerated: bool,
    /// The instruction set of the CPU's kernels; absent on other devices.
    pub isa: Option<String>,
    /// How many threads compute on the CPU; 0 on other devices.
    pub threads: usize,
    /// How many forward passes make the best of the device at one time: one worker runs each. On
    /// the CPU there are as many as threads, up to eight; a GPU has one.
    pub passes: usize,
    /// How long reading, checking, folding and packing the weights took.
    pub load_time: Duration,
}

/// A loaded model: its network, its labels and its description.
pub struct Classifier {
    network: Arc<dyn Network>,
    labels: Labels,
    info: ModelInfo,
    /// The last layer's weights `[classes, features]`, which class activation maps need.
    class_weights: Vec<f32>,
}

/// What a backend's choice gives: the network, and what `ModelInfo` says of it.
struct LoadedNetwork {
    network: Arc<dyn Network>,
    class_weights: Vec<f32>,
    /// The CPU's instruction set and threads; `None` on other devices.
    cpu: Option<(Isa, usize)>,
    /// What 8-bit integers lose.
    fidelity: Option<Fidelity>,
}

impl LoadedNetwork {
    /// Chooses what computes the layers, and builds the network on it: our kernels for
    /// `--device cpu`, and candle for all other devices.
    fn load(
        checkpoint: &OpenCheckpoint,
        opened: OpenDevice,
        options: &ModelOptions,
    ) -> Result<Self, NetworkError> {
        let normalisation = Normalisation::of(&checkpoint.info.preprocessing);
        if options.calibrate.is_some() && opened.dtype != ComputeType::Int8 {
            return Err(NetworkError::NoCalibration(opened.dtype));
        }
        if opened.name == DeviceChoice::Cpu {
            let isa = match &options.isa {
                Some(name) => Isa::named(name)?,
                None => Isa::detect(),
            };
            let threads = ThreadPool::new(options.threads).map_err(NetworkError::Threads)?;
            Self::load_on_cpu(checkpoint, opened.dtype, isa, Arc::new(threads), options)
        } else {
            let Some(dtype) = opened.dtype.candle() else {
                return Err(NetworkError::ComputeType {
                    device: opened.name.to_string(),
                    dtype: opened.dtype,
                    reason: "only our kernels do; take --device cpu".to_owned(),
                });
            };
            let backend = CandleBackend::new(opened.device, dtype, &normalisation)?;
            Self::build(checkpoint, backend)
        }
    }

    /// Builds the network on our kernels, in any of their number types.
    fn load_on_cpu(
        checkpoint: &OpenCheckpoint,
        dtype: ComputeType,
        isa: Isa,
        threads: Arc<ThreadPool>,
        options: &ModelOptions,
    ) -> Result<Self, NetworkError> {
        let cpu = Some((isa, threads.threads()));
        let normalisation = Normalisation::of(&checkpoint.info.preprocessing);
        let backend = |numbers| {
            let (threads, normalisation) = (Arc::clone(&threads), normalisation.clone());
            CpuBackend::with_numbers(isa, threads, normalisation, numbers)
        };
        advise(dtype, isa);
        match dtype {
            ComputeType::BF16 => {
                let loaded = Self::build(checkpoint, backend(CpuNumbers::Bf16))?;
                return Ok(Self { cpu, ..loaded });
            }
            ComputeType::F32 | ComputeType::F16 => {
                let loaded = Self::build(checkpoint, backend(CpuNumbers::F32))?;
                return Ok(Self { cpu, ..loaded });
            }
            ComputeType::Int8 => {}
        }
        let info = &checkpoint.info;
        let own = match &options.calibrate {
            Some(folder) => Some(calibration::read_folder(folder, &info.preprocessing)?),
            None => None,
        };
        // Ranges on the user's own pictures are not kept, as the pictures may change.
        let folder = options.cache.as_deref().filter(|_| own.is_none());
        let cache = folder.and_then(|folder| Cache::of(folder, info, &normalisation));
        let integers = |scales| backend(CpuNumbers::Int8(Arc::new(scales)));
        if let Some((scales, fidelity)) = cache.as_ref().and_then(Cache::read) {
            fidelity.check()?;
            match Self::build(checkpoint, integers(scales)) {
                Ok(loaded) => {
                    return Ok(Self {
                        cpu,
                        fidelity: Some(fidelity),
                        ..loaded
                    });
                }
                // The file lacks a layer.
                Err(NetworkError::Quantisation(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let calibration = Calibration::new(&checkpoint.weights, info, own)?;
        let scales = calibration.measure(backend(CpuNumbers::Bf16))?;
        let (net, class_weights) = build(&checkpoint.weights, info, integers(scales.clone()))?;
        let fidelity = calibration.compare(&net, backend(CpuNumbers::F32))?;
        fidelity.check()?;
        if let Some(cache) = cache {
            cache.write(&scales, &fidelity);
        }
        Ok(Self {
            network: Arc::new(FixedSizeResNet::new(net, info.preprocessing.crop.dims())),
            class_weights,
            cpu,
            fidelity: Some(fidelity),
        })
    }

    fn build<B: Backend>(checkpoint: &OpenCheckpoint, backend: B) -> Result<Self, NetworkError> {
        let (net, class_weights) = build(&checkpoint.weights, &checkpoint.info, backend)?;
        let input_size = checkpoint.info.preprocessing.crop.dims();
        Ok(Self {
            network: Arc::new(FixedSizeResNet::new(net, input_size)),
            class_weights,
            cpu: None,
            fidelity: None,
        })
    }
}

/// Says in the log where another number type would be faster on this processor, or where this one
/// is slow.
fn advise(dtype: ComputeType, isa: Isa) {
    match dtype {
        ComputeType::BF16 if !isa.multiplies_bf16() => tracing::warn!(
            "--dtype bf16 is slower than f32 here: there is no AVX512_BF16; the answers are the same"
        ),
        ComputeType::Int8 if !isa.multiplies_int8() => tracing::warn!(
            "--dtype int8 is no faster than f32 here: there is no AVX512_VNNI or AVX-VNNI; \
             the answers are the same"
        ),
        ComputeType::F32 if isa.multiplies_bf16() && isa.multiplies_int8() => tracing::info!(
            "this processor is faster with --dtype bf16, and fastest with --dtype int8, which \
             changes a few answers in a hundred"
        ),
        ComputeType::F32 if isa.multiplies_int8() => tracing::info!(
            "this processor is faster with --dtype int8, which changes a few answers in a hundred"
        ),
        _ => {}
    }
}

impl Classifier {
    /// Reads, checks and packs the weights. This takes well under a second on the CPU.
    ///
    /// # Errors
    /// The device cannot be used or does not compute in the type, or the weights are unusable.
    pub fn load(source: &WeightsSource, options: &ModelOptions) -> Result<Self, NetworkError> {
        let start = Instant::now();
        let opened = options.device.open(options.dtype)?;
        let (name, dtype, accelerated) = (opened.name, opened.dtype, !opened.device.is_cpu());
        let checkpoint = OpenCheckpoint::open(source, &options.overrides)?;
        let LoadedNetwork {
            network,
            class_weights,
            cpu,
            fidelity,
        } = LoadedNetwork::load(&checkpoint, opened, options)?;
        let info = ModelInfo {
            checkpoint: checkpoint.info,
            compute_dtype: dtype,
            fidelity,
            device: name.to_string(),
            accelerated,
            isa: cpu.map(|(isa, _)| isa.to_string()),
            threads: cpu.map_or(0, |(_, threads)| threads),
            passes: network.passes().get(),
            load_time: start.elapsed(),
        };
        Ok(Self {
            network,
            labels: checkpoint.labels,
            info,
            class_weights,
        })
    }

    /// Returns the network, for the engine.
    pub fn network(&self) -> Arc<dyn Network> {
        self.network.clone()
    }

    /// Describes what is loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Returns the names of the classes.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Returns how many numbers an input has: `3 * height * width`.
    pub fn input_len(&self) -> usize {
        let (height, width) = self.info.checkpoint.preprocessing.crop.dims();
        3 * height * width
    }

    /// Whether images should come as [`Input::Pixels`]: on a device at the end of a bus they are a
    /// quarter of the bytes. Both kinds are taken everywhere.
    pub fn takes_pixels(&self) -> bool {
        self.network.prefers_pixels()
    }

    /// Runs images as one batch, as [`Network::run_batch`] does.
    ///
    /// # Errors
    /// As [`Network::run_batch`].
    pub fn run_batch(
        &self,
        images: &[&Input],
        wants: &[Want],
    ) -> Result<Vec<Output>, NetworkError> {
        self.network.run_batch(images, wants)
    }

    /// Copies images, each planar `[3, height, width]` and normalised, and runs them as one batch.
    /// All outputs hold what `want` asks for.
    ///
    /// # Errors
    /// As [`Network::run_batch`].
    pub fn run_prepared(&self, images: &[&[f32]], want: Want) -> Result<Vec<Output>, NetworkError> {
        let images: Vec<Input> = images.iter().map(|image| image.to_vec().into()).collect();
        let images: Vec<&Input> = images.iter().collect();
        self.run_batch(&images, &vec![want; images.len()])
    }

    /// Runs images as one batch and returns where the time went, layer by layer. The list is empty
    /// on devices other than the CPU.
    ///
    /// # Errors
    /// As [`Network::run_batch`].
    pub fn profile(&self, images: &[&Input]) -> Result<Vec<LayerTime>, NetworkError> {
        let (outputs, layers) = profile::record(|| self.run_batch(images, &[]));
        outputs.map(|_| layers)
    }

    /// Returns the class activation map of class `index` over an output's feature map, `[h/32 *
    /// w/32]`. It is `None` if there is no such class, or no feature map in the output.
    pub fn class_activation_map(&self, output: &Output, index: usize) -> Option<Vec<f32>> {
        let features = self.info.checkpoint.architecture.features();
        let weights = self.class_weights.chunks_exact(features).nth(index)?;
        Some(head::class_activation_map(
            output.feature_map.as_deref()?,
            weights,
        ))
    }
}
