//! A convolution layer. It chooses the algorithm by the layer's shape, packs the weights for it,
//! checks the lengths of what a forward pass is given, and runs.
//!
//! The algorithm does not depend on the batch or on the threads, so neither changes the bits of an
//! image's output.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::buffer::{Buffer, Destination, Source};
use super::gemm::Gemm;
use super::isa::{Isa, TileKernels};
use super::layout::BatchDims;
use super::number::Numbers;
use super::pack::{self, Panels, WeightNumbers};
use super::pool::{Session, ThreadPool};
use super::tile::BLOCK;
use super::window::{Offsets, Window};
use super::winograd::{self, Side, Winograd};

/// From this many input channels on, F(2x2, 3x3) serves 3x3 layers instead of F(4x4, 3x3). With 512
/// channels the larger tile's weights take 38 MB, which would be streamed from memory for every
/// batch, and images of 7x7 pixels waste half of its outputs.
const SMALL_TILE_CHANNELS: usize = 512;

/// For how many sizes of input a layer keeps the offsets of the pixels that it reads. A network runs
/// a layer for few sizes: one for each number of images that run together.
const KEPT_OFFSETS: usize = 8;

/// The shape of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Side of the kernel, in pixels.
    pub kernel: usize,
    /// Step between output pixels, in input pixels.
    pub stride: usize,
    /// Zeros on each side of the image, in pixels.
    pub padding: usize,
}

impl ConvShape {
    /// Returns how many numbers there are in the weight
    /// `[out_channels, in_channels, kernel, kernel]`.
    #[must_use]
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel * self.kernel
    }

    /// Returns the images, rows and columns of the output for an input.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        let side = |len: usize| {
            let padded = len + 2 * self.padding;
            assert!(
                padded >= self.kernel,
                "an input of {len} pixels is too small for {self:?}"
            );
            (padded - self.kernel) / self.stride + 1
        };
        BatchDims {
            n: input.n,
            h: side(input.h),
            w: side(input.w),
        }
    }
}

/// How a layer is computed. It follows from the layer's [`ConvShape`] and number type alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// A matrix product of the activations as they lie, for 1x1 kernels of stride 1.
    Gemm,
    /// A matrix product over a table of offsets, without a copy of the image, for any kernel and
    /// stride.
    ImplicitGemm,
    /// Winograd's F(2x2, 3x3), for 3x3 kernels of stride 1.
    Winograd2,
    /// Winograd's F(4x4, 3x3), for 3x3 kernels of stride 1.
    Winograd4,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gemm => "gemm",
            Self::ImplicitGemm => "implicit-gemm",
            Self::Winograd2 => "winograd-2x2",
            Self::Winograd4 => "winograd-4x4",
        })
    }
}

impl Algorithm {
    /// Chooses the algorithm for a shape and a number type.
    fn choose(shape: &ConvShape, numbers: WeightNumbers) -> Self {
        match (shape.kernel, shape.stride, shape.padding) {
            (1, 1, 0) => Self::Gemm,
            // Transformed integers take two bits more than a byte has.
            _ if numbers == WeightNumbers::I8 => Self::ImplicitGemm,
            // Fewer channels than a block would transform mostly padding.
            (3, 1, 1) if shape.in_channels < BLOCK * numbers.per_word() => Self::ImplicitGemm,
            (3, 1, 1) if shape.in_channels >= SMALL_TILE_CHANNELS => Self::Winograd2,
            (3, 1, 1) => Self::Winograd4,
            _ => Self::ImplicitGemm,
        }
    }
}

/// The numbers of a convolution in 8-bit integers.
///
/// The input is u8, of which 0 is zero. The output of channel `c` is `sum * scale[c] + bias[c] +
/// residual * residual_scale`, each operation rounded in float32, where `sum` is the exact sum of
/// products. Stored as u8 it is rounded to nearest, ties to even, and limited to 0 to 255.
#[derive(Debug, Clone)]
pub struct Int8Weights {
    /// The weights, `[out_channels, in_channels, kernel, kernel]`.
    pub weight: Vec<i8>,
    /// What the sums of each output channel are multiplied by.
    pub scale: Vec<f32>,
    /// What is added to each output channel.
    pub bias: Vec<f32>,
    /// The type of the output: [`Numbers::U8`] or [`Numbers::Bf16`].
    pub output: Numbers,
    /// The type of the residual that is added: that of the output, or [`Numbers::Bf16`].
    pub residual: Numbers,
    /// What the residual is multiplied by.
    pub residual_scale: f32,
}

