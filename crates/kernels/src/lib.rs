//! Convolutions on the CPU: packed weights, blocked activations, one micro-kernel per instruction set, own threads. It
//! never knows a network, a tensor library or a file, and it is the only place with `unsafe` code.
//!
//! Activations are `[channels/16][images * height * width][16]` throughout ([`nchw_to_blocked`]); the stem reads planar
//! pixels and [`global_average_pool`] returns rows. For one instruction set, an image's numbers are the same bits in any
//! batch and with any number of threads: the algorithm of a layer follows from its shape, and no sum is ever split.

#![deny(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

mod alloc;
mod buffer;
mod buffer_pool;
mod conv;
mod gemm;
mod isa;
mod layout;
mod linear;
mod pack;
mod peak;
mod pool;
mod pooling;
mod resample;
mod simd;
mod stem;
mod sync;
mod tile;
mod window;
mod winograd;

pub use alloc::LargeBlocks;
pub use buffer_pool::{BufferPool, PooledBuffer};
pub use conv::{Algorithm, ConvShape, PackedConv};
pub use isa::{Isa, UnsupportedIsa};
pub use layout::{BatchDims, blocked_to_nchw, join_images, join_images_into, nchw_to_blocked};
pub use linear::PackedLinear;
pub use pack::Weights;
pub use peak::measure_peak_gflops;
pub use pool::{Entered, ThreadPool};
pub use pooling::global_average_pool;
pub use resample::{FRACTION_BITS, Taps, resample_across, resample_down};
pub use stem::PackedStem;
pub use tile::BLOCK;
