//! The network: ResNet-18 to 152.
//!
//! The parts, from the engine's view inwards:
//!
//! - [`Network`] is the trait that the engine calls: a batch of images to as many outputs.
//!   [`FixedSizeResNet`] implements it.
//! - [`resnet`] says which layers a ResNet has, once for all devices.
//! - [`Backend`] is the trait that computes a layer. [`CpuBackend`] does so with our own kernels,
//!   [`CandleBackend`] with candle on other devices.
//! - [`gpu`] is the whole network on an NVIDIA GPU as one plan. It does without a backend.
//! - [`Classifier`] is what `load` returns: the network with its labels and its description.
//!   `choice.rs` chooses what computes, and checks a GPU's logits against the CPU's.
//! - [`head`] makes answers of logits.
//!
//! A new device is a new [`Backend`]; its choice is one more branch in `choice.rs`. A new number
//! type on the CPU is a variant of [`CpuNumbers`].

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod backend;
mod calibration;
mod candle;
mod choice;
mod classifier;
mod cpu;
mod device;
mod dtype;
mod error;
mod fault;
pub mod gpu;
pub mod head;
mod input;
mod int8;
mod network;
mod noise;
mod parallel;
mod path;
mod plan;
mod profile;
mod quantise;
mod quantised;
pub mod resnet;
mod weights;

pub use backend::{Backend, ConvPlace, ConvRole, FoldedConv, ImagesTogether, LinearWeights, STEM};
pub use calibration::Fidelity;
pub use candle::CandleBackend;
pub use classifier::{Classifier, ModelInfo, ModelOptions};
pub use cpu::{CpuBackend, CpuNumbers};
pub use device::DeviceChoice;
pub use dtype::ComputeType;
pub use error::NetworkError;
pub use input::{Input, Normalisation};
pub use int8::{QuantisedCheckpoint, check_tensors, quantise_checkpoint};
pub use network::{FixedSizeResNet, Network, Output, Want};
pub use noise::LayerNoise;
pub use path::{ComputePath, GpuPath};
pub use profile::LayerTime;
pub use quantise::Scales;
pub use weights::variables;