impl Int8Weights {
    /// Returns whether no output is a NaN or beyond 10^9 in magnitude before it is limited to bytes,
    /// whatever the input and a residual of bytes are.
    fn are_bounded(&self) -> bool {
        let per_output = (self.weight.len() / self.bias.len().max(1)).max(1);
        let residual = 255.0 * self.residual_scale.abs();
        let channels = self.weight.chunks_exact(per_output).zip(&self.scale);
        channels.zip(&self.bias).all(|((weight, scale), bias)| {
            let sum: u32 = weight.iter().map(|w| u32::from(w.unsigned_abs())).sum();
            // A NaN is not below the limit.
            255.0 * sum as f32 * scale.abs() + bias.abs() + residual < 1e9
        })
    }
}

/// A convolution's weights, packed for one instruction set. Bias, residual and ReLU are fused into
/// its store.
///
/// Activations are slices of 32-bit words, each of which holds one, two or four channels
/// ([`Numbers`]). For a convolution in float32 the words are the numbers themselves.
pub struct PackedConv {
    shape: ConvShape,
    weights: Weights,
    /// The type of the weights.
    numbers: WeightNumbers,
    /// The type of the input.
    input: Numbers,
    /// The type of the output.
    output: Numbers,
    /// The bias: a float for each output channel, up to the end of the last panel.
    bias: Buffer,
    /// Integers only: what the sums start from where that is not zero, as many integers as the
    /// bias has floats.
    start: Option<Buffer>,
    /// Integers only: what the sums are multiplied by, as many floats as the bias.
    scale: Option<Buffer>,
    /// The type of the residual, and what it is multiplied by.
    residual: (Numbers, f32),
    /// Whether outputs are between -2^31 and 2^31 before they are limited to bytes, whatever the
    /// input is.
    bounded: bool,
    /// The weights that the layer after this one will read.
    next: OnceLock<pack::Weights>,
    /// For the sizes of input that this layer was run for: which pixels are read. The latest is the
    /// last.
    offsets: Mutex<Vec<(BatchDims, Arc<Offsets>)>>,
}

enum Weights {
    /// For a matrix product, and what computes it.
    Panels(Panels, &'static TileKernels),
    Winograd(Winograd),
}

impl Weights {
    fn panels(&self) -> &Panels {
        match self {
            Self::Panels(panels, _) => panels,
            Self::Winograd(winograd) => winograd.panels(),
        }
    }
}

impl PackedConv {
    /// Packs `weight`, which is `[out_channels, in_channels, kernel, kernel]` with the batch norm
    /// folded into it, and `bias`, which is `[out_channels]`, for a convolution in float32.
    ///
    /// # Panics
    /// If a length does not match the shape, or a size in the shape other than the padding is zero.
    #[must_use]
    pub fn new(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Self {
        let types = (Numbers::F32, WeightNumbers::F32, Numbers::F32);
        Self::packed(isa, shape, types, weight, bias)
    }

    /// Packs what [`Self::new`] does for a convolution in bfloat16: weights and activations are
    /// bfloat16, bias and sums float32.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn bf16(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Self {
        let types = (Numbers::Bf16, WeightNumbers::Bf16, Numbers::Bf16);
        Self::packed(isa, shape, types, weight, bias)
    }

