//! Everything that supplies weights: local files, the Hugging Face hub, conversion from other programs' files, what a checkpoint says of
//! itself, what its tensors are called and what its classes are called.
//!
//! The way through is [`WeightsChoice`] (what the operator asked for) → [`WeightsSource::find`] (files on this machine, fetched from the
//! hub if they must be) → [`OpenCheckpoint::open`] (network, preprocessing and labels, each checked) → [`TensorSource::tensor`] (the
//! numbers, one layer after the other). The crate knows no tensor library: a network asks for plain `f32` values by name and shape.

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
pub mod hub;
mod labels;
mod naming;
mod opening;
mod preprocessing;
mod source;
mod tensors;

pub use architecture::{Architecture, Block, Variant};
pub use checkpoint::{CheckedTensors, Checkpoint};
pub use convert::{Converted, convert};
pub use description::Description;
pub use error::CheckpointError;
pub use labels::{ClassError, Label, LabelSource, Labels};
pub use opening::{CheckpointInfo, OpenCheckpoint, Overrides, Weights};
pub use preprocessing::{INPUT_SIDES, Preset};
pub use source::{
    DEFAULT_MODEL, DEFAULT_REVISION, LOCAL_WEIGHTS, NamedWeights, WeightsChoice, WeightsFiles,
    WeightsSource,
};
pub use tensors::TensorSource;
