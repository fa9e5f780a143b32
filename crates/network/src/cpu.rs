//! The CPU's backend: our own kernels over pooled buffers.
//!
//! Activations are `[blocks][images * height * width][16]` words in buffers that go back to the
//! backend's pool; a word holds one float32, two bfloat16 numbers or four 8-bit integers. No tensor
//! of candle's takes part between the images and the logits.

mod words;

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use imgclass_checkpoint::CheckpointInfo;
use imgclass_kernels::{
    BLOCK, BatchDims, BufferPool, ConvShape, Entered, Int8Weights, Isa, Numbers, PackedConv,
    PackedLinear, PackedStem, PooledBuffer, ThreadPool, average_words, join_images_into,
    words_to_nchw,
};

use crate::backend::{
    Backend, ConvPlace, ConvRole, FoldedConv, ImagesTogether, LinearWeights, STEM,
};
use crate::error::NetworkError;
use crate::input::{Input, Normalisation};
use crate::profile;
use crate::quantise::{
    self, QuantisedConv, QuantisedLinear, QuantisedStem, QuantisedWeights, Scales, StemWeights,
};

/// The most forward passes that run at one time. Each pass of four images holds 34 MB: on a machine
/// of many cores and little memory for each, passes share threads instead.
const MAX_PASSES: usize = 8;

/// The bytes of buffers that are kept for each forward pass: what a pass frees on its way, 34 MB
/// for a batch of four.
const PASS_BYTES: usize = 34 << 20;

/// The fewest bytes of buffers that are kept.
const MIN_KEPT_BYTES: usize = 64 << 20;

/// The number type that the CPU computes in.
#[derive(Debug, Clone)]
pub enum CpuNumbers {
    /// Weights, activations and sums in float32.
    F32,
    /// Weights and activations in bfloat16, sums in float32.
    Bf16,
    /// Weights and activations in 8-bit integers, with the scale of each layer's output. The last
    /// layer and those that Winograd's filtering computes multiply in bfloat16.
    Int8(Arc<Scales>),
}

/// Returns what an integer of a layer's output stands for, by the layer's name, and whether that
/// output is bfloat16 because the layer is kept wide.
pub(crate) type OutputOf<'a> = dyn Fn(&str) -> Result<(f32, bool), NetworkError> + 'a;

/// Computes a ResNet's layers with our own kernels.
pub struct CpuBackend {
    isa: Isa,
    numbers: CpuNumbers,
    threads: Arc<ThreadPool>,
    /// The memory of activations, which goes from layer to layer and from pass to pass.
    buffers: BufferPool,
    normalisation: Normalisation,
}

impl CpuBackend {
    /// Returns a backend that computes in float32. It packs weights for `isa` and runs layers on
    /// `threads`. Images that come as [`Input::Pixels`] are normalised by `normalisation`.
    #[must_use]
    pub fn new(isa: Isa, threads: Arc<ThreadPool>, normalisation: Normalisation) -> Self {
        Self::with_numbers(isa, threads, normalisation, CpuNumbers::F32)
    }

    /// Returns what [`Self::new`] does, for any number type.
    #[must_use]
    pub fn with_numbers(
        isa: Isa,
        threads: Arc<ThreadPool>,
        normalisation: Normalisation,
        numbers: CpuNumbers,
    ) -> Self {
        Self {
            isa,
            numbers,
            buffers: BufferPool::new(kept_bytes(passes(&threads))),
            threads,
            normalisation,
        }
    }

    /// Returns a function that makes backends for a checkpoint's images, all on the same threads.
    pub(crate) fn maker(
        isa: Isa,
        threads: Arc<ThreadPool>,
        info: &CheckpointInfo,
    ) -> impl Fn(CpuNumbers) -> Self + use<> {
        let normalisation = Normalisation::of(&info.preprocessing);
        move |numbers| Self::with_numbers(isa, Arc::clone(&threads), normalisation.clone(), numbers)
    }

    fn run_conv(&self, conv: &Conv, x: &Activation, relu: bool) -> Activation {
        let packed = &conv.packed;
        let converted = self.converted(x, packed.input_numbers(), conv.input_scale);
        let x = converted.as_ref().unwrap_or(x);
        let channels = packed.shape().out_channels;
        let dims = packed.output_dims(x.dims);
        let numbers = packed.output_numbers();
        let mut values = self.buffers.take(dims.words(channels, numbers));
        conv.timed(x.dims, || {
            packed.forward_into(&self.threads, &x.values, x.dims, None, relu, &mut values);
        });
        Activation {
            values,
            numbers,
            scale: conv.scale,
            channels,
            dims,
        }
    }

