//! The network's first two layers in one pass: the 7x7 convolution of stride 2 over planar pixels
//! with ReLU, and the 3x3 max-pool of stride 2.
//!
//! A task computes a band of pooled rows of one image. It copies the input rows that the band reads
//! between borders of zeros, computes the convolution row by row into a ring of three rows, and
//! pools those as soon as they are there. So the convolution's output, which is four times the
//! pooled one, never leaves the cache.

use super::buffer::{Buffer, Destination, Source};
use super::isa::{Isa, Kernels};
use super::layout::BatchDims;
use super::pool::ThreadPool;
use super::simd::Vector;
use super::tile::BLOCK;

const CHANNELS: usize = 3;
const KERNEL: usize = 7;
const STRIDE: usize = 2;
const PADDING: usize = 3;
const TAPS: usize = CHANNELS * KERNEL * KERNEL;

/// The most pooled rows of a task. Each task repeats one convolution row of its upper neighbour, so
/// shorter bands cost more.
const BAND_ROWS: usize = 14;

/// The packed weights of the stem: a 7x7 convolution from 3 channels with stride 2 and padding 3,
/// ReLU, and a 3x3 max-pool with stride 2 and padding 1.
pub struct PackedStem {
    isa: Isa,
    out_channels: usize,
    /// `[panels][channel][ky][kx][width]`.
    panels: Buffer,
    /// The bias: a float for each channel up to the end of the last panel.
    bias: Buffer,
}

/// The operands of one call of the stem's micro-kernel: `MR` convolution pixels of one row, and one
/// panel of `width` output channels. All lengths are in floats.
pub(crate) struct StemTile {
    /// The padded input: the first tap of the first pixel in channel 0. In each of 3 channels, 7
    /// rows of `(MR - 1) * 2 + 7` floats are read.
    pub input: *const f32,
    /// Floats from one padded input row to the next.
    pub row: usize,
    /// Floats from one padded input channel to the next.
    pub channel: usize,
    /// The panel: `[3][7][7][width]` floats, in the order channel, ky, kx.
    pub panel: *const f32,
    /// The bias: `width` floats.
    pub bias: *const f32,
    /// The output: the first pixel in the panel's first channel block. In each of the `out_blocks`
    /// blocks `MR * 16` floats are written.
    pub out: *mut f32,
    /// Floats from one output channel block to the next.
    pub out_block: usize,
    /// Output channel blocks that are stored: at least 1, at most `width / 16`.
    pub out_blocks: usize,
}

/// Returns `p`, and hides from the compiler where it points. The compiler would otherwise notice
/// that a pixel's tap is its neighbour's tap two columns on, keep those numbers in registers, and
/// spill accumulators for them, which costs a quarter of the speed.
#[inline(always)]
fn opaque(p: *const f32) -> *const f32 {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let mut p = p;
        // SAFETY: the assembly is a comment. It reads and writes nothing but the register of `p`.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, readonly, nostack, preserves_flags))
        };
        p
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    p
}

/// Computes `MR` pixels of a row of the convolution for a panel of `NV` vectors, with bias and
/// ReLU.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `input`, `panel`, `bias` and `out` of `t` span what their fields say, with a width of
///   `NV * V::LANES`.
/// - `out` overlaps nothing that is read, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const MR: usize, const NV: usize>(t: &StemTile) {
    // SAFETY: `v` is below NV, so the bias is read within its width. `weights` moves on by that
    // width for each of the `3 * 7 * 7` taps of the panel. Pixel `r` below MR is read at tap
    // (`channel`, `ky`, `kx`), which is among the columns that the tile's input spans. Stores go to
    // pixel `r` of a block below `out_blocks`.
    unsafe {
        let mut bias = [V::zero(); NV];
        for (v, lanes) in bias.iter_mut().enumerate() {
            *lanes = V::load(t.bias.add(v * V::LANES));
        }
        let mut acc = [bias; MR];
        let mut weights = t.panel;
        for channel in 0..CHANNELS {
            for ky in 0..KERNEL {
                let line = t.input.add(channel * t.channel + ky * t.row);
                for kx in 0..KERNEL {
                    let pixels = opaque(line.add(kx));
                    let mut w = [V::zero(); NV];
                    for (v, lanes) in w.iter_mut().enumerate() {
                        *lanes = V::load(weights.add(v * V::LANES));
                    }
                    weights = weights.add(NV * V::LANES);
                    for (r, sums) in acc.iter_mut().enumerate() {
                        let x = V::splat_at(pixels.add(r * STRIDE));
                        for v in 0..NV {
                            sums[v] = x.mul_add(w[v], sums[v]);
                        }
                    }
                }
            }
        }
        for (r, sums) in acc.into_iter().enumerate() {
            for (v, y) in sums.into_iter().enumerate() {
                let block = v * V::LANES / BLOCK;
                if block < t.out_blocks {
                    let at = block * t.out_block + r * BLOCK + v * V::LANES % BLOCK;
                    V::zero().max(y).store(t.out.add(at));
                }
            }
        }
    }
}