    /// Packs a convolution in bfloat16 whose output is float32.
    pub(crate) fn bf16_to_f32(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Self {
        let types = (Numbers::Bf16, WeightNumbers::Bf16, Numbers::F32);
        Self::packed(isa, shape, types, weight, bias)
    }

    /// Packs a 3x3 convolution of stride 1 and padding 1 between 8-bit integers that is computed in
    /// bfloat16 by Winograd's filtering: `weight` and `bias` are for the integers as numbers, and
    /// the output is rounded to nearest, ties to even, and limited to 0 to 255. It takes no residual.
    ///
    /// F(4x4, 3x3) takes a quarter of the products, each of which takes twice the time of one of
    /// 8-bit integers. Weights keep eight bits of precision each, whatever the largest is.
    ///
    /// # Panics
    /// As [`Self::new`], or if the layer is none that Winograd's filtering computes
    /// ([`Algorithm`]).
    #[must_use]
    pub fn winograd_u8(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Self {
        let types = (Numbers::U8, WeightNumbers::Bf16, Numbers::U8);
        let algorithm = Algorithm::choose(&shape, WeightNumbers::Bf16);
        assert!(
            matches!(algorithm, Algorithm::Winograd2 | Algorithm::Winograd4),
            "{shape:?} is no layer for Winograd's filtering in bfloat16"
        );
        Self::packed(isa, shape, types, weight, bias)
    }

    /// Packs a convolution in 8-bit integers.
    ///
    /// # Panics
    /// As [`Self::new`], or if a type of the output or of the residual is none that
    /// [`Int8Weights`] names.
    #[must_use]
    pub fn int8(isa: Isa, shape: ConvShape, weights: &Int8Weights) -> Self {
        let Int8Weights {
            weight,
            scale,
            bias,
            output,
            residual,
            residual_scale,
        } = weights;
        assert!(
            *residual == *output || *residual == Numbers::Bf16,
            "a residual of {residual} beside an output of {output}"
        );
        assert_eq!(scale.len(), bias.len(), "scales for {shape:?}");
        let types = (Numbers::U8, WeightNumbers::I8, *output);
        let whole: Vec<f32> = weight.iter().map(|&w| f32::from(w)).collect();
        let mut packed = Self::packed(isa, shape, types, &whole, bias);
        let mut padded = Buffer::zeroed(packed.bias.len());
        padded.as_mut_slice()[..scale.len()].copy_from_slice(scale);
        packed.scale = Some(padded);
        let offset = isa.tiles(WeightNumbers::I8, *output).pixel_offset;
        packed.start = pack::integer_starts(weight, scale.len(), offset, packed.bias.len());
        packed.residual = (*residual, *residual_scale);
        packed.bounded = *residual == Numbers::U8 && weights.are_bounded();
        packed
    }

    fn packed(
        isa: Isa,
        shape: ConvShape,
        (input, numbers, output): (Numbers, WeightNumbers, Numbers),
        weight: &[f32],
        bias: &[f32],
    ) -> Self {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            ..
        } = shape;
        assert!(
            in_channels * out_channels * kernel * stride > 0,
            "a size is zero in {shape:?}"
        );
        assert_eq!(
            weight.len(),
            shape.weight_len(),
            "weight length for {shape:?}"
        );
        assert_eq!(bias.len(), out_channels, "bias length for {shape:?}");
        let taps = kernel * kernel;
        let winograd = |side| {
            let channels = (out_channels, in_channels);
            Weights::Winograd(Winograd::new(isa, side, numbers, input, channels, weight))
        };
        let weights = match Algorithm::choose(&shape, numbers) {
            Algorithm::Winograd2 => winograd(Side::Two),
            Algorithm::Winograd4 => winograd(Side::Four),
            Algorithm::Gemm | Algorithm::ImplicitGemm => {
                let tiles = isa.tiles(numbers, output);
                // Panels fill the last block of the output, whose lanes past the last channel are
                // zero.
                let outputs = out_channels.next_multiple_of(output.block());
                let panels = Panels::new(
                    numbers,
                    tiles.width,
                    (1, outputs, in_channels, taps),
                    out_channels,
                    |_, output, input, tap| weight[(output * in_channels + input) * taps + tap],
                );
                Weights::Panels(panels, tiles)
            }
        };
        let panels = weights.panels();
        let channels = panels.width.max(output.block());
        let mut padded_bias = Buffer::zeroed(out_channels.next_multiple_of(channels));
        padded_bias.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Self {
            shape,
            weights,
            numbers,
            input,
            output,
            bias: padded_bias,
            start: None,
            scale: None,
            residual: (output, 1.0),
            bounded: false,
            next: OnceLock::new(),
            offsets: Mutex::default(),
        }
    }

    /// Returns the type of the input.
    #[must_use]
    pub fn input_numbers(&self) -> Numbers {
        self.input
    }

    /// Returns the type of the output.
    #[must_use]
    pub fn output_numbers(&self) -> Numbers {
        self.output
    }

    /// Returns the layer's shape.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Returns how the layer is computed.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        Algorithm::choose(&self.shape, self.numbers)
    }

