//! The stem's tasks: bands of pooled rows of one image.
//!
//! A task copies the input rows that its band reads between borders, computes the convolution row by
//! row into a ring of three rows, and pools those as soon as they are there.

use super::pool::PoolRow;
use super::tile::StemTile;
use super::{CHANNELS, Images, KERNEL, PADDING, PackedStem, Pixels, STRIDE};
use crate::buffer::{Destination, Source};
use crate::layout::BatchDims;
use crate::pack::WeightNumbers;
use crate::simd::portable::round_to_bf16;
use crate::tile::BLOCK;

/// The most pooled rows of a task. Each task repeats one convolution row of its upper neighbour, so
/// shorter bands cost more.
const BAND_ROWS: usize = 14;

/// The sizes of one forward call.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) input: BatchDims,
    pub(super) conv: BatchDims,
    pub(super) pooled: BatchDims,
    /// Numbers of an input row with its borders: whole words.
    padded_width: usize,
    /// How many of them fill a word.
    per_word: usize,
    /// The pooled rows of a task, except for an image's last, which may have fewer.
    pub(super) band: usize,
}

impl Geometry {
    pub(super) fn new(input: BatchDims, threads: usize, numbers: WeightNumbers) -> Self {
        let per_word = numbers.per_word();
        let conv = BatchDims {
            n: input.n,
            h: input.h.div_ceil(2),
            w: input.w.div_ceil(2),
        };
        let pooled = BatchDims {
            n: input.n,
            h: conv.h.div_ceil(2),
            w: conv.w.div_ceil(2),
        };
        // One band per thread where an image is split at all.
        let bands = if input.n >= 4 * threads {
            1
        } else {
            pooled.h.div_ceil(BAND_ROWS).next_multiple_of(threads)
        };
        let band = pooled.h.div_ceil(bands).max(1);
        Self {
            input,
            conv,
            pooled,
            padded_width: ((conv.w - 1) * STRIDE + KERNEL.next_multiple_of(per_word))
                .next_multiple_of(per_word),
            per_word,
            band,
        }
    }

    /// Returns how many tasks an image is cut into.
    pub(super) fn bands(&self) -> usize {
        self.pooled.h.div_ceil(self.band)
    }

    /// Returns the most input rows that a task reads of each channel.
    fn padded_rows(&self) -> usize {
        2 * STRIDE * self.band + KERNEL
    }

    /// Returns how many words a copied input row takes.
    fn padded_row_words(&self) -> usize {
        self.padded_width / self.per_word
    }

    /// Returns how many words the copied input rows of a task take: whole cache lines.
    pub(super) fn padded_words(&self) -> usize {
        (CHANNELS * self.padded_rows() * self.padded_row_words()).next_multiple_of(BLOCK)
    }

    /// Returns how many floats the three convolution rows take that pooling looks at.
    pub(super) fn ring_floats(&self, blocks: usize) -> usize {
        3 * self.conv.w * blocks * BLOCK
    }
}

/// Fills a padded row: with `row` between borders, or with the border alone if there is no row.
#[inline(always)]
fn pad_row<T: Copy>(to: &mut [T], row: Option<impl ExactSizeIterator<Item = T>>, border: T) {
    let Some(row) = row else {
        to.fill(border);
        return;
    };
    // An odd width may end one column earlier than the padded row.
    let columns = row.len().min(to.len() - PADDING);
    let (left, rest) = to.split_at_mut(PADDING);
    let (middle, right) = rest.split_at_mut(columns);
    left.fill(border);
    for (to, from) in middle.iter_mut().zip(row) {
        *to = from;
    }
    right.fill(border);
}

/// A task: a band of pooled rows of one image.
pub(super) struct Band<'a> {
    pub(super) stem: &'a PackedStem,
    pub(super) geometry: Geometry,
    /// The image.
    pub(super) image: usize,
    /// The first pooled row.
    pub(super) first: usize,
}