/// The operands for one row of the max-pool, 3x3 with stride 2, in one channel block.
pub(crate) struct PoolRow {
    /// The three convolution rows under the pooled row: `width * 16` floats each. At the edge of
    /// the image one of them is there twice, which changes no maximum.
    pub lines: [*const f32; 3],
    /// Pixels of a convolution row, at least 1.
    pub width: usize,
    /// The pooled row: 16 floats for each of `width / 2` pixels, rounded up.
    pub out: *mut f32,
}

/// Computes one row of the max-pool.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `lines` and `out` of `row` span what their fields say. `out` overlaps none of the lines, and
///   nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn max_pool<V: Vector>(row: &PoolRow) {
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: lanes `v..v + LANES` lie within the 16 floats of a pixel. Columns are below
        // `width`, of which each line has 16 floats, and `x / 2` is below the pooled row's width.
        unsafe {
            let [a, b, c] = row.lines.map(|line| line.wrapping_add(v));
            let column = |x: usize| {
                let line = |line: *const f32| V::load(line.wrapping_add(x * BLOCK));
                line(a).max(line(b)).max(line(c))
            };
            let mut left = column(0);
            for x in (0..row.width).step_by(2) {
                let middle = column(x);
                let right = if x + 1 < row.width {
                    column(x + 1)
                } else {
                    middle
                };
                let top = left.max(middle).max(right);
                top.store(row.out.wrapping_add(x / 2 * BLOCK + v));
                left = right;
            }
        }
        v += V::LANES;
    }
}

/// The sizes of one forward call.
#[derive(Clone, Copy)]
struct Geometry {
    input: BatchDims,
    conv: BatchDims,
    pooled: BatchDims,
    /// Floats of an input row with its borders of zeros.
    padded_width: usize,
    /// The pooled rows of a task, except for an image's last, which may have fewer.
    band: usize,
}

impl Geometry {
    fn new(input: BatchDims, threads: usize) -> Self {
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
            padded_width: (conv.w - 1) * STRIDE + KERNEL,
            band,
        }
    }

    /// Returns how many tasks an image is cut into.
    fn bands(&self) -> usize {
        self.pooled.h.div_ceil(self.band)
    }

    /// Returns the most input rows that a task reads of each channel.
    fn padded_rows(&self) -> usize {
        2 * STRIDE * self.band + KERNEL
    }

    /// Returns how many floats the copied input rows of a task take: whole cache lines.
    fn padded_floats(&self) -> usize {
        (CHANNELS * self.padded_rows() * self.padded_width).next_multiple_of(BLOCK)
    }

    /// Returns how many floats the three convolution rows take that pooling looks at.
    fn ring_floats(&self, blocks: usize) -> usize {
        3 * self.conv.w * blocks * BLOCK
    }
}

impl PackedStem {
    /// Packs `weight`, which is `[out_channels, 3, 7, 7]` with the batch norm folded into it, and
    /// `bias`, which has a number for each output channel.
    ///
    /// # Panics
    /// If `weight` does not have `147` numbers for each of `bias`.
    #[must_use]
    pub fn new(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        let out_channels = bias.len();
        assert_eq!(
            weight.len(),
            out_channels * TAPS,
            "stem weight length for {out_channels} channels"
        );
        let width = isa.kernels().width;
        let count = out_channels.div_ceil(width);
        let mut panels = Buffer::zeroed(count * TAPS * width);
        let packed = panels.as_mut_slice();
        for (channel, kernel) in weight.chunks_exact(TAPS).enumerate() {
            for (tap, &value) in kernel.iter().enumerate() {
                packed[(channel / width * TAPS + tap) * width + channel % width] = value;
            }
        }
        let mut padded_bias = Buffer::zeroed(count * width);
        padded_bias.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Self {
            isa,
            out_channels,
            panels,
            bias: padded_bias,
        }
    }

