//! The operations of a network on an NVIDIA GPU.
//!
//! - [`Op`] and the types around it say what is computed, as plain data: which tensor lies where,
//!   in which shape, strides and type. They need no CUDA, so that ordinary tests can check them.
//! - [`Driver`] is the trait that runs operations: memory, transfers, CUDA graphs. The network is
//!   written against it, and tests bring drivers that compute in the host's memory or that fail.
//! - [`OperationGraph`] says how cuDNN's graph interface takes a convolution, as plain data too.
//! - `CudaDriver`, with the feature `cuda`, is the driver over cuDNN. Convolutions are cuDNN's; what
//!   cuDNN lacks is in `kernels.cu`, which `build.rs` compiles by nvcc.
//!
//! Everything is in NHWC order and in half precision, with float32 sums. Half precision here means
//! either of [`Half`]'s types.

// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(feature = "cuda")]
mod cudnn;
mod driver;
mod graph;
mod op;

#[cfg(feature = "cuda")]
pub use cudnn::{CudaDriver, engines_for};
pub use driver::{Buffer, DeviceError, Driver, Engines, Graph, SlotBytes, Tuning};
pub use graph::{GraphTensor, Node, Number, OperationGraph, Role};
pub use op::{Convolution, Half, Op, Pixels, Place, Tensor4};
