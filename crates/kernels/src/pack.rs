//! Weights in the order in which the micro-kernels read them. They are packed once, when a network
//! is loaded.

use std::sync::Arc;

use super::buffer::Buffer;
use super::tile::BLOCK;

/// A handle on a layer's packed weights, by which the layer before it asks them into the cache.
#[derive(Debug, Clone)]
pub struct Weights(Arc<Buffer>);

impl Weights {
    /// Returns how many whole cache lines the weights take.
    pub(crate) fn lines(&self) -> usize {
        self.0.len() / BLOCK
    }

    /// Returns the address of a line: it spans 16 floats if `index` is below [`Self::lines`].
    pub(crate) fn line(&self, index: usize) -> *const f32 {
        self.0.as_slice().as_ptr().wrapping_add(index * BLOCK)
    }
}

/// Matrices of weights as panels of `width` output channels each: `[matrix][panel][input
/// block][tap][16][width]`. Where the channels do not fill a block or a panel there are zeros. Only
/// Winograd's layers have more than one matrix: one for each position.
#[derive(Debug)]
pub(crate) struct Panels {
    data: Weights,
    /// Output channels of a panel.
    pub width: usize,
    /// Rows of a panel: input blocks * taps * 16.
    pub depth: usize,
    /// Panels of one matrix.
    pub panels: usize,
}

impl Panels {
    /// Packs `matrices` matrices one after the other. `weight(matrix, output, input, tap)` returns
    /// the numbers.
    pub(crate) fn new(
        width: usize,
        (matrices, outputs, inputs, taps): (usize, usize, usize, usize),
        weight: impl Fn(usize, usize, usize, usize) -> f32,
    ) -> Self {
        let panels = outputs.div_ceil(width);
        let depth = inputs.div_ceil(BLOCK) * taps * BLOCK;
        let mut data = Buffer::zeroed(matrices * panels * depth * width);
        let mut rest = data.as_mut_slice();
        for matrix in 0..matrices {
            for panel in 0..panels {
                let (this, next) = rest.split_at_mut(depth * width);
                rest = next;
                let valid = width.min(outputs - panel * width);
                for (row, to) in this.chunks_exact_mut(width).enumerate() {
                    let (block, tap, lane) = (row / BLOCK / taps, row / BLOCK % taps, row % BLOCK);
                    let input = block * BLOCK + lane;
                    if input >= inputs {
                        continue;
                    }
                    for (j, to) in to[..valid].iter_mut().enumerate() {
                        *to = weight(matrix, panel * width + j, input, tap);
                    }
                }
            }
        }
        Self {
            data: Weights(Arc::new(data)),
            width,
            depth,
            panels,
        }
    }

    /// Returns panel `panel` of matrix `matrix`, which spans `depth * width` floats.
    pub(crate) fn panel(&self, matrix: usize, panel: usize) -> *const f32 {
        debug_assert!(panel < self.panels);
        self.data
            .line(0)
            .wrapping_add((matrix * self.panels + panel) * self.depth * self.width)
    }

    /// Returns how many bytes the panels take.
    pub(crate) fn bytes(&self) -> usize {
        self.data.0.len() * size_of::<f32>()
    }

    /// Returns a handle on the packed weights.
    pub(crate) fn weights(&self) -> &Weights {
        &self.data
    }
}
