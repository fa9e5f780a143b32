//! The network's first two layers in one pass: the 7x7 convolution of stride 2 over planar numbers or
//! pixels with ReLU, and the 3x3 max-pool of stride 2.
//!
//! A task computes a band of pooled rows of one image ([`band`]). The convolution's output, which is
//! four times the pooled one, never leaves the cache.

mod band;
pub(crate) mod pool;
pub(crate) mod tile;

use super::buffer::{Buffer, Destination};
use super::isa::{Isa, StemKernels};
use super::layout::BatchDims;
use super::number::Numbers;
use super::pack::{self, WeightNumbers};
use super::pool::ThreadPool;
use super::tile::BLOCK;
use band::{Band, Geometry};

const CHANNELS: usize = 3;
const KERNEL: usize = 7;
const STRIDE: usize = 2;
const PADDING: usize = 3;
const TAPS: usize = CHANNELS * KERNEL * KERNEL;

/// The packed weights of the stem: a 7x7 convolution from 3 channels with stride 2 and padding 3,
/// ReLU, and a 3x3 max-pool with stride 2 and padding 1.
pub struct PackedStem {
    kernels: &'static StemKernels,
    /// The type of the weights, and of the pixels between their borders.
    numbers: WeightNumbers,
    out_channels: usize,
    /// `[panels][channel][ky][steps][width]` words.
    panels: Buffer,
    /// The bias: a float for each channel up to the end of the last panel.
    bias: Buffer,
    /// Integers only: what the sums start from where that is not zero, as many integers as the
    /// bias has floats.
    start: Option<Buffer>,
    /// Integers only: what the sums are multiplied by, as many floats as the bias.
    scale: Option<Buffer>,
    /// Integers only: the value of the pixels outside the image, for each channel.
    border: [u8; CHANNELS],
}

/// The numbers of the stem in 8-bit integers. Its input is bytes, and so is its output.
#[derive(Debug, Clone)]
pub struct Int8Stem {
    /// The weights, `[out_channels, 3, 7, 7]`.
    pub weight: Vec<i8>,
    /// What the sums of each output channel are multiplied by.
    pub scale: Vec<f32>,
    /// What is added to each output channel.
    pub bias: Vec<f32>,
    /// The value of the pixels outside the image, for each channel.
    pub border: [u8; 3],
}

/// Images as bytes: for each a slice of interleaved pixels, `[h, w, 3]`.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// The images.
    pub images: &'a [&'a [u8]],
    /// Which of a pixel's three bytes each of the network's planes takes.
    pub channels: [usize; CHANNELS],
    /// For each plane the number that a byte stands for. A stem in integers does without.
    pub values: &'a [[f32; 256]; CHANNELS],
}

