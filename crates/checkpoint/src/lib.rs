//! Everything that supplies weights: local files, the Hugging Face hub, conversion from other
//! programs' files, and a checkpoint's own description, tensor names and class names.
//!
//! From what the operator asked for to the numbers of a layer:
//!
//! ```text
//! WeightsChoice          what the operator asked for
//!   │ WeightsSource::find      fetches files from the hub if they are not on this machine
//!   ▼
//! WeightsSource          files on this machine, or the formula of untrained weights
//!   │ OpenCheckpoint::open     reads and checks them
//!   ▼
//! OpenCheckpoint         network, preprocessing, labels, weights
//!   │ Weights::take_all        hands the tensors to whoever builds the network
//!   ▼
//! TensorSource::tensor   the values of one tensor, by torchvision's name and its shape
//! ```
//!
//! The crate hands out plain `f32` values and knows no network that computes with them.
//! Preprocessing is described in the terms of `imgclass_image`.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod architecture;
mod checkpoint;
mod convert;
mod description;
mod error;
pub mod formula;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod hub;
mod labels;
mod merge;
mod naming;
mod opening;
mod preprocessing;
mod quantised;
mod source;
mod tensors;
mod text;

pub use architecture::{Architecture, Block, Variant};
pub use checkpoint::{CheckedTensors, Checkpoint};
pub use convert::{Converted, convert};
pub use description::{Description, Probabilities, ProblemType};
pub use error::CheckpointError;
pub use labels::{ClassError, Label, LabelSource, Labels};
pub use merge::{LastLayer, merge};
pub use opening::{CheckpointInfo, OpenCheckpoint, Overrides, Weights};
pub use preprocessing::{INPUT_SIDES, Preset};
pub use quantised::{
    Comparison, FloatCheckpoint, QuantisedDescription, QuantisedFile, QuantisedTensor,
    QuantisedTensors, StoredNumbers, encode,
};
pub use source::{
    DEFAULT_MODEL, DEFAULT_REVISION, LOCAL_WEIGHTS, NamedWeights, WeightsChoice, WeightsFiles,
    WeightsSource,
};
pub use tensors::TensorSource;
pub use text::printable;