impl Band<'_> {
    /// Computes the band.
    ///
    /// # Safety
    /// - `x` holds the whole input.
    /// - `padded` spans [`Geometry::padded_words`] words, and `ring` [`Geometry::ring_floats`]
    ///   floats. They do not overlap, and nobody else has access to them.
    /// - `out` spans the whole output: 16 words for each block and pooled pixel. Nobody else has
    ///   access to the rows of this band.
    pub(super) unsafe fn run(
        &self,
        x: Images<'_>,
        padded: *mut f32,
        ring: *mut f32,
        out: Destination<'_>,
    ) {
        let g = &self.geometry;
        let last = g.pooled.h.min(self.first + g.band);
        // Pooled row p looks at convolution rows 2p - 1, 2p and 2p + 1.
        let start = (2 * self.first).saturating_sub(1);
        let end = g.conv.h.min(2 * last);
        // SAFETY: `start..end` are the convolution rows under this band, which read no more input
        // rows than `padded_rows`. Each pooled row is computed when the convolution rows under it
        // are in the ring, and the ring's three slots hold them, as a later row takes the slot of
        // one three rows before.
        unsafe {
            self.pad(x, padded, start, end);
            let mut next = start;
            for row in self.first..last {
                let until = end.min(2 * row + 2);
                self.convolve(padded, ring, start, next..until);
                next = until;
                self.pool(ring, row, out);
            }
        }
    }

    /// Copies the input rows that convolution rows `start..end` read to `padded`, with borders
    /// around the image: zeros, or the stem's border values in integers.
    ///
    /// # Safety
    /// - `x` and `padded` are as [`Self::run`] asks for.
    /// - `end` is above `start`, and both read no more than [`Geometry::padded_rows`] input rows.
    unsafe fn pad(&self, x: Images<'_>, padded: *mut f32, start: usize, end: usize) {
        let g = &self.geometry;
        let rows = (end - start - 1) * STRIDE + KERNEL;
        for channel in 0..CHANNELS {
            for row in 0..rows {
                let words = (channel * g.padded_rows() + row) * g.padded_row_words();
                let to = padded.wrapping_add(words);
                let y = (start * STRIDE + row)
                    .checked_sub(PADDING)
                    .filter(|&y| y < g.input.h);
                // SAFETY: `row` is below `padded_rows`, of which `padded` holds as many for each
                // channel, each of `padded_width` numbers. Nobody else has access to them, they are
                // initialised, and any bits are a number of each of the types.
                unsafe {
                    match self.stem.numbers {
                        WeightNumbers::I8 => {
                            let to = std::slice::from_raw_parts_mut(to.cast(), g.padded_width);
                            let border = self.stem.border[channel];
                            let Images::Pixels(x) = x else {
                                unreachable!("`forward_into` refuses stems in integers")
                            };
                            pad_row(to, y.map(|y| self.pixels(x, channel, y)), border);
                        }
                        WeightNumbers::Bf16 => {
                            let to = std::slice::from_raw_parts_mut(to.cast(), g.padded_width);
                            self.pad_floats(to, x, channel, y, round_to_bf16);
                        }
                        WeightNumbers::F32 => {
                            let to = std::slice::from_raw_parts_mut(to, g.padded_width);
                            self.pad_floats(to, x, channel, y, |x| x);
                        }
                    }
                }
            }
        }
    }

    /// Fills one padded row of a stem of floats with row `y` of a channel of `x`, each number
    /// converted.
    #[inline(always)]
    fn pad_floats<T: Copy + Default>(
        &self,
        to: &mut [T],
        x: Images<'_>,
        channel: usize,
        y: Option<usize>,
        convert: impl Fn(f32) -> T,
    ) {
        let BatchDims { h, w, .. } = self.geometry.input;
        let border = T::default();
        match x {
            Images::Planar(x) => {
                let row = |y| &x[((self.image * CHANNELS + channel) * h + y) * w..][..w];
                pad_row(to, y.map(|y| row(y).iter().map(|x| convert(*x))), border);
            }
            Images::Pixels(x) => {
                let values = &x.values[channel];
                let row = |y| self.pixels(x, channel, y);
                let converted = |byte| convert(values[usize::from(byte)]);
                pad_row(to, y.map(|y| row(y).map(converted)), border);
            }
        }
    }

    /// Returns row `y` of a plane of the image.
    #[inline(always)]
    fn pixels<'a>(
        &self,
        x: Pixels<'a>,
        channel: usize,
        y: usize,
    ) -> impl ExactSizeIterator<Item = u8> + use<'a> {
        let length = CHANNELS * self.geometry.input.w;
        let (pixels, _) = x.images[self.image][y * length..][..length].as_chunks::<CHANNELS>();
        let byte = x.channels[channel];
        pixels.iter().map(move |pixel| pixel[byte])
    }

    /// Computes convolution rows `rows` into the ring. Row `r` goes into slot `r % 3`; the ring is
    /// `[slot][block][column][16]`.
    ///
    /// # Safety
    /// - `padded` and `ring` are as [`Self::run`] asks for, and `padded` holds what [`Self::pad`]
    ///   writes for convolution rows from `start` on, these rows included.
    unsafe fn convolve(
        &self,
        padded: *const f32,
        ring: *mut f32,
        start: usize,
        rows: std::ops::Range<usize>,
    ) {
        let g = &self.geometry;
        let kernels = self.stem.kernels;
        let (width, blocks) = (kernels.width, self.stem.out_channels.div_ceil(BLOCK));
        let tiles = g.conv.w.div_ceil(kernels.tiles.len());
        let bytes = size_of::<f32>() / g.per_word;
        let panel_words = CHANNELS * KERNEL * KERNEL.div_ceil(g.per_word) * width;
        let starts = Source::optional(self.stem.start.as_ref());
        let scales = Source::optional(self.stem.scale.as_ref());
        for panel in 0..blocks.div_ceil(width / BLOCK) {
            let block = panel * width / BLOCK;
            for row in rows.clone() {
                let line = padded.wrapping_add((row - start) * STRIDE * g.padded_row_words());
                let slot = ring.wrapping_add((row % 3 * blocks + block) * g.conv.w * BLOCK);
                for tile in 0..tiles {
                    let (from, to) = (tile * g.conv.w / tiles, (tile + 1) * g.conv.w / tiles);
                    let t = StemTile {
                        input: line.cast::<u8>().wrapping_add(from * STRIDE * bytes),
                        row: g.padded_width * bytes,
                        channel: g.padded_rows() * g.padded_width * bytes,
                        panel: self
                            .stem
                            .panels
                            .as_slice()
                            .as_ptr()
                            .wrapping_add(panel * panel_words),
                        bias: self
                            .stem
                            .bias
                            .as_slice()
                            .as_ptr()
                            .wrapping_add(panel * width),
                        start: starts.at(panel * width),
                        scale: scales.at(panel * width),
                        out: slot.wrapping_add(from * BLOCK),
                        out_block: g.conv.w * BLOCK,
                        out_blocks: (width / BLOCK).min(blocks - block),
                    };
                    // SAFETY: the tile's pixels `from..to` are in the convolution's row, and a
                    // padded row holds the `(w - 1) * 2 + 7` columns that all `w` pixels of it
                    // read, and those that fill the last word. The slot holds `w` pixels in each
                    // block. The tile has at least one pixel and at most the tallest tile's. An
                    // `Isa` led to the kernels, so the processor has their features.
                    unsafe { kernels.tiles[to - from - 1](&t) };
                }
            }
        }
    }

    /// Pools the convolution rows in the ring into row `row` of the output.
    ///
    /// # Safety
    /// - `ring` and `out` are as [`Self::run`] asks for.
    /// - The ring holds the convolution rows `2 * row - 1` to `2 * row + 1`, as far as they lie in
    ///   the image.
    unsafe fn pool(&self, ring: *const f32, row: usize, out: Destination<'_>) {
        let g = &self.geometry;
        let blocks = self.stem.out_channels.div_ceil(BLOCK);
        let kernels = self.stem.kernels;
        let rows = [
            (2 * row).saturating_sub(1),
            2 * row,
            (2 * row + 1).min(g.conv.h - 1),
        ];
        for block in 0..blocks {
            let line =
                |row: usize| ring.wrapping_add((row % 3 * blocks + block) * g.conv.w * BLOCK);
            let (stored, word) = kernels.stored.place(block * BLOCK);
            let pixel = (self.image * g.pooled.h + row) * g.pooled.w;
            let to = (stored * g.pooled.pixels() + pixel) * BLOCK + word;
            let row = PoolRow {
                lines: rows.map(line),
                width: g.conv.w,
                out: out.at(to),
            };
            // SAFETY: the lines are rows of `w` pixels that the ring holds, and the output row is
            // one of this band's, with a pixel for every two of them. An `Isa` led to the kernel,
            // so the processor has its features.
            unsafe { (kernels.max_pool)(&row) };
        }
    }
}