    /// Returns the images, rows and columns of the output for an input.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        self.shape.output_dims(input)
    }

    /// Returns the multiplications and additions for an input. They are those of a direct
    /// convolution, whatever the algorithm.
    #[must_use]
    pub fn flops(&self, input: BatchDims) -> u64 {
        (2 * self.output_dims(input).pixels() * self.shape.weight_len()) as u64
    }

    /// Returns how many bytes the packed weights take.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.weights.panels().bytes() + self.bias.len() * size_of::<f32>()
    }

    /// Returns a handle on the packed weights, for the layer before this one.
    #[must_use]
    pub fn weights(&self) -> pack::Weights {
        self.weights.panels().weights().clone()
    }

    /// Sets the weights that will be read after this layer. The layer asks them into the cache
    /// while it computes, which changes no result. Only the first call counts.
    pub fn precede(&self, next: pack::Weights) {
        self.next.get_or_init(|| next);
    }

    /// Returns the layer's output for the blocked activation `x` of `input` images, rows and
    /// columns: the convolution plus the bias, plus `skip` if it is given, and with `relu` clamped
    /// at zero. `skip` is blocked and has the output's shape. All three are words.
    ///
    /// # Panics
    /// If a length does not match `input`, or if `input` is empty or has 2^28 pixels or more.
    #[must_use]
    pub fn forward(
        &self,
        pool: &ThreadPool,
        x: &[f32],
        input: BatchDims,
        skip: Option<&[f32]>,
        relu: bool,
    ) -> Vec<f32> {
        let dims = self.output_dims(input);
        let mut out = vec![0.0; dims.words(self.shape.out_channels, self.output_numbers())];
        self.forward_into(pool, x, input, skip, relu, &mut out);
        out
    }

    /// Computes what [`Self::forward`] does, and writes it over every element of `out`.
    ///
    /// # Panics
    /// Panics as [`Self::forward`] does, or if `out` has the wrong length.
    pub fn forward_into(
        &self,
        pool: &ThreadPool,
        x: &[f32],
        input: BatchDims,
        skip: Option<&[f32]>,
        relu: bool,
        out: &mut [f32],
    ) {
        self.write(pool, x, input, skip.into(), relu, out);
    }

    /// Computes what [`Self::forward`] does with the residual that lies in `out`, and writes the
    /// output over it. Reading and writing one place takes half the memory traffic of reading one
    /// and writing another.
    ///
    /// # Panics
    /// Panics as [`Self::forward_into`] does, or if the residual's type is not the output's.
    pub fn forward_onto(
        &self,
        pool: &ThreadPool,
        x: &[f32],
        input: BatchDims,
        relu: bool,
        out: &mut [f32],
    ) {
        self.write(pool, x, input, Residual::Output, relu, out);
    }

    /// Checks the operands, and writes every element of `out`.
    fn write(
        &self,
        pool: &ThreadPool,
        x: &[f32],
        input: BatchDims,
        skip: Residual<'_>,
        relu: bool,
        out: &mut [f32],
    ) {
        let ConvShape {
            in_channels,
            out_channels,
            ..
        } = self.shape;
        assert!(
            input.pixels() > 0,
            "{:?} was given an empty input: {input:?}",
            self.shape
        );
        assert_eq!(
            x.len(),
            input.words(in_channels, self.input_numbers()),
            "input length for {:?} and {input:?}",
            self.shape
        );
        let (output, stored) = (self.output_dims(input), self.output_numbers());
        assert_eq!(
            out.len(),
            output.words(out_channels, stored),
            "output length for {:?} and {input:?}",
            self.shape
        );
        assert!(
            matches!(skip, Residual::None)
                || stored != Numbers::U8
                || self.numbers == WeightNumbers::I8,
            "{:?} takes no residual",
            self.shape
        );
        match skip {
            Residual::None => {}
            Residual::At(skip) => assert_eq!(
                skip.len(),
                output.words(out_channels, self.residual.0),
                "residual length for {:?} and {input:?}",
                self.shape
            ),
            Residual::Output => assert_eq!(
                self.residual.0, stored,
                "the type of the residual that the output of {:?} takes the place of",
                self.shape
            ),
        }
        // Offsets count the words of one block in 32 bits.
        assert!(
            input.pixels() < (u32::MAX as usize) / BLOCK,
            "{input:?} has too many pixels"
        );
        let out = Destination::new(out);
        let skip = match skip {
            Residual::None => Source::NOTHING,
            Residual::At(skip) => Source::new(skip),
            // The residual is read by the pointer that the output is written by: another borrow of
            // the memory would invalidate that pointer.
            Residual::Output => out.as_source(),
        };
        let call = winograd::Call {
            input: Source::new(x),
            dims: input,
            input_blocks: self.input_numbers().blocks(in_channels),
            bias: Source::new(self.bias.as_slice()),
            output: out,
            output_blocks: stored.blocks(out_channels),
            skip,
            relu,
        };
        let mut session = pool.session();
        // SAFETY: the lengths of input, output and residual were asserted, and the bias was made as
        // long as the last panel asks for. `out` is exclusively borrowed, so it overlaps nothing
        // that is borrowed too; only the residual may be `out` itself.
        unsafe {
            match &self.weights {
                Weights::Panels(panels, tiles) => {
                    self.multiply(&mut session, (panels, tiles), &call, output);
                }
                Weights::Winograd(winograd) => winograd.run(&mut session, &call),
            }
        }
    }

    /// Computes the layer as a matrix product: in place, or over a table of offsets.
    ///
    /// # Safety
    /// - The operands of `call` span what their fields say, with `output` as the output's images,
    ///   rows and columns.
    /// - The output overlaps no other operand, unless the residual is the output itself, word for
    ///   word.
    /// - Nobody else writes to the operands meanwhile, or reads the output.
    unsafe fn multiply(
        &self,
        session: &mut Session<'_>,
        (panels, tiles): (&Panels, &'static TileKernels),
        call: &winograd::Call<'_>,
        output: BatchDims,
    ) {
        let offsets =
            (self.algorithm() == Algorithm::ImplicitGemm).then(|| self.offsets(call.dims, output));
        let (skip_numbers, skip_scale) = self.residual;
        let gemm = Gemm {
            kernels: tiles,
            panels,
            matrix: 0,
            bias: call.bias,
            start: Source::optional(self.start.as_ref()),
            scale: Source::optional(self.scale.as_ref()),
            input: call.input,
            input_block: call.dims.pixels() * BLOCK,
            blocks: call.input_blocks,
            pixels: output.pixels(),
            offsets: offsets.as_deref(),
            output: call.output,
            output_block: output.pixels() * BLOCK,
            output_blocks: call.output_blocks,
            skip: call.skip,
            skip_numbers,
            skip_block: output.pixels() * BLOCK,
            skip_blocks: skip_numbers.blocks(self.shape.out_channels),
            skip_scale,
            bounded: self.bounded,
            relu: call.relu,
            next: self.next.get(),
        };
        // SAFETY: the caller vouches for the operands of `call`, which these are. The offsets lie
        // within the pixels of the input, as they leave out those outside the image.
        unsafe { gemm.run(session) }
    }

    /// Returns which pixels are read for an input. They are kept, as making them takes a tenth of
    /// the time of a layer in 8-bit integers.
    fn offsets(&self, input: BatchDims, output: BatchDims) -> Arc<Offsets> {
        let lock = || self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, offsets)) = lock().iter().find(|(dims, _)| *dims == input) {
            return Arc::clone(offsets);
        }
        let ConvShape {
            kernel,
            stride,
            padding,
            ..
        } = self.shape;
        let window = Window {
            kernel,
            stride,
            padding,
            input,
            output,
        };
        let offsets = Arc::new(window.offsets());
        let mut kept = lock();
        if kept.len() == KEPT_OFFSETS {
            kept.remove(0);
        }
        kept.push((input, Arc::clone(&offsets)));
        offsets
    }
}

/// What is added to a convolution.
enum Residual<'a> {
    None,
    At(&'a [f32]),
    /// What the output's memory holds before it is written.
    Output,
}

impl<'a> From<Option<&'a [f32]>> for Residual<'a> {
    fn from(skip: Option<&'a [f32]>) -> Self {
        skip.map_or(Self::None, Self::At)
    }
}
