//! Weights in the order in which the micro-kernels read them. They are packed once, when a network
//! is loaded.

use std::sync::Arc;

use super::buffer::Buffer;
use super::simd::portable::round_to_bf16;
use super::tile::BLOCK;

/// A number type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightNumbers {
    F32,
    Bf16,
    I8,
}

impl WeightNumbers {
    /// Returns how many input channels a word of weights is for.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::I8 => 4,
        }
    }

    /// Writes `value` as number `index` of `words`, which is zero still. Integers are whole already.
    pub(crate) fn write(self, words: &mut [f32], index: usize, value: f32) {
        match self {
            Self::F32 => words[index] = value,
            Self::Bf16 => put(
                words,
                index / 2,
                16 * (index % 2),
                round_to_bf16(value).into(),
            ),
            Self::I8 => {
                let byte = (value as i8).cast_unsigned();
                put(words, index / 4, 8 * (index % 4), byte.into());
            }
        }
    }
}

/// Puts `bits` into a word that is still zero there.
fn put(words: &mut [f32], index: usize, shift: usize, bits: u32) {
    words[index] = f32::from_bits(words[index].to_bits() | bits << shift);
}

/// Returns what the sums of integer products start from where `offset` is subtracted from each
/// number of a pixel: for each of the outputs of `weight`, `[outputs, inputs]`, the sum of its
/// weights times `offset`, which wraps around as sums do. There are `len` integers; those beyond the
/// outputs are zero. Returns nothing if the offset is zero.
pub(crate) fn integer_starts(
    weight: &[i8],
    outputs: usize,
    offset: i32,
    len: usize,
) -> Option<Buffer> {
    if offset == 0 || weight.is_empty() {
        return None;
    }
    let mut starts = Buffer::zeroed(len);
    let of_outputs = weight.chunks_exact(weight.len() / outputs);
    for (start, weights) in starts.as_mut_slice().iter_mut().zip(of_outputs) {
        let sum = weights
            .iter()
            .fold(0i32, |sum, &w| sum.wrapping_add(w.into()));
        *start = f32::from_bits(sum.wrapping_mul(offset).cast_unsigned());
    }
    Some(starts)
}

/// A handle on a layer's packed weights, by which the layer before it asks them into the cache.
#[derive(Debug, Clone)]
pub struct Weights(Arc<Buffer>);

impl Weights {
    /// Returns how many whole cache lines the weights take.
    pub(crate) fn lines(&self) -> usize {
        self.0.len() / BLOCK
    }

    /// Returns the address of a line: it spans 16 words if `index` is below [`Self::lines`].
    pub(crate) fn line(&self, index: usize) -> *const f32 {
        self.0.as_slice().as_ptr().wrapping_add(index * BLOCK)
    }
}

/// Matrices of weights as panels of `width` output channels each: `[matrix][panel][input
/// block][tap][16][width]` words. A word holds the weights of one to four neighbouring input
/// channels. Where the channels do not fill a block or a panel there are zeros. Only Winograd's
/// layers have more than one matrix: one for each position.
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
    /// Packs `matrices` matrices one after the other, in panels for `outputs` channels.
    /// `weight(matrix, output, input, tap)` returns the numbers, for outputs below `valid_outputs`.
    pub(crate) fn new(
        numbers: WeightNumbers,
        width: usize,
        (matrices, outputs, inputs, taps): (usize, usize, usize, usize),
        valid_outputs: usize,
        weight: impl Fn(usize, usize, usize, usize) -> f32,
    ) -> Self {
        let panels = outputs.div_ceil(width);
        let per_word = numbers.per_word();
        let depth = inputs.div_ceil(BLOCK * per_word) * taps * BLOCK;
        let mut data = Buffer::in_large_pages(matrices * panels * depth * width);
        let mut rest = data.as_mut_slice();
        for matrix in 0..matrices {
            for panel in 0..panels {
                let (this, next) = rest.split_at_mut(depth * width);
                rest = next;
                let valid = width.min(valid_outputs.saturating_sub(panel * width));
                for (row, to) in this.chunks_exact_mut(width).enumerate() {
                    let (block, tap, lane) = (row / BLOCK / taps, row / BLOCK % taps, row % BLOCK);
                    let first = (block * BLOCK + lane) * per_word;
                    for input in first..inputs.min(first + per_word) {
                        for j in 0..valid {
                            let value = weight(matrix, panel * width + j, input, tap);
                            numbers.write(to, j * per_word + input - first, value);
                        }
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

    /// Returns panel `panel` of matrix `matrix`, which spans `depth * width` words.
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