/// The images that a stem reads.
#[derive(Clone, Copy)]
enum Images<'a> {
    /// Planar numbers, `[n, 3, h, w]`.
    Planar(&'a [f32]),
    Pixels(Pixels<'a>),
}

impl PackedStem {
    /// Packs `weight`, which is `[out_channels, 3, 7, 7]` with the batch norm folded into it, and
    /// `bias`, which has a number for each output channel.
    ///
    /// # Panics
    /// If `weight` does not have `147` numbers for each of `bias`.
    #[must_use]
    pub fn new(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        Self::packed(isa, WeightNumbers::F32, weight, bias)
    }

    /// Packs what [`Self::new`] does for a stem in bfloat16. It reads floats, which it rounds, and
    /// its output is bfloat16.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn bf16(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        Self::packed(isa, WeightNumbers::Bf16, weight, bias)
    }

    /// Packs a stem in 8-bit integers.
    ///
    /// # Panics
    /// As [`Self::new`], or if there is not a scale for each of the biases.
    #[must_use]
    pub fn int8(isa: Isa, stem: &Int8Stem) -> Self {
        let Int8Stem {
            weight,
            scale,
            bias,
            border,
        } = stem;
        assert_eq!(scale.len(), bias.len(), "scales of the stem");
        let whole: Vec<f32> = weight.iter().map(|&w| f32::from(w)).collect();
        let mut packed = Self::packed(isa, WeightNumbers::I8, &whole, bias);
        let mut padded = Buffer::zeroed(packed.bias.len());
        padded.as_mut_slice()[..scale.len()].copy_from_slice(scale);
        packed.scale = Some(padded);
        let offset = packed.kernels.pixel_offset;
        packed.start = pack::integer_starts(weight, scale.len(), offset, packed.bias.len());
        packed.border = *border;
        packed
    }

    fn packed(isa: Isa, numbers: WeightNumbers, weight: &[f32], bias: &[f32]) -> Self {
        let out_channels = bias.len();
        assert_eq!(
            weight.len(),
            out_channels * TAPS,
            "stem weight length for {out_channels} channels"
        );
        let kernels = isa.stem(numbers);
        let width = kernels.width;
        let count = out_channels.div_ceil(width);
        let (per_word, steps) = (numbers.per_word(), KERNEL.div_ceil(numbers.per_word()));
        let rows = CHANNELS * KERNEL;
        let mut panels = Buffer::zeroed(count * rows * steps * width);
        let packed = panels.as_mut_slice();
        for (channel, kernel) in weight.chunks_exact(TAPS).enumerate() {
            let panel = channel / width * rows * steps;
            for (tap, &value) in kernel.iter().enumerate() {
                let (row, column) = (tap / KERNEL, tap % KERNEL);
                let step = panel + row * steps + column / per_word;
                let word = step * width + channel % width;
                numbers.write(packed, word * per_word + column % per_word, value);
            }
        }
        let mut padded_bias = Buffer::zeroed(count * width);
        padded_bias.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Self {
            kernels,
            numbers,
            out_channels,
            panels,
            bias: padded_bias,
            start: None,
            scale: None,
            border: [0; CHANNELS],
        }
    }

    /// Returns the type of the output.
    #[must_use]
    pub fn output_numbers(&self) -> Numbers {
        self.kernels.stored
    }

    fn geometry(&self, input: BatchDims, threads: usize) -> Geometry {
        Geometry::new(input, threads, self.numbers)
    }

    /// Returns the images, rows and columns of the output for an input.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        self.geometry(input, 1).pooled
    }

    /// Returns the number of output channels.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Returns the multiplications and additions of the convolution for an input.
    #[must_use]
    pub fn flops(&self, input: BatchDims) -> u64 {
        (2 * self.geometry(input, 1).conv.pixels() * self.out_channels * TAPS) as u64
    }

    /// Returns how many bytes the packed weights take.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        (self.panels.len() + self.bias.len()) * size_of::<f32>()
    }

    /// Returns the stem's output for `x`, which is `[n, 3, h, w]`. The output is blocked and has
    /// [`Self::output_dims`].
    ///
    /// # Panics
    /// As [`Self::forward_into`].
    #[must_use]
    pub fn forward(&self, pool: &ThreadPool, x: &[f32], input: BatchDims) -> Vec<f32> {
        let dims = self.output_dims(input);
        let mut out = vec![0.0; dims.words(self.out_channels, self.output_numbers())];
        self.forward_into(pool, x, input, &mut out);
        out
    }

    /// Computes what [`Self::forward`] does, and writes it over every word of `out`.
    ///
    /// # Panics
    /// If `x` or `out` does not have the length of `input`, if `input` is empty, or if the stem is
    /// one of integers.
    pub fn forward_into(&self, pool: &ThreadPool, x: &[f32], input: BatchDims, out: &mut [f32]) {
        assert_ne!(
            self.numbers,
            WeightNumbers::I8,
            "a stem in integers reads bytes"
        );
        assert_eq!(
            x.len(),
            CHANNELS * input.pixels(),
            "stem input length for {input:?}"
        );
        self.run(pool, Images::Planar(x), input, out);
    }

    /// Computes the output for pixels, and writes it over every word of `out`.
    ///
    /// # Panics
    /// If `pixels` are not the images of `input`, if `out` does not have its length, if `input` is
    /// empty, or if a plane takes another byte than one of three.
    pub fn forward_pixels_into(
        &self,
        pool: &ThreadPool,
        pixels: Pixels<'_>,
        input: BatchDims,
        out: &mut [f32],
    ) {
        let length = CHANNELS * input.h * input.w;
        assert!(
            pixels.images.len() == input.n
                && pixels.images.iter().all(|image| image.len() == length),
            "stem input length for {input:?}"
        );
        assert!(
            pixels.channels.iter().all(|&channel| channel < CHANNELS),
            "planes of bytes {:?} of a pixel",
            pixels.channels
        );
        self.run(pool, Images::Pixels(pixels), input, out);
    }

    fn run(&self, pool: &ThreadPool, x: Images<'_>, input: BatchDims, out: &mut [f32]) {
        assert!(
            input.pixels() > 0,
            "the stem was given an empty input: {input:?}"
        );
        let mut session = pool.session();
        let geometry = self.geometry(input, session.threads());
        let blocks = self.out_channels.div_ceil(BLOCK);
        let stored = self.output_numbers();
        assert_eq!(
            out.len(),
            geometry.pooled.words(self.out_channels, stored),
            "stem output length for {input:?}"
        );
        if !self.out_channels.is_multiple_of(stored.block()) {
            // The pass writes sixteen channels at a time. Those beyond the last are zero.
            out.fill(0.0);
        }
        let own = geometry.padded_words() + geometry.ring_floats(blocks);
        let out = Destination::new(out);
        let bands = geometry.bands();
        session.run(input.n * bands, |task, scratch| {
            let band = Band {
                stem: self,
                geometry,
                image: task / bands,
                first: task % bands * geometry.band,
            };
            let padded = scratch.grow(own).as_mut_ptr();
            // SAFETY: the lengths of `x` and `out` were asserted, and `out` is exclusively
            // borrowed. The scratch memory has room for the padded rows and the ring after them,
            // and is this thread's own. Tasks write different pooled rows or different images.
            unsafe { band.run(x, padded, padded.wrapping_add(geometry.padded_words()), out) }
        });
    }
}
