//! Which input pixels each output pixel of a convolution reads, as a table of offsets into the
//! input.
//!
//! With such a table a convolution with strides and borders is a plain matrix product: the
//! micro-kernel looks up where a pixel lies instead of computing it, and no copy of the image is
//! made.

use std::ops::Range;

use super::layout::BatchDims;
use super::tile::{BLOCK, OUTSIDE};

/// The geometry of a square convolution over a batch of images. Kernel, stride and padding are in
/// pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub input: BatchDims,
    pub output: BatchDims,
}

impl Window {
    /// Returns how many input pixels an output pixel reads, those outside the image included.
    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Returns `taps * pixels.len()` entries. For each tap, then each output pixel of the range,
    /// the entry is the offset of its input pixel in floats from the start of a channel block, or
    /// [`OUTSIDE`].
    pub(crate) fn offsets(&self, pixels: Range<usize>) -> Vec<u32> {
        let columns = pixels.len();
        let mut table = vec![OUTSIDE; self.taps() * columns];
        let (plane, width) = (self.output.h * self.output.w, self.output.w);
        for (column, pixel) in pixels.enumerate() {
            let (image, y, x) = (pixel / plane, pixel % plane / width, pixel % width);
            for ky in 0..self.kernel {
                let Some(row) = self.inside(y, ky, self.input.h) else {
                    continue;
                };
                for kx in 0..self.kernel {
                    let Some(line) = self.inside(x, kx, self.input.w) else {
                        continue;
                    };
                    let source = (image * self.input.h + row) * self.input.w + line;
                    // `PackedConv` asserts that every offset fits 32 bits.
                    table[(ky * self.kernel + kx) * columns + column] = (source * BLOCK) as u32;
                }
            }
        }
        table
    }

    /// Returns the input coordinate of tap `k` at output coordinate `at`, if it is below `len`.
    fn inside(&self, at: usize, k: usize, len: usize) -> Option<usize> {
        (at * self.stride + k)
            .checked_sub(self.padding)
            .filter(|&i| i < len)
    }
}
