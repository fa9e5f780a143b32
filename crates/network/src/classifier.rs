//! The loaded model: its network, and what is known of it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgclass_checkpoint::{
    CheckpointInfo, Labels, OpenCheckpoint, Overrides, Weights, WeightsSource,
};

use crate::calibration::Fidelity;
use crate::choice::LoadedNetwork;
use crate::device::{DeviceChoice, OpenDevice};
use crate::dtype::ComputeType;
use crate::error::NetworkError;
use crate::head;
use crate::input::Input;
use crate::int8::timed;
use crate::network::{Network, Output, Want};
use crate::path::{ComputePath, GpuPath};
use crate::profile::{self, LayerTime};

/// Says how to run the network.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The device to compute on.
    pub device: DeviceChoice,
    /// The type to compute in. `None` takes the type that suits the device best.
    pub dtype: Option<ComputeType>,
    /// The way through the network on a GPU. It changes nothing on the CPU.
    pub gpu_path: GpuPath,
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
    /// The layers that are kept in bfloat16 because 8-bit integers lose too much in them.
    pub wide_layers: Vec<String>,
    /// The device that computes, such as `cpu` or `cuda:0`.
    pub device: String,
    /// What computes there.
    pub compute_path: ComputePath,
    /// Why a faster path is not taken, where there is one.
    pub compute_path_note: Option<String>,
    /// Whether the device is a GPU. Batches are larger there, and images cross a bus.
    pub accelerated: bool,
    /// The instruction set of the CPU's kernels; absent on other devices.
    pub isa: Option<String>,
    /// How many threads compute on the CPU; 0 on other devices.
    pub threads: usize,
    /// How many forward passes make the best of the device at one time: one worker runs each. On
    /// the CPU there are as many as threads, up to eight. A GPU has one, or two where the next batch is
    /// uploaded while one computes.
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

impl Classifier {
    /// Reads, checks and packs the weights. This takes well under a second on the CPU.
    ///
    /// # Errors
    /// The device cannot be used or does not compute in the type, or the weights are unusable.
    pub fn load(source: &WeightsSource, options: &ModelOptions) -> Result<Self, NetworkError> {
        let start = Instant::now();
        let checkpoint = timed("read and checked the file", || {
            OpenCheckpoint::open(source, &options.overrides)
        })?;
        let opened = match &checkpoint.weights {
            Weights::Quantised(_) => open_for_integers(options)?,
            Weights::Formula(_) | Weights::Checkpoint(_) => options.device.open(options.dtype)?,
        };
        let LoadedNetwork {
            network,
            class_weights,
            cpu,
            fidelity,
            wide_layers,
            device,
            dtype,
            path,
            note,
        } = LoadedNetwork::load(&checkpoint, opened, options)?;
        let info = ModelInfo {
            checkpoint: checkpoint.info,
            compute_dtype: dtype,
            fidelity,
            wide_layers,
            device: device.to_string(),
            compute_path: path,
            compute_path_note: note,
            accelerated: matches!(device, DeviceChoice::Cuda(_) | DeviceChoice::Metal),
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

/// Opens the device for weights that are 8-bit integers: the CPU, in the type that they are stored
/// in.
fn open_for_integers(options: &ModelOptions) -> Result<OpenDevice, NetworkError> {
    if let Some(dtype) = options.dtype.filter(|dtype| *dtype != ComputeType::Int8) {
        return Err(NetworkError::StoredAsIntegers(dtype));
    }
    let device = match options.device {
        DeviceChoice::Auto => DeviceChoice::Cpu,
        named => named,
    };
    device.open(Some(ComputeType::Int8))
}