    /// Returns an activation in other numbers; `None` where it has these already. That is so
    /// everywhere but between layers that are kept wide and layers that are not. `scale` is for
    /// integers: what they are multiplied by.
    fn converted(&self, x: &Activation, to: Numbers, scale: f32) -> Option<Activation> {
        if x.numbers == to {
            return None;
        }
        let mut values = self.buffers.take(x.dims.words(x.channels, to));
        let scale = if to == Numbers::U8 {
            words::bf16_to_integers(&x.values, x.dims.pixels(), scale, &mut values);
            scale
        } else {
            words::integers_to_bf16(&x.values, x.dims.pixels(), x.scale, &mut values);
            1.0
        };
        Some(Activation {
            values,
            numbers: to,
            scale,
            ..*x
        })
    }

    /// Returns the threads that compute.
    pub(crate) fn threads(&self) -> &ThreadPool {
        &self.threads
    }

    /// Returns a copy of an activation.
    pub(crate) fn copy(&self, x: &Activation) -> Activation {
        let mut values = self.buffers.take(x.values.len());
        values.copy_from_slice(&x.values);
        Activation { values, ..*x }
    }

    /// Packs a quantised stem.
    pub(crate) fn pack_stem(&self, stem: &QuantisedStem) -> Stem {
        match &stem.weights {
            StemWeights::Integers(integers) => Stem {
                packed: PackedStem::int8(self.isa, integers),
                scale: stem.output_scale,
            },
            StemWeights::Wide { weight, bias } => Stem {
                packed: PackedStem::bf16(self.isa, weight, bias),
                scale: 1.0,
            },
        }
    }

    /// Packs a quantised convolution. `output_of` tells what the layers around it write.
    pub(crate) fn pack_conv(
        &self,
        place: &ConvPlace,
        shape: ConvShape,
        conv: &QuantisedConv,
        output_of: &OutputOf<'_>,
    ) -> Result<Conv, NetworkError> {
        let (isa, bias, own) = (self.isa, &conv.bias, conv.output_scale);
        let (output, residual, residual_scale) = match &place.role {
            ConvRole::Relu => (Numbers::U8, Numbers::U8, own),
            ConvRole::Downsample(_) => (Numbers::Bf16, Numbers::Bf16, own),
            ConvRole::Last { residual } => match residual.as_deref().map(output_of).transpose()? {
                Some((scale, false)) => (Numbers::U8, Numbers::U8, scale),
                // That of the downsample convolution, or of a layer that is kept wide.
                None | Some((_, true)) => (Numbers::U8, Numbers::Bf16, 1.0),
            },
        };
        let (packed, scale, residual) = match &conv.weights {
            QuantisedWeights::Wide(weight) => {
                let packed = PackedConv::bf16(isa, shape, weight, bias);
                (packed, 1.0, (Numbers::Bf16, 1.0))
            }
            QuantisedWeights::Integers { weight, scale }
                if quantise::multiplies_in_bf16(place, &shape) =>
            {
                let weight = quantise::as_numbers(weight, scale);
                let packed = PackedConv::winograd_u8(isa, shape, &weight, bias);
                (packed, own, (residual, residual_scale))
            }
            QuantisedWeights::Integers { weight, scale } => {
                let weights = Int8Weights {
                    weight: weight.clone(),
                    scale: scale.clone(),
                    bias: bias.clone(),
                    output,
                    residual,
                    residual_scale: residual_scale / own,
                };
                let packed = PackedConv::int8(isa, shape, &weights);
                (packed, own, (residual, residual_scale))
            }
        };
        Ok(Conv {
            name: place.name.clone(),
            packed,
            input_scale: output_of(&place.input)?.0,
            scale,
            residual,
        })
    }

    /// Packs a quantised last layer, which multiplies in bfloat16. It is a thousandth of the work,
    /// and its outputs are compared and shown.
    pub(crate) fn pack_linear(&self, linear: &QuantisedLinear) -> PackedLinear {
        let inputs = linear.weight.len() / linear.bias.len().max(1);
        PackedLinear::bf16(self.isa, inputs, &linear.numbers(), &linear.bias)
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
    /// The numbers, `[blocks][images * height * width][16]` words.
    values: PooledBuffer,
    numbers: Numbers,
    /// What 8-bit integers are multiplied by; 1 for other numbers.
    scale: f32,
    channels: usize,
    dims: BatchDims,
}

impl Activation {
    /// Returns the numbers in words, `[blocks][pixels][16]`.
    pub(crate) fn words(&self) -> &[f32] {
        &self.values
    }

