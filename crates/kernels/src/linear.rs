//! The fully connected layer: a 1x1 convolution whose pixels are the batch's rows. It never reads the weights' original
//! order after load.

use super::conv::{ConvShape, PackedConv};
use super::isa::Isa;
use super::layout::{BatchDims, blocked_to_nchw, nchw_to_blocked};
use super::pack::Weights;
use super::pool::ThreadPool;

/// A packed fully connected layer.
pub struct PackedLinear {
    conv: PackedConv,
}

impl PackedLinear {
    /// Packs `weight` (`[outputs, inputs]`, row-major) and `bias` (`[outputs]`).
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

    /// `x` (`[n, inputs]`, row-major) times the weights plus the bias: `[n, outputs]`, row-major.
    ///
    /// # Panics
    /// If `x` does not hold `n * inputs` numbers.
    #[must_use]
    pub fn forward(&self, pool: &ThreadPool, x: &[f32], n: usize) -> Vec<f32> {
        // An image of one pixel: NCHW is then the same as rows.
        let dims = BatchDims { n, h: 1, w: 1 };
        let x = nchw_to_blocked(x, self.conv.shape().in_channels, dims);
        let y = self.conv.forward(pool, &x, dims, None, false);
        blocked_to_nchw(&y, self.conv.shape().out_channels, dims)
    }

    /// Multiplications and additions for `n` rows.
    #[must_use]
    pub fn flops(&self, n: usize) -> u64 {
        self.conv.flops(BatchDims { n, h: 1, w: 1 })
    }

    /// A handle on the packed weights, for [`PackedConv::precede`].
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.conv.weights()
    }

    /// Bytes of the packed weights.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.conv.packed_bytes()
    }
}
