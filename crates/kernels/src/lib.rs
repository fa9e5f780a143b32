//! The CPU kernels of ResNet: convolutions, pooling, the sums of an image's resize, and the threads
//! and buffers that they run on. This crate knows no network, no tensor library and no file. It has
//! the service's `unsafe` code, but for one call in `imgclass-malloc`.
//!
//! Activations are `[channels/16][images * height * width][16]` throughout ([`nchw_to_blocked`]).
//! The stem reads planar numbers or pixels, and [`global_average_pool`] returns rows. On one instruction set,
//! an image's numbers are the same bits in any batch and with any number of threads: the algorithm
//! of a layer follows from its shape, and no sum is ever split.
//!
//! How the modules fit together, from what callers see down to the instructions:
//!
//! | module | what it holds |
//! |---|---|
//! | `conv`, `stem`, `linear`, `pooling` | layers: they check lengths and choose an algorithm |
//! | `layout`, `resample` | conversions of activations; the two passes of a resize |
//! | `number` | number types: float32, bfloat16 and 8-bit integers in words of 32 bits |
//! | `pack` | weights in the order in which the micro-kernels read them |
//! | `gemm`, `winograd`, `window` | how a layer is cut into tasks and tiles |
//! | `tile`, `simd`, `isa` | the micro-kernels, their vectors, and the instruction sets |
//! | `pool`, `sync` | the threads that run tasks |
//! | `buffer`, `buffer_pool` | the memory that they work on |
//! | `peak` | the speed that this machine could reach |
//!
//! Layers are where the checks are: their functions are safe, assert every length, and hand the
//! kernels pointers and sizes. The tasks of a job write disjoint parts of one output.

#![deny(
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]

mod buffer;
mod buffer_pool;
mod conv;
mod dct;
mod gemm;
mod isa;
mod layout;
mod linear;
mod number;
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

pub use buffer_pool::{BufferPool, PooledBuffer};
pub use conv::{Algorithm, ConvShape, Int8Weights, PackedConv};
pub use dct::inverse_dct;
pub use isa::{Isa, UnsupportedIsa};
pub use layout::{
    BatchDims, blocked_to_nchw, join_images, join_images_into, nchw_to_blocked, nchw_to_words,
    words_to_nchw,
};
pub use linear::PackedLinear;
pub use number::Numbers;
pub use pack::Weights;
pub use peak::measure_peak_gflops;
pub use pool::{Entered, ThreadPool};
pub use pooling::{average_words, global_average_pool};
pub use resample::{FRACTION_BITS, Taps, resample_across, resample_down};
pub use stem::{Int8Stem, PackedStem, Pixels};
pub use tile::BLOCK;
