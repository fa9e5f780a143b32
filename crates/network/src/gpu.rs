//! The network on an NVIDIA GPU, as one list of operations.
//!
//! Candle computes a ResNet operation by operation: it allocates a tensor for each, in NCHW, and
//! adds bias, residual and ReLU in kernels of their own. Here the whole network is planned at load:
//!
//! - [`Program`] is what the network computes, recorded from [`ResNet`](crate::resnet::ResNet) by a
//!   backend that computes nothing (`record.rs`). It knows no batch size and no GPU.
//! - [`Plan`] is a program at one batch size: the operations with their shapes, and a place for
//!   every activation (`plan.rs`). Activations whose times do not meet share memory (`arena.rs`).
//! - [`GpuNet`] runs plans on a [`Driver`] (`net.rs`): weights are uploaded
//!   once (`weights.rs`), batches are padded to powers of two, and each of these sizes is a CUDA
//!   graph. The first pass of a size lets the driver choose how each convolution is computed.
//!
//! Activations are NHWC in half precision, bias, residual and ReLU are part of each convolution,
//! and all sums are float32.
//!
//! All of this is tested without a GPU, by drivers that compute in the host's memory or that fail.
//! **It has never run on a GPU.** Therefore [`agreement`] compares logits with the CPU's kernels at
//! load, and a network that is further off than its type allows is not used. Warming up compares
//! the other batch sizes with a batch of one.

mod arena;
mod net;
mod plan;
mod record;
mod weights;

pub use arena::{Arena, Span};
pub use net::{GpuNet, MAX_BATCH, padded_batch};
pub use plan::{Plan, PlanMemory};
#[cfg(feature = "fused")]
pub(crate) use record::Recorder;
pub use record::{Fused, Layer, Program, Step, Value};
pub use weights::DeviceWeights;

pub use imgclass_cuda::{
    Buffer, Convolution, DeviceError, Driver, Graph, Half, Op, Place, SlotBytes, Tensor4, Tuning,
};

use crate::dtype::ComputeType;
use crate::error::NetworkError;
use crate::input::Input;
use crate::network::Network;

impl From<Half> for ComputeType {
    fn from(half: Half) -> Self {
        match half {
            Half::F16 => Self::F16,
            Half::BF16 => Self::BF16,
        }
    }
}

/// How far a logit may be from the CPU's, as a share of the picture's largest logit.
///
/// Rounding of activations and weights to half precision moves the logits of a ResNet-50 by less
/// than a third of this in our scalar model. A wrong layout moves them by all of it.
fn allowed(dtype: ComputeType) -> f32 {
    match dtype {
        // On NVIDIA's GPUs since Ampere, f32 is TF32 inside cuDNN, with 11 bits of precision.
        ComputeType::F32 => 1e-2,
        ComputeType::F16 => 3e-2,
        // No GPU's network computes in 8-bit integers.
        ComputeType::BF16 | ComputeType::Int8 => 1e-1,
    }
}

/// Compares a network with the CPU's kernels on a picture that is made here: `Ok` holds the
/// furthest logit as a share of the largest, `Err` says what is wrong.
///
/// # Errors
/// A text for operators: the network failed, or a logit is further off than the type allows.
pub fn agreement(
    network: &dyn Network,
    expected: &[f32],
    picture: &Input,
    dtype: ComputeType,
) -> Result<f32, String> {
    let found = network
        .run_batch(&[picture], &[])
        .map_err(|error: NetworkError| error.to_string())?;
    let found = found.first().map_or(&[][..], |output| &output.logits);
    if found.len() != expected.len() {
        return Err(format!(
            "{} logits instead of {}",
            found.len(),
            expected.len()
        ));
    }
    let furthest = furthest_share(found, expected);
    if furthest <= allowed(dtype) {
        Ok(furthest)
    } else {
        Err(format!(
            "a logit differs from the CPU's by {:.2} % of the largest one, {:.0} % are allowed",
            100.0 * furthest,
            100.0 * allowed(dtype)
        ))
    }
}

/// Returns the furthest difference as a share of the largest expected logit.
fn furthest_share(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let mut furthest = 0f32;
    for (a, b) in found.iter().zip(expected) {
        let share = (a - b).abs() / largest.max(f32::MIN_POSITIVE);
        // A logit that is not a number is as far off as can be.
        if share.is_nan() {
            return f32::INFINITY;
        }
        furthest = furthest.max(share);
    }
    furthest
}

/// Returns a picture for [`agreement`]: ramps and noise, in which every position and channel
/// differs from its neighbours, so that a mixed-up layout shows.
#[must_use]
pub fn test_picture((height, width): (usize, usize)) -> Input {
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(3 * height * width);
    for y in 0..height {
        for x in 0..width {
            // Knuth's multiplicative generator; its upper bits are the random ones.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 27) as usize;
            for value in [x * 255 / width, y * 255 / height, (x + 2 * y) % 224] {
                bytes.push((value + noise).min(255) as u8);
            }
        }
    }
    Input::Pixels(bytes)
}
