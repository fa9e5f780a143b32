//! The CPU's backend: our own kernels over pooled buffers.
//!
//! Activations are `[channels/16][images * height * width][16]` floats in buffers that go back to
//! the backend's pool. No tensor of candle's takes part between the images and the logits.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use imgclass_kernels::{
    BLOCK, BatchDims, BufferPool, Entered, Isa, PackedConv, PackedLinear, PackedStem, PooledBuffer,
    ThreadPool, blocked_to_nchw, global_average_pool, join_images_into,
};

use crate::backend::{Backend, FoldedConv, ImagesTogether, LinearWeights};
use crate::error::NetworkError;
use crate::input::{Input, Normalisation};
use crate::profile;

/// The most forward passes that run at one time. Each pass of four images holds 34 MB: on a machine
/// of many cores and little memory for each, passes share threads instead.
const MAX_PASSES: usize = 8;

/// The bytes of buffers that are kept for each forward pass: what a pass frees on its way, 34 MB
/// for a batch of four.
const PASS_BYTES: usize = 34 << 20;

/// The fewest bytes of buffers that are kept.
const MIN_KEPT_BYTES: usize = 64 << 20;

/// Computes a ResNet's layers with our own kernels, in f32.
pub struct CpuBackend {
    isa: Isa,
    threads: Arc<ThreadPool>,
    /// The memory of activations, which goes from layer to layer and from pass to pass.
    buffers: BufferPool,
    normalisation: Normalisation,
}

impl CpuBackend {
    /// Returns a backend that packs weights for `isa` and runs layers on `threads`. Images that
    /// come as [`Input::Pixels`] are normalised by `normalisation`.
    #[must_use]
    pub fn new(isa: Isa, threads: Arc<ThreadPool>, normalisation: Normalisation) -> Self {
        Self {
            isa,
            buffers: BufferPool::new(kept_bytes(passes(&threads))),
            threads,
            normalisation,
        }
    }

    fn run_conv(&self, conv: &Conv, x: &Activation, relu: bool) -> Activation {
        let packed = &conv.packed;
        let channels = packed.shape().out_channels;
        let dims = packed.output_dims(x.dims);
        let mut values = self.buffers.take(dims.blocked_len(channels));
        conv.timed(x.dims, || {
            packed.forward_into(&self.threads, &x.values, x.dims, None, relu, &mut values);
        });
        Activation {
            values,
            channels,
            dims,
        }
    }

    /// Puts the images of several parts into one buffer, block by block of channels.
    fn join(&self, parts: &[&[f32]], blocks: usize) -> PooledBuffer {
        let length = parts.iter().map(|part| part.len()).sum();
        let mut joined = self.buffers.take(length);
        join_images_into(&self.threads, parts, blocks, &mut joined);
        joined
    }
}

/// Returns how many forward passes make the best of the threads: as many as there are threads, up
/// to [`MAX_PASSES`].
fn passes(threads: &ThreadPool) -> usize {
    threads.threads().clamp(1, MAX_PASSES)
}

/// Returns how many bytes of unused buffers are kept for `passes` forward passes at one time.
fn kept_bytes(passes: usize) -> usize {
    (passes * PASS_BYTES).max(MIN_KEPT_BYTES)
}

/// Some images' activations between two layers.
pub struct Activation {
    /// The numbers, `[channels/16][images * height * width][16]`.
    values: PooledBuffer,
    channels: usize,
    dims: BatchDims,
}

/// A convolution packed for the kernels.
pub struct Conv {
    name: String,
    packed: PackedConv,
}

impl Conv {
    /// Runs the layer by `run` and records its time under the layer's name.
    fn timed<T>(&self, dims: BatchDims, run: impl FnOnce() -> T) -> T {
        let describe = || {
            let algorithm = self.packed.algorithm().to_string();
            (self.name.clone(), algorithm, self.packed.flops(dims))
        };
        profile::layer(describe, run)
    }
}

/// One row of numbers per image.
pub struct Rows {
    values: Vec<f32>,
    /// How many rows there are.
    images: usize,
}

impl Backend for CpuBackend {
    type Activation = Activation;
    type Conv = Conv;
    type Stem = PackedStem;
    type Linear = PackedLinear;
    type Rows = Rows;

    fn load_conv(&self, name: String, folded: FoldedConv) -> Result<Conv, NetworkError> {
        let FoldedConv {
            shape,
            weight,
            bias,
        } = folded;
        Ok(Conv {
            name,
            packed: PackedConv::new(self.isa, shape, &weight, &bias),
        })
    }

    fn load_stem(&self, folded: FoldedConv) -> Result<PackedStem, NetworkError> {
        Ok(PackedStem::new(self.isa, &folded.weight, &folded.bias))
    }

    fn load_linear(&self, weights: LinearWeights) -> Result<PackedLinear, NetworkError> {
        let LinearWeights {
            inputs,
            weight,
            bias,
            ..
        } = weights;
        Ok(PackedLinear::new(self.isa, inputs, &weight, &bias))
    }

