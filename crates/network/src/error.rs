//! The errors between a checkpoint and its logits. Their texts are for operators.

use std::path::PathBuf;

use imgclass_checkpoint::CheckpointError;
use imgclass_cuda::DeviceError;
use imgclass_kernels::UnsupportedIsa;
use thiserror::Error;

use crate::dtype::ComputeType;

/// An error of the network: of its weights, of the device that runs it, or of an input.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The weights cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The operating system refused a thread for the CPU's kernels.
    #[error("the threads of the forward pass cannot start: {0}; ask for fewer with --threads")]
    Threads(#[source] std::io::Error),
    /// This build or this machine lacks the device.
    #[error("the device `{asked}` cannot be used: {reason}; found instead: {found}")]
    Device {
        /// The device that was asked for.
        asked: String,
        /// Why it cannot be used.
        reason: String,
        /// The devices that there are.
        found: String,
    },
    /// This processor lacks the instruction set.
    #[error(transparent)]
    Isa(#[from] UnsupportedIsa),
    /// An image has the wrong number of numbers.
    #[error("the network takes {expected} numbers per image, found {found}")]
    Input {
        /// `3 * height * width`.
        expected: usize,
        /// How many numbers the image had.
        found: usize,
    },
    /// A logit is infinite or not a number: the input or the weights overflowed the type.
    #[error("the network's logits for this input are not finite")]
    NotFinite,
    /// The device does not compute in the type.
    #[error("the device `{device}` does not compute in {dtype}: {reason}")]
    ComputeType {
        /// The device that was opened.
        device: String,
        /// The type that was asked for.
        dtype: ComputeType,
        /// Why it does not, and what it computes in.
        reason: String,
    },
    /// The network cannot be computed in 8-bit integers.
    #[error(
        "this checkpoint is not for --dtype int8: {0}; \
         take --dtype bf16, which needs no ranges, or f32"
    )]
    Quantisation(String),
    /// The pictures for calibration cannot be read.
    #[error("no pictures for --calibrate in `{}`: {reason}", folder.display())]
    CalibrationFolder {
        /// The folder that was named.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Pictures for calibration were named for a type that needs none.
    #[error("--calibrate is for --dtype int8; {0} needs no pictures")]
    NoCalibration(ComputeType),
    /// Pictures for calibration were named for weights whose ranges are known.
    #[error(
        "--calibrate is for a float checkpoint: the ranges of these 8-bit weights are in their \
         file; give it to `imgclass weights quantize` instead"
    )]
    CalibratedAlready,
    /// Another type than the one that the weights are stored in was asked for.
    #[error(
        "these weights are 8-bit integers, which do not compute in {0}: leave --dtype out, or name \
         the float checkpoint"
    )]
    StoredAsIntegers(ComputeType),
    /// The device has no memory for the batch. Smaller batches may pass.
    #[error(
        "the device is out of memory ({reason}); lower --max-batch-size, \
         take --dtype bf16 or f16, or end what else uses the device"
    )]
    OutOfDeviceMemory {
        /// The device's own words.
        reason: String,
    },
    /// The device failed in a way after which this process cannot use it again.
    #[error(
        "the device is lost ({reason}); restart the process, \
         and if that does not help look at the driver's messages in the kernel's log"
    )]
    DeviceLost {
        /// The device's own words.
        reason: String,
    },
    /// The binary holds no code for this GPU.
    #[error(
        "this binary has no code for the GPU or its driver ({reason}); \
         build it with CUDA_COMPUTE_CAP set to the GPU's compute capability, such as 80, \
         or update the driver"
    )]
    OtherGpu {
        /// The device's own words.
        reason: String,
    },
    /// The computation failed in another way. On an accelerator this is the device's own error.
    #[error("the computation failed: {0}")]
    Compute(candle_core::Error),
}

impl From<DeviceError> for NetworkError {
    fn from(error: DeviceError) -> Self {
        let text = error.to_string();
        crate::fault::classify_text(&text)
            .unwrap_or_else(|| Self::Compute(candle_core::Error::msg(text)))
    }
}

impl From<candle_core::Error> for NetworkError {
    fn from(error: candle_core::Error) -> Self {
        crate::fault::classify(error)
    }
}
