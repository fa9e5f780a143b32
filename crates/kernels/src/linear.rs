//! The fully connected layer: a 1x1 convolution whose pixels are the rows of the batch.

use super::conv::{ConvShape, PackedConv};
use super::isa::Isa;
use super::layout::{BatchDims, blocked_to_nchw, nchw_to_words};
use super::pack::Weights;
use super::pool::ThreadPool;

/// A fully connected layer's weights, packed for one instruction set.
pub struct PackedLinear {
    conv: PackedConv,
}

impl PackedLinear {
    /// Packs `weight`, which is `[outputs, inputs]`, row-major, and `bias`, which is `[outputs]`.
    ///
    /// # Panics
    /// If a length does not match, or a size is zero.
    #[must_use]
    pub fn new(isa: Isa, inputs: usize, weight: &[f32], bias: &[f32]) -> Self {
        let shape = ConvShape {
            in_channels: inputs,
            out_channels: bias.len(),
            kernel: 1,
            stride: 1,
            padding: 0,
        };
        Self {
            conv: PackedConv::new(isa, shape, weight, bias),
        }
    }

    /// Packs what [`Self::new`] does with weights in bfloat16. Rows are rounded to bfloat16 too,
    /// sums are float32. The outputs are the same bits on every instruction set.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn bf16(isa: Isa, inputs: usize, weight: &[f32], bias: &[f32]) -> Self {
        let shape = ConvShape {
            in_channels: inputs,
            out_channels: bias.len(),
            kernel: 1,
            stride: 1,
            padding: 0,
        };
        Self {
            conv: PackedConv::bf16_to_f32(isa, shape, weight, bias),
        }
    }

    /// Returns `x` times the weights plus the bias: `[n, outputs]`, row-major. `x` is
    /// `[n, inputs]`, row-major.
    ///
    /// # Panics
    /// If `x` does not hold `n * inputs` numbers.
    #[must_use]
    pub fn forward(&self, pool: &ThreadPool, x: &[f32], n: usize) -> Vec<f32> {
        // Each row is an image of one pixel, for which NCHW is the same as rows.
        let dims = BatchDims { n, h: 1, w: 1 };
        let x = nchw_to_words(
            x,
            self.conv.shape().in_channels,
            dims,
            self.conv.input_numbers(),
        );
        let y = self.conv.forward(pool, &x, dims, None, false);
        blocked_to_nchw(&y, self.conv.shape().out_channels, dims)
    }

    /// Computes what [`Self::forward`] does for `n` rows that are blocked already, and writes it
    /// over every element of `out`. `x` is `[inputs/16][n][16]` and `out` `[outputs/16][n][16]`,
    /// both in words, with zeros past the last input.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn blocked_into(&self, pool: &ThreadPool, x: &[f32], n: usize, out: &mut [f32]) {
        let dims = BatchDims { n, h: 1, w: 1 };
        self.conv.forward_into(pool, x, dims, None, false, out);
    }

    /// Computes what [`Self::blocked_into`] does, and adds it to `out`.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn add_blocked_onto(&self, pool: &ThreadPool, x: &[f32], n: usize, out: &mut [f32]) {
        let dims = BatchDims { n, h: 1, w: 1 };
        self.conv.forward_onto(pool, x, dims, false, out);
    }

    /// Returns the multiplications and additions for `n` rows.
    #[must_use]
    pub fn flops(&self, n: usize) -> u64 {
        self.conv.flops(BatchDims { n, h: 1, w: 1 })
    }

    /// Returns a handle on the packed weights, for [`PackedConv::precede`].
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.conv.weights()
    }

    /// Returns how many bytes the packed weights take.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.conv.packed_bytes()
    }
}