    fn announce_order(&self, convs: &[&Conv], last: &PackedLinear) {
        for pair in convs.windows(2) {
            pair[0].packed.precede(pair[1].packed.weights());
        }
        if let Some(conv) = convs.last() {
            conv.packed.precede(last.weights());
        }
    }

    fn stem(
        &self,
        stem: &PackedStem,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Activation, NetworkError> {
        let prepared: Vec<Cow<[f32]>> = images
            .iter()
            .map(|image| match image {
                Input::Planar(numbers) => Cow::Borrowed(numbers.as_slice()),
                Input::Pixels(pixels) => Cow::Owned(self.normalisation.planar(pixels)),
            })
            .collect();
        let dims = BatchDims {
            n: images.len(),
            h: size.0,
            w: size.1,
        };
        let describe = || {
            (
                "conv1 and max-pool".to_owned(),
                "stem".to_owned(),
                stem.flops(dims),
            )
        };
        let (channels, out_dims) = (stem.out_channels(), stem.output_dims(dims));
        let mut values = self.buffers.take(out_dims.blocked_len(channels));
        let mut run = |batch: &[f32]| {
            profile::layer(describe, || {
                stem.forward_into(&self.threads, batch, dims, &mut values);
            });
        };
        // A single image needs no copy.
        match prepared.as_slice() {
            [image] => run(image),
            several => {
                let slices: Vec<&[f32]> = several.iter().map(|image| &**image).collect();
                run(&self.join(&slices, 1));
            }
        }
        Ok(Activation {
            values,
            channels,
            dims: out_dims,
        })
    }

    fn conv(&self, conv: &Conv, x: &Activation) -> Result<Activation, NetworkError> {
        Ok(self.run_conv(conv, x, false))
    }

    fn conv_relu(&self, conv: &Conv, x: &Activation) -> Result<Activation, NetworkError> {
        Ok(self.run_conv(conv, x, true))
    }

    /// The result is written over the residual, which is read a tile before.
    fn conv_add_relu(
        &self,
        conv: &Conv,
        x: &Activation,
        mut residual: Activation,
    ) -> Result<Activation, NetworkError> {
        let out = &mut residual.values[..];
        conv.timed(x.dims, || {
            let packed = &conv.packed;
            packed.forward_onto(&self.threads, &x.values, x.dims, true, out);
        });
        Ok(residual)
    }

    fn concatenate(&self, mut parts: Vec<Activation>) -> Result<Activation, NetworkError> {
        if let [_] = parts.as_slice() {
            return Ok(parts.remove(0));
        }
        let Activation { channels, dims, .. } = parts[0];
        let slices: Vec<&[f32]> = parts.iter().map(|part| &*part.values).collect();
        Ok(Activation {
            values: self.join(&slices, channels.div_ceil(BLOCK)),
            channels,
            dims: BatchDims {
                n: parts.iter().map(|part| part.dims.n).sum(),
                ..dims
            },
        })
    }

    fn average_pool(&self, x: &Activation) -> Result<Rows, NetworkError> {
        let describe = || {
            (
                "average pool".to_owned(),
                "mean".to_owned(),
                (x.channels * x.dims.pixels()) as u64,
            )
        };
        let values = profile::layer(describe, || {
            global_average_pool(&self.threads, &x.values, x.channels, x.dims)
        });
        Ok(Rows {
            values,
            images: x.dims.n,
        })
    }

    fn linear(&self, linear: &PackedLinear, features: &Rows) -> Result<Rows, NetworkError> {
        let images = features.images;
        let describe = || ("fc".to_owned(), "GEMM".to_owned(), linear.flops(images));
        let values = profile::layer(describe, || {
            linear.forward(&self.threads, &features.values, images)
        });
        Ok(Rows { values, images })
    }

    fn rows_to_vec(&self, rows: Rows) -> Result<Vec<f32>, NetworkError> {
        Ok(rows.values)
    }

    fn activation_to_nchw(
        &self,
        x: &Activation,
        images: Range<usize>,
    ) -> Result<Vec<f32>, NetworkError> {
        let Activation {
            values,
            channels,
            dims,
        } = x;
        let plane = dims.h * dims.w * BLOCK;
        // Each block holds its channels of all images, one image after the other.
        let chosen: Vec<f32> = values
            .chunks_exact((dims.n * plane).max(1))
            .flat_map(|block| &block[images.start * plane..images.end * plane])
            .copied()
            .collect();
        let dims = BatchDims {
            n: images.len(),
            ..*dims
        };
        Ok(blocked_to_nchw(&chosen, *channels, dims))
    }

    /// Measured with two threads and batches of eight: the caches of two cores hold about one
    /// image's early activations.
    fn images_together(&self) -> ImagesTogether {
        let early = (self.threads.available() / 2).max(1);
        [early, early, early, 4 * early, usize::MAX]
    }

    fn enter(&self) -> Option<Entered<'_>> {
        Some(self.threads.enter())
    }

    /// As many as there are threads, up to eight: each pass then has a thread to itself and waits
    /// for no other at the end of a layer. Where fewer passes run, they share the threads.
    fn passes(&self) -> NonZeroUsize {
        NonZeroUsize::new(passes(&self.threads)).unwrap_or(NonZeroUsize::MIN)
    }
}
