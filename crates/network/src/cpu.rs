//! The CPU's network: our own kernels over plain memory.
//!
//! Activations are `[channels/16][images * height * width][16]` floats. Their memory comes from a
//! [`BufferPool`], which the backend owns and to which each layer's output goes back. No tensor of
//! candle's takes part between the images and the logits.

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

/// The bytes of activations that one forward pass of four images gives back on its way. It is 40 MB
/// for a batch of eight and 13 MB for one image.
const PASS_BYTES: usize = 34 << 20;

/// The fewest bytes of activations that are kept for the next layer.
const MIN_KEPT_BYTES: usize = 64 << 20;

/// Computes a ResNet's layers with our own kernels, in f32.
pub struct CpuBackend {
    isa: Isa,
    threads: Arc<ThreadPool>,
    buffers: BufferPool,
    normalisation: Normalisation,
}

impl CpuBackend {
    /// Returns a backend that packs weights for `isa` and runs layers on `threads`. Images that
    /// come as [`Input::Pixels`] are normalised by `normalisation`.
    #[must_use]
    pub fn new(isa: Isa, threads: Arc<ThreadPool>, normalisation: Normalisation) -> Self {
        let kept = passes_on(&threads) * PASS_BYTES;
        Self {
            isa,
            threads,
            buffers: BufferPool::new(kept.max(MIN_KEPT_BYTES)),
            normalisation,
        }
    }

    /// Returns memory for an activation. Its content is any numbers.
    fn activation(&self, channels: usize, dims: BatchDims) -> Activation {
        Activation {
            values: self.buffers.take(dims.blocked_len(channels)),
            channels,
            dims,
        }
    }

    fn run_conv(&self, conv: &Conv, x: &Activation, relu: bool) -> Activation {
        let packed = &conv.packed;
        let mut y = self.activation(packed.shape().out_channels, packed.output_dims(x.dims));
        conv.timed(x.dims, || {
            packed.forward_into(&self.threads, &x.values, x.dims, None, relu, &mut y.values);
        });
        y
    }

    /// Puts parts one after the other, `blocks` blocks of channels at a time. A single part needs no
    /// copy.
    fn join<'a>(&self, parts: &[&'a [f32]], blocks: usize) -> Joined<'a> {
        if let [part] = parts {
            return Joined::One(part);
        }
        let mut joined = self.buffers.take(parts.iter().map(|part| part.len()).sum());
        join_images_into(&self.threads, parts, blocks, &mut joined);
        Joined::Several(joined)
    }
}

/// Some images' activations between two layers.
pub struct Activation {
    /// The numbers, `[channels/16][images * height * width][16]`.
    values: PooledBuffer,
    channels: usize,
    dims: BatchDims,
}

/// Images that lie one after the other.
enum Joined<'a> {
    One(&'a [f32]),
    Several(PooledBuffer),
}

impl Joined<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Self::One(values) => values,
            Self::Several(values) => values,
        }
    }
}

/// Returns how many forward passes run at one time on these threads.
fn passes_on(threads: &ThreadPool) -> usize {
    threads.threads().clamp(1, MAX_PASSES)
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
        let slices: Vec<&[f32]> = prepared.iter().map(|image| &**image).collect();
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
        let mut y = self.activation(stem.out_channels(), stem.output_dims(dims));
        profile::layer(describe, || {
            let batch = self.join(&slices, 1);
            stem.forward_into(&self.threads, batch.values(), dims, &mut y.values);
        });
        Ok(y)
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
        let out = &mut residual.values;
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
        let (mut slices, mut images, mut joined) = (Vec::new(), 0, (0, 0, 0));
        for part in &parts {
            slices.push(&*part.values);
            images += part.dims.n;
            joined = (part.channels, part.dims.h, part.dims.w);
        }
        let (channels, h, w) = joined;
        let mut y = self.activation(channels, BatchDims { n: images, h, w });
        let blocks = channels.div_ceil(BLOCK);
        join_images_into(&self.threads, &slices, blocks, &mut y.values);
        Ok(y)
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
        NonZeroUsize::new(passes_on(&self.threads)).unwrap_or(NonZeroUsize::MIN)
    }
}
