//! Which input pixels each output pixel of a convolution reads, as a table of offsets into the
//! input.
//!
//! With such a table a convolution with strides and borders is a plain matrix product: the
//! micro-kernel looks up where a pixel lies instead of computing it, and no copy of the image is
//! made.

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
    /// Returns which input pixel each output pixel reads for each tap.
    pub(crate) fn offsets(&self) -> Offsets {
        let (pixels, taps) = (self.output.pixels(), self.kernel * self.kernel);
        let mut table = vec![OUTSIDE; taps * pixels];
        let (plane, width) = (self.output.h * self.output.w, self.output.w);
        for pixel in 0..pixels {
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
                    table[(ky * self.kernel + kx) * pixels + pixel] = (source * BLOCK) as u32;
                }
            }
        }
        Offsets {
            table,
            taps,
            pixels,
        }
    }

    /// Returns the input coordinate of tap `k` at output coordinate `at`, if it is below `len`.
    fn inside(&self, at: usize, k: usize, len: usize) -> Option<usize> {
        (at * self.stride + k)
            .checked_sub(self.padding)
            .filter(|&i| i < len)
    }
}

/// Which input pixel each output pixel of a convolution reads for each tap.
#[derive(Debug)]
pub(crate) struct Offsets {
    /// `taps * pixels` entries. For each tap, then each output pixel, the offset of its input pixel
    /// in words from the start of a block, or [`OUTSIDE`].
    table: Vec<u32>,
    taps: usize,
    pixels: usize,
}

impl Offsets {
    /// Returns how many input pixels an output pixel reads, those outside the image included.
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Returns the address of the first tap's entry for output pixel `pixel`. The entries of later
    /// taps are as many entries apart as there are output pixels.
    pub(crate) fn from(&self, pixel: usize) -> *const u32 {
        debug_assert!(pixel < self.pixels);
        self.table.as_ptr().wrapping_add(pixel)
    }
}
