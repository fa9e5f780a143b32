//! What can go wrong between a checkpoint and its logits. Texts are for operators: they name the file and the tensor.

use std::path::PathBuf;

use thiserror::Error;

use super::dtype::ComputeType;
use super::hub::HubError;
use crate::kernels::UnsupportedIsa;

/// An error of the model layer.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The operating system refused a thread for the CPU's kernels.
    #[error("the threads of the forward pass cannot start: {0}; ask for fewer with --threads")]
    Threads(#[source] std::io::Error),
    /// A local weights file that cannot be read.
    #[error("the weights file {path} cannot be read: {reason}")]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// A file that is not whole or is no safetensors file.
    #[error(
        "the weights file {path} is not a whole safetensors file ({reason}); copy or download it again"
    )]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A file of the hub's cache that is not what the hub declared.
    #[error(
        "the weights file {path} has the SHA-256 {found}, but the hub declared {declared}; delete the file and fetch it again"
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// The hub's word.
        declared: String,
        /// Ours.
        found: String,
    },
    /// A tensor that is missing, misnamed, of the wrong shape or type, or holds non-finite numbers.
    #[error(
        "the weights {origin} do not fit {architecture}: tensor `{tensor}`: expected {expected}, found {found}"
    )]
    Tensor {
        /// The file, or how the weights came about.
        origin: String,
        /// The network that they were held against.
        architecture: &'static str,
        /// The tensor's name.
        tensor: String,
        /// What the network needs.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A `config.json` that cannot be used.
    #[error("the model configuration {path} cannot be used: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        reason: String,
    },
    /// Labels that cannot be used, or are not as many as there are classes.
    #[error("the labels {path} cannot be used: {reason}")]
    Labels {
        /// The file that they are in.
        path: PathBuf,
        /// What is wrong, with line or count.
        reason: String,
    },
    /// Another program's weights that cannot be turned into ours.
    #[error("{path} cannot be converted: {reason}")]
    Convert {
        /// The file that was read, or could not be written.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub had no answer that we could use.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A device that this build or this machine lacks.
    #[error("the device `{asked}` cannot be used: {reason}; found instead: {found}")]
    Device {
        /// What was asked for.
        asked: String,
        /// Why not.
        reason: String,
        /// What there is.
        found: String,
    },
    /// An instruction set that this processor lacks.
    #[error(transparent)]
    Isa(#[from] UnsupportedIsa),
    /// An input of the wrong length.
    #[error("the network takes {expected} numbers per image, found {found}")]
    Input {
        /// `3 * height * width`.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// The network's answer is not a number: the input overflowed it.
    #[error("the network's logits for this input are not finite")]
    NotFinite,
    /// A type that the device does not compute in.
    #[error("the device `{device}` does not compute in {dtype}: {reason}")]
    ComputeType {
        /// The device that was opened.
        device: String,
        /// What was asked for.
        dtype: ComputeType,
        /// Why not, and what it does.
        reason: String,
    },
    /// The device has no memory for the batch; smaller ones may pass.
    #[error(
        "the device is out of memory ({reason}); lower --max-batch-size, take --dtype bf16 or f16, or end what else uses the device"
    )]
    OutOfDeviceMemory {
        /// The device's own words.
        reason: String,
    },
    /// The device failed in a way after which this process cannot use it again.
    #[error(
        "the device is lost ({reason}); restart the process, and if that does not help look at the driver's messages in the kernel's log"
    )]
    DeviceLost {
        /// The device's own words.
        reason: String,
    },
    /// The binary holds no code for this GPU.
    #[error(
        "this binary has no code for the GPU or its driver ({reason}); build it with CUDA_COMPUTE_CAP set to the GPU's compute capability, such as 80, or update the driver"
    )]
    OtherGpu {
        /// The device's own words.
        reason: String,
    },
    /// Candle failed in another way; on an accelerator this is the device's own error.
    #[error("the computation failed: {0}")]
    Compute(candle_core::Error),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        super::fault::classify(error)
    }
}
