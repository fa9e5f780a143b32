//! A convolution layer: chooses the algorithm by the layer's shape, packs its weights, checks lengths, and runs. It never
//! lets batch size or thread count change an output's bits.

use std::fmt;
use std::sync::OnceLock;

use super::buffer::{Buffer, Destination, Source};
use super::gemm::Gemm;
use super::isa::Isa;
use super::layout::BatchDims;
use super::pack::{self, Panels};
use super::pool::{Session, ThreadPool};
use super::tile::BLOCK;
use super::window::Window;
use super::winograd::{self, Side, Winograd};

/// From this many input channels on F(2x2) serves 3x3 layers instead of F(4x4): with 512 channels the larger tile's
/// weights (38 MB) would have to be streamed from memory for every batch, and images of 7x7 waste half of its outputs.
const SMALL_TILE_CHANNELS: usize = 512;

/// The shape of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Channels read.
    pub in_channels: usize,
    /// Channels written.
    pub out_channels: usize,
    /// Side of the kernel, in pixels.
    pub kernel: usize,
    /// Step between output pixels, in input pixels.
    pub stride: usize,
    /// Zeros on each side of the image, in pixels.
    pub padding: usize,
}

impl ConvShape {
    /// Numbers in the weight `[out_channels, in_channels, kernel, kernel]`.
    #[must_use]
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel * self.kernel
    }

    /// Output images, rows and columns for an input.
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

/// How a layer is computed: a function of its [`ConvShape`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 1x1 of stride 1: a matrix product in place.
    Gemm,
    /// Any kernel and stride: a matrix product over an offset table, without a copy of the image.
    ImplicitGemm,
    /// 3x3 of stride 1 in tiles of 2x2 outputs.
    Winograd2,
    /// 3x3 of stride 1 in tiles of 4x4 outputs.
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
    fn choose(shape: &ConvShape) -> Self {
        match (shape.kernel, shape.stride, shape.padding) {
            (1, 1, 0) => Self::Gemm,
            // Fewer channels than a block would transform mostly padding.
            (3, 1, 1) if shape.in_channels < BLOCK => Self::ImplicitGemm,
            (3, 1, 1) if shape.in_channels >= SMALL_TILE_CHANNELS => Self::Winograd2,
            (3, 1, 1) => Self::Winograd4,
            _ => Self::ImplicitGemm,
        }
    }
}

/// A convolution's weights packed for one instruction set, with bias, residual and ReLU fused into its store.
pub struct PackedConv {
    isa: Isa,
    shape: ConvShape,
    weights: Weights,
    /// One per output channel up to the last panel's end.
    bias: Buffer,
    /// What the layer after this one will read.
    next: OnceLock<pack::Weights>,
}

enum Weights {
    Panels(Panels),
    Winograd(Winograd),
}

impl PackedConv {
    /// Packs `weight` (`[out_channels, in_channels, kernel, kernel]`, batch norm folded) and `bias` (`[out_channels]`).
    ///
    /// # Panics
    /// If a length does not match the shape, or a size in it is zero (padding aside).
    #[must_use]
    pub fn new(isa: Isa, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Self {
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
        let width = isa.kernels().width;
        let taps = kernel * kernel;
        let winograd = |side| {
            Weights::Winograd(Winograd::new(
                side,
                width,
                out_channels,
                in_channels,
                weight,
            ))
        };
        let weights = match Algorithm::choose(&shape) {
            Algorithm::Winograd2 => winograd(Side::Two),
            Algorithm::Winograd4 => winograd(Side::Four),
            Algorithm::Gemm | Algorithm::ImplicitGemm => Weights::Panels(Panels::new(
                width,
                (1, out_channels, in_channels, taps),
                |_, output, input, tap| weight[(output * in_channels + input) * taps + tap],
            )),
        };
        let mut padded_bias = Buffer::zeroed(out_channels.next_multiple_of(width));
        padded_bias.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Self {
            isa,
            shape,
            weights,
            bias: padded_bias,
            next: OnceLock::new(),
        }
    }

    /// The layer's shape.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// How the layer is computed.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        Algorithm::choose(&self.shape)
    }

