//! Which input pixels each output pixel of a convolution reads, as tables of offsets. It never touches pixel values.

use std::ops::Range;

use super::layout::BatchDims;
use super::tile::{BLOCK, OUTSIDE};

/// The geometry of a square convolution over images side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub input: BatchDims,
    pub output: BatchDims,
}

impl Window {
    /// Input pixels that an output pixel reads, those outside the image among them.
    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// For each tap, then each output pixel of the range: the float offset of its input pixel within a channel block,
    /// or [`OUTSIDE`].
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
                    // `PackedConv` asserts that every offset fits.
                    table[(ky * self.kernel + kx) * columns + column] = (source * BLOCK) as u32;
                }
            }
        }
        table
    }

    /// The input coordinate of tap `k` at output coordinate `at`, if it lies inside `len`.
    fn inside(&self, at: usize, k: usize, len: usize) -> Option<usize> {
        (at * self.stride + k)
            .checked_sub(self.padding)
            .filter(|&i| i < len)
    }
}