    /// Returns the images, rows and columns of the output for an input.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        Geometry::new(input, 1).pooled
    }

    /// Returns the number of output channels.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Returns the multiplications and additions of the convolution for an input.
    #[must_use]
    pub fn flops(&self, input: BatchDims) -> u64 {
        (2 * Geometry::new(input, 1).conv.pixels() * self.out_channels * TAPS) as u64
    }

    /// Returns how many bytes the packed weights take.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        (self.panels.len() + self.bias.len()) * size_of::<f32>()
    }

    /// Returns the stem's output for `x`, which is `[n, 3, h, w]`. The output is blocked and has
    /// [`Self::output_dims`].
    ///
    /// # Panics
    /// If `x` does not have the length of `input`, or `input` is empty.
    #[must_use]
    pub fn forward(&self, pool: &ThreadPool, x: &[f32], input: BatchDims) -> Vec<f32> {
        let mut out = vec![0.0; self.output_dims(input).blocked_len(self.out_channels)];
        self.forward_into(pool, x, input, &mut out);
        out
    }

    /// Computes what [`Self::forward`] does, and writes it over every element of `out`.
    ///
    /// # Panics
    /// Panics as [`Self::forward`] does, or if `out` has the wrong length.
    pub fn forward_into(&self, pool: &ThreadPool, x: &[f32], input: BatchDims, out: &mut [f32]) {
        assert!(
            input.pixels() > 0,
            "the stem was given an empty input: {input:?}"
        );
        assert_eq!(
            x.len(),
            CHANNELS * input.pixels(),
            "stem input length for {input:?}"
        );
        let mut session = pool.session();
        let geometry = Geometry::new(input, session.threads());
        let blocks = self.out_channels.div_ceil(BLOCK);
        assert_eq!(
            out.len(),
            geometry.pooled.pixels() * blocks * BLOCK,
            "stem output length for {input:?}"
        );
        let own = geometry.padded_floats() + geometry.ring_floats(blocks);
        let out = Destination::new(out);
        let x = Source::new(x);
        let bands = geometry.bands();
        session.run(input.n * bands, |task, scratch| {
            let band = Band {
                stem: self,
                geometry,
                image: task / bands,
                first: task % bands * geometry.band,
            };
            let padded = scratch.grow(own).as_mut_ptr();
            // SAFETY: the lengths of `x` and `out` were asserted, and `out` is exclusively
            // borrowed. The scratch memory has room for the padded rows and the ring after them,
            // and is this thread's own. Tasks write different pooled rows or different images.
            unsafe {
                band.run(
                    x.at(0),
                    padded,
                    padded.wrapping_add(geometry.padded_floats()),
                    out,
                )
            }
        });
    }
}

/// A task: a band of pooled rows of one image.
struct Band<'a> {
    stem: &'a PackedStem,
    geometry: Geometry,
    /// The image.
    image: usize,
    /// The first pooled row.
    first: usize,
}