    /// Returns how many pixels all images have together.
    pub(crate) fn pixels(&self) -> usize {
        self.dims.pixels()
    }

    /// Returns how many images there are.
    pub(crate) fn images(&self) -> usize {
        self.dims.n
    }

    /// Returns how many channels there are.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }
}

/// The stem packed for the kernels.
pub struct Stem {
    packed: PackedStem,
    /// The scale of its output.
    scale: f32,
}

/// A convolution packed for the kernels.
pub struct Conv {
    name: String,
    packed: PackedConv,
    /// What integers of the input are multiplied by; 1 in networks without integers.
    input_scale: f32,
    /// The scale of its output.
    scale: f32,
    /// The type of the residual that is added, and what its integers are multiplied by.
    residual: (Numbers, f32),
}

impl Conv {
    /// Returns the checkpoint's name of the layer.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs the layer by `run` and records its time under the layer's name.
    fn timed<T>(&self, dims: BatchDims, run: impl FnOnce() -> T) -> T {
        let describe = || {
            let algorithm = match self.packed.input_numbers() {
                Numbers::F32 => self.packed.algorithm().to_string(),
                numbers => format!("{} {numbers}", self.packed.algorithm()),
            };
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
    type Stem = Stem;
    type Linear = PackedLinear;
    type Rows = Rows;

    fn load_conv(&self, place: ConvPlace, folded: FoldedConv) -> Result<Conv, NetworkError> {
        let FoldedConv {
            shape,
            weight,
            bias,
        } = &folded;
        let packed = match &self.numbers {
            CpuNumbers::F32 => PackedConv::new(self.isa, *shape, weight, bias),
            CpuNumbers::Bf16 => PackedConv::bf16(self.isa, *shape, weight, bias),
            CpuNumbers::Int8(scales) => {
                let conv = quantise::conv(&place, &folded, scales)?;
                return self.pack_conv(&place, *shape, &conv, &|name| scales.output_of(name));
            }
        };
        Ok(Conv {
            name: place.name,
            residual: (packed.output_numbers(), 1.0),
            packed,
            input_scale: 1.0,
            scale: 1.0,
        })
    }

    fn load_stem(&self, folded: FoldedConv) -> Result<Stem, NetworkError> {
        let (isa, weight, bias) = (self.isa, &folded.weight, &folded.bias);
        let packed = match &self.numbers {
            CpuNumbers::F32 => PackedStem::new(isa, weight, bias),
            CpuNumbers::Bf16 => PackedStem::bf16(isa, weight, bias),
            CpuNumbers::Int8(scales) => {
                let range = scales.of(STEM)?;
                let is_wide = scales.wide.contains(STEM);
                let stem = quantise::stem(&folded, &self.normalisation, range, is_wide);
                return Ok(self.pack_stem(&stem));
            }
        };
        Ok(Stem { packed, scale: 1.0 })
    }

    /// In 8-bit networks the layer is bfloat16 (`pack_linear` says why).
    fn load_linear(&self, weights: LinearWeights) -> Result<PackedLinear, NetworkError> {
        let LinearWeights {
            inputs,
            weight,
            bias,
            ..
        } = weights;
        Ok(match &self.numbers {
            CpuNumbers::F32 => PackedLinear::new(self.isa, inputs, &weight, &bias),
            CpuNumbers::Bf16 | CpuNumbers::Int8(_) => {
                PackedLinear::bf16(self.isa, inputs, &weight, &bias)
            }
        })
    }

    fn loading_threads(&self) -> usize {
        self.threads.threads()
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
        stem: &Stem,
        images: &[&Input],
        size: (usize, usize),
    ) -> Result<Activation, NetworkError> {
        let Stem { packed, scale } = stem;
        let dims = BatchDims {
            n: images.len(),
            h: size.0,
            w: size.1,
        };
        let describe = || {
            (
                "conv1 and max-pool".to_owned(),
                "stem".to_owned(),
                packed.flops(dims),
            )
        };
        let (channels, out_dims) = (packed.out_channels(), packed.output_dims(dims));
        let numbers = packed.output_numbers();
        let mut values = self.buffers.take(out_dims.words(channels, numbers));
        let reads_bytes = numbers == Numbers::U8;
        if reads_bytes || images.iter().all(|image| image.pixels().is_some()) {
            let pixels: Vec<Cow<[u8]>> = images
                .iter()
                .map(|image| match image {
                    Input::Pixels(pixels) => Cow::Borrowed(pixels.as_slice()),
                    Input::Planar(numbers) => {
                        Cow::Owned(self.normalisation.nearest_pixels(numbers))
                    }
                })
                .collect();
            let pixels: Vec<&[u8]> = pixels.iter().map(|image| &**image).collect();
            let pixels = self.normalisation.pixels(&pixels);
            profile::layer(describe, || {
                packed.forward_pixels_into(&self.threads, pixels, dims, &mut values);
            });
        } else {
            let prepared: Vec<Cow<[f32]>> = images
                .iter()
                .map(|image| match image {
                    Input::Planar(numbers) => Cow::Borrowed(numbers.as_slice()),
                    Input::Pixels(pixels) => Cow::Owned(self.normalisation.planar(pixels)),
                })
                .collect();
            let mut run = |batch: &[f32]| {
                profile::layer(describe, || {
                    packed.forward_into(&self.threads, batch, dims, &mut values);
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
        }
        Ok(Activation {
            values,
            numbers,
            scale: *scale,
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

    /// The result is written over the residual, which is read a tile before, where both are of the
    /// same type.
    fn conv_add_relu(
        &self,
        conv: &Conv,
        x: &Activation,
        mut residual: Activation,
    ) -> Result<Activation, NetworkError> {
        let packed = &conv.packed;
        let converted = self.converted(x, packed.input_numbers(), conv.input_scale);
        let x = converted.as_ref().unwrap_or(x);
        let (numbers, scale) = conv.residual;
        if let Some(converted) = self.converted(&residual, numbers, scale) {
            residual = converted;
        }
        let numbers = packed.output_numbers();
        if residual.numbers == numbers {
            let out = &mut residual.values[..];
            conv.timed(x.dims, || {
                packed.forward_onto(&self.threads, &x.values, x.dims, true, out);
            });
            residual.scale = conv.scale;
            return Ok(residual);
        }
        let Activation { channels, dims, .. } = residual;
        let mut values = self.buffers.take(dims.words(channels, numbers));
        conv.timed(x.dims, || {
            let skip = Some(&residual.values[..]);
            packed.forward_into(&self.threads, &x.values, x.dims, skip, true, &mut values);
        });
        Ok(Activation {
            values,
            numbers,
            scale: conv.scale,
            channels,
            dims,
        })
    }

    fn concatenate(&self, mut parts: Vec<Activation>) -> Result<Activation, NetworkError> {
        if let [_] = parts.as_slice() {
            return Ok(parts.remove(0));
        }
        let Activation {
            numbers,
            scale,
            channels,
            dims,
            ..
        } = parts[0];
        let slices: Vec<&[f32]> = parts.iter().map(|part| &*part.values).collect();
        Ok(Activation {
            values: self.join(&slices, channels.div_ceil(numbers.block())),
            numbers,
            scale,
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
            let threads = &self.threads;
            average_words(threads, &x.values, x.channels, x.dims, x.numbers, x.scale)
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
            numbers,
            scale,
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
        Ok(words_to_nchw(&chosen, *channels, dims, *numbers, *scale))
    }

    /// Measured with two threads and batches of eight: the caches of two cores hold about one
    /// image's early activations.
    fn images_together(&self) -> ImagesTogether {
        let early = (self.threads.available() / 2).max(1);
        [early, early, early, 4 * early, usize::MAX]
    }

    /// Where a batch has as many images as there are threads, or more, each thread takes whole
    /// images through the early stages, whose activations are large: so no thread reads there what
    /// another has written. On cores without a common cache that is slow.
    fn images_side_by_side(&self, images: usize) -> usize {
        match self.threads.available() {
            1 => 0,
            threads => images / threads * threads,
        }
    }

    fn run_side_by_side(
        &self,
        images: usize,
        run: &(dyn Fn(usize) -> Result<Activation, NetworkError> + Sync),
    ) -> Result<Vec<Activation>, NetworkError> {
        let is_recorded = profile::is_recording();
        let done: Vec<_> = (0..images).map(|_| Mutex::new(None)).collect();
        self.threads.for_each_alone(images, |index| {
            let result = if is_recorded {
                profile::record(|| run(index))
            } else {
                (run(index), Vec::new())
            };
            *done[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        let threads = u32::try_from(self.threads.available()).unwrap_or(u32::MAX);
        let done = done.into_iter().filter_map(|done| {
            let done = done.into_inner();
            done.unwrap_or_else(PoisonError::into_inner)
        });
        done.map(|(result, layers)| {
            profile::add_side_by_side(layers, threads);
            result
        })
        .collect()
    }

    /// A quarter of the bytes wait in the queue, and each pass normalises its own images.
    fn prefers_pixels(&self) -> bool {
        true
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