    /// Output images, rows and columns for an input.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        self.shape.output_dims(input)
    }

    /// Multiplications and additions for an input, counted as a direct convolution's whatever the algorithm.
    #[must_use]
    pub fn flops(&self, input: BatchDims) -> u64 {
        (2 * self.output_dims(input).pixels() * self.shape.weight_len()) as u64
    }

    /// Bytes of the packed weights.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.panels().bytes() + self.bias.len() * size_of::<f32>()
    }

    /// A handle on the packed weights, for the layer before this one.
    #[must_use]
    pub fn weights(&self) -> pack::Weights {
        self.panels().weights().clone()
    }

    /// Tells which weights will be read after this layer: while it computes, it asks them into the cache. This changes
    /// no result. Only the first call counts.
    pub fn precede(&self, next: pack::Weights) {
        self.next.get_or_init(|| next);
    }

    fn panels(&self) -> &Panels {
        match &self.weights {
            Weights::Panels(panels) => panels,
            Weights::Winograd(winograd) => winograd.panels(),
        }
    }

    /// The layer's output for the blocked activation `x`: convolution plus bias, plus `skip` if given (blocked, in the
    /// output's shape), clamped at zero if `relu`.
    ///
    /// # Panics
    /// If a length does not match `input`, or `input` is empty or beyond 2^32 numbers.
    #[must_use]
    pub fn forward(
        &self,
        pool: &ThreadPool,
        x: &[f32],
        input: BatchDims,
        skip: Option<&[f32]>,
        relu: bool,
    ) -> Vec<f32> {
        let mut out = vec![0.0; self.output_dims(input).blocked_len(self.shape.out_channels)];
        self.forward_into(pool, x, input, skip, relu, &mut out);
        out
    }

    /// As [`Self::forward`], overwriting every element of `out`.
    ///
    /// # Panics
    /// As [`Self::forward`], or if `out` has the wrong length.
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

    /// As [`Self::forward`] with the residual in `out`, which becomes the output: memory that is read and written needs half the
    /// traffic of reading one place and writing another.
    ///
    /// # Panics
    /// As [`Self::forward_into`].
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

    /// Writes every element of `out`.
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
            input.blocked_len(in_channels),
            "input length for {:?} and {input:?}",
            self.shape
        );
        let output = self.output_dims(input);
        assert_eq!(
            out.len(),
            output.blocked_len(out_channels),
            "output length for {:?} and {input:?}",
            self.shape
        );
        if let Residual::At(skip) = skip {
            assert_eq!(
                skip.len(),
                out.len(),
                "residual length for {:?} and {input:?}",
                self.shape
            );
        }
        // Offset tables count floats of one channel block in 32 bits.
        assert!(
            input.pixels() < (u32::MAX as usize) / BLOCK,
            "{input:?} has too many pixels"
        );
        let out = Destination::new(out);
        let skip = match skip {
            Residual::None => Source::NOTHING,
            Residual::At(skip) => Source::new(skip),
            // By the pointer that is written through: another borrow of the memory would end it.
            Residual::Output => out.as_source(),
        };
        let call = winograd::Call {
            kernels: self.isa.kernels(),
            input: Source::new(x),
            dims: input,
            input_blocks: in_channels.div_ceil(BLOCK),
            bias: Source::new(self.bias.as_slice()),
            output: out,
            output_blocks: out_channels.div_ceil(BLOCK),
            skip,
            relu,
        };
        let mut session = pool.session();
        // SAFETY: the lengths were asserted, and `out` is exclusively borrowed.
        unsafe {
            match &self.weights {
                Weights::Panels(panels) => self.multiply(&mut session, panels, &call, output),
                Weights::Winograd(winograd) => winograd.run(&mut session, &call),
            }
        }
    }

    /// # Safety
    /// As [`Gemm::run`].
    unsafe fn multiply(
        &self,
        session: &mut Session<'_>,
        panels: &Panels,
        call: &winograd::Call<'_>,
        output: BatchDims,
    ) {
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
            input: call.dims,
            output,
        };
        let gemm = Gemm {
            kernels: call.kernels,
            panels,
            matrix: 0,
            bias: call.bias,
            input: call.input,
            input_block: call.dims.pixels() * BLOCK,
            blocks: call.input_blocks,
            pixels: output.pixels(),
            window: (self.algorithm() == Algorithm::ImplicitGemm).then_some(window),
            output: call.output,
            output_block: output.pixels() * BLOCK,
            output_blocks: call.output_blocks,
            skip: call.skip,
            relu: call.relu,
            next: self.next.get(),
        };
        // SAFETY: this function's contract.
        unsafe { gemm.run(session) }
    }
}

/// What is added to a convolution.
enum Residual<'a> {
    None,
    At(&'a [f32]),
    /// What the output's memory holds.
    Output,
}

impl<'a> From<Option<&'a [f32]>> for Residual<'a> {
    fn from(skip: Option<&'a [f32]>) -> Self {
        skip.map_or(Self::None, Self::At)
    }
}