impl Band<'_> {
    /// Computes the band.
    ///
    /// # Safety
    /// - `x` spans the whole input, `[n, 3, h, w]` floats, and nobody writes to it meanwhile.
    /// - `padded` spans [`Geometry::padded_floats`] floats, and `ring` [`Geometry::ring_floats`].
    ///   They do not overlap, and nobody else has access to them.
    /// - `out` spans the whole output: 16 floats for each channel block and pooled pixel. Nobody
    ///   else has access to the rows of this band.
    unsafe fn run(&self, x: *const f32, padded: *mut f32, ring: *mut f32, out: Destination<'_>) {
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

    /// Copies the input rows that convolution rows `start..end` read to `padded`, with zeros around
    /// the image.
    ///
    /// # Safety
    /// - `x` and `padded` are as [`Self::run`] asks for.
    /// - `end` is above `start`, and both read no more than [`Geometry::padded_rows`] input rows.
    unsafe fn pad(&self, x: *const f32, padded: *mut f32, start: usize, end: usize) {
        let g = &self.geometry;
        let (h, w) = (g.input.h, g.input.w);
        let rows = (end - start - 1) * STRIDE + KERNEL;
        for channel in 0..CHANNELS {
            for row in 0..rows {
                let to = padded.wrapping_add((channel * g.padded_rows() + row) * g.padded_width);
                // SAFETY: `row` is below `padded_rows`, of which `padded` holds as many for each
                // channel, and the three parts together are one row of `padded_width`. Row `y` is
                // below `h`, so `columns`, at most `w`, numbers of `x` are in the image's row.
                unsafe {
                    match (start * STRIDE + row)
                        .checked_sub(PADDING)
                        .filter(|&y| y < h)
                    {
                        None => to.write_bytes(0, g.padded_width),
                        Some(y) => {
                            let from = x.add(((self.image * CHANNELS + channel) * h + y) * w);
                            // An odd width ends one column earlier than the padded row.
                            let columns = w.min(g.padded_width - PADDING);
                            to.write_bytes(0, PADDING);
                            to.add(PADDING).copy_from_nonoverlapping(from, columns);
                            to.add(PADDING + columns)
                                .write_bytes(0, g.padded_width - PADDING - columns);
                        }
                    }
                }
            }
        }
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
        let kernels: &Kernels = self.stem.isa.kernels();
        let (width, blocks) = (kernels.width, self.stem.out_channels.div_ceil(BLOCK));
        let tiles = g.conv.w.div_ceil(kernels.stem.len());
        for panel in 0..blocks.div_ceil(width / BLOCK) {
            let block = panel * width / BLOCK;
            for row in rows.clone() {
                let line = padded.wrapping_add((row - start) * STRIDE * g.padded_width);
                let slot = ring.wrapping_add((row % 3 * blocks + block) * g.conv.w * BLOCK);
                for tile in 0..tiles {
                    let (from, to) = (tile * g.conv.w / tiles, (tile + 1) * g.conv.w / tiles);
                    let t = StemTile {
                        input: line.wrapping_add(from * STRIDE),
                        row: g.padded_width,
                        channel: g.padded_rows() * g.padded_width,
                        panel: self
                            .stem
                            .panels
                            .as_slice()
                            .as_ptr()
                            .wrapping_add(panel * TAPS * width),
                        bias: self
                            .stem
                            .bias
                            .as_slice()
                            .as_ptr()
                            .wrapping_add(panel * width),
                        out: slot.wrapping_add(from * BLOCK),
                        out_block: g.conv.w * BLOCK,
                        out_blocks: (width / BLOCK).min(blocks - block),
                    };
                    // SAFETY: the tile's pixels `from..to` are in the convolution's row, and a
                    // padded row holds the `(w - 1) * 2 + 7` columns that all `w` pixels of it
                    // read. The slot holds `w` pixels in each block. The tile has at least one
                    // pixel and at most the tallest tile's. An `Isa` led to the kernels, so the
                    // processor has their features.
                    unsafe { kernels.stem[to - from - 1](&t) };
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
        let max_pool = self.stem.isa.kernels().max_pool;
        let rows = [
            (2 * row).saturating_sub(1),
            2 * row,
            (2 * row + 1).min(g.conv.h - 1),
        ];
        for block in 0..blocks {
            let line =
                |row: usize| ring.wrapping_add((row % 3 * blocks + block) * g.conv.w * BLOCK);
            let to =
                (block * g.pooled.pixels() + (self.image * g.pooled.h + row) * g.pooled.w) * BLOCK;
            let row = PoolRow {
                lines: rows.map(line),
                width: g.conv.w,
                out: out.at(to),
            };
            // SAFETY: the lines are rows of `w` pixels that the ring holds, and the output row is
            // one of this band's, with a pixel for every two of them. An `Isa` led to the kernel,
            // so the processor has its features.
            unsafe { max_pool(&row) };
        }
    }
}
