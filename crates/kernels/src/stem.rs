//! The network's first two layers in one pass: the 7x7 convolution of stride 2 over planar pixels
//! with ReLU, and the 3x3 max-pool of stride 2.
//!
//! A task computes a band of pooled rows of one image. It copies the input rows that the band reads
//! between borders of zeros, computes the convolution row by row into a ring of three rows, and
//! pools those as soon as they are there. So the convolution's output, which is four times the
//! pooled one, never leaves the cache.

use super::buffer::{Buffer, Destination, Source};
use super::isa::{Isa, StemKernels};
use super::layout::BatchDims;
use super::number::{Numbers, Operands, Stored};
use super::pack::{self, WeightNumbers};
use super::pool::ThreadPool;
use super::simd::portable::round_to_bf16;
use super::simd::{ByLane, Vector};
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
    kernels: &'static StemKernels,
    /// The type of the weights, and of the pixels between their borders.
    numbers: WeightNumbers,
    out_channels: usize,
    /// `[panels][channel][ky][steps][width]` words.
    panels: Buffer,
    /// The bias: a float for each channel up to the end of the last panel.
    bias: Buffer,
    /// Integers only: what the sums start from where that is not zero, as many integers as the
    /// bias has floats.
    start: Option<Buffer>,
    /// Integers only: what the sums are multiplied by, as many floats as the bias.
    scale: Option<Buffer>,
    /// Integers only: the value of the pixels outside the image, for each channel.
    border: [u8; CHANNELS],
}

/// The numbers of the stem in 8-bit integers. Its input is bytes, and so is its output.
#[derive(Debug, Clone)]
pub struct Int8Stem {
    /// The weights, `[out_channels, 3, 7, 7]`.
    pub weight: Vec<i8>,
    /// What the sums of each output channel are multiplied by.
    pub scale: Vec<f32>,
    /// What is added to each output channel.
    pub bias: Vec<f32>,
    /// The value of the pixels outside the image, for each channel.
    pub border: [u8; 3],
}

/// The operands of one call of the stem's micro-kernel: `MR` convolution pixels of one row, and one
/// panel of `width` output channels.
pub(crate) struct StemTile {
    /// The padded input: the first tap of the first pixel in channel 0. In each of 3 channels, 7
    /// rows of `(MR - 1) * 2 + 7` numbers are read, rounded up to whole words.
    pub input: *const u8,
    /// Bytes from one padded input row to the next.
    pub row: usize,
    /// Bytes from one padded input channel to the next.
    pub channel: usize,
    /// The panel: `[3][7][steps][width]` words, in the order channel, ky, kx.
    pub panel: *const f32,
    /// The bias: `width` floats.
    pub bias: *const f32,
    /// Integers only, and only where the operands have a
    /// [`PIXEL_OFFSET`](Operands::PIXEL_OFFSET): `width` integers that the sums start from.
    pub start: *const f32,
    /// What integer sums are multiplied by: `width` floats. Null for floats.
    pub scale: *const f32,
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
fn opaque(p: *const u8) -> *const u8 {
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
/// A word holds one to four neighbouring taps of a row. A pixel's word begins two numbers after its
/// neighbour's, whatever their size.
///
/// # Safety
/// - The target features of `N` are enabled and present.
/// - `input`, `panel`, `bias`, `start`, `scale` and `out` of `t` span what their fields say, with a
///   width of `NV * LANES`.
/// - `out` overlaps nothing that is read, and nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn tile<N: Operands, const MR: usize, const NV: usize>(t: &StemTile) {
    let lanes = N::Floats::LANES;
    let per_word = N::WEIGHTS.per_word();
    let bytes = size_of::<f32>() / per_word;
    // SAFETY: `v` is below NV, so bias, start and scale are read within their width. `weights`
    // moves on by that width for each of the `3 * 7 * steps` words of the panel. Pixel `r` below MR
    // is read at tap (`channel`, `ky`, `step * per_word`), which is among the columns that the
    // tile's input spans. Stores go to pixel `r` of a block below `out_blocks`.
    unsafe {
        let bias = |v| N::Floats::load(t.bias.add(v * lanes));
        let start: [N::Sums; NV] =
            std::array::from_fn(|v| N::start(bias(v), t.start.wrapping_add(v * lanes)));
        let mut acc = [start; MR];
        let mut weights = t.panel;
        for channel in 0..CHANNELS {
            for ky in 0..KERNEL {
                let line = t.input.add(channel * t.channel + ky * t.row);
                for step in 0..KERNEL.div_ceil(per_word) {
                    let pixels = opaque(line.add(step * size_of::<f32>()));
                    let w: [N::Weights; NV] =
                        std::array::from_fn(|v| N::weights(weights.add(v * lanes)));
                    weights = weights.add(NV * lanes);
                    for (r, sums) in acc.iter_mut().enumerate() {
                        let x = N::pixel(pixels.add(r * STRIDE * bytes).cast());
                        for v in 0..NV {
                            sums[v] = N::multiply_add(x, w[v], sums[v]);
                        }
                    }
                }
            }
        }
        for v in 0..NV {
            let block = v * lanes / BLOCK;
            if block >= t.out_blocks {
                continue;
            }
            for (r, sums) in acc.iter().enumerate() {
                let mut y = N::to_floats(sums[v]);
                if N::SCALED {
                    let scale = N::Floats::load(t.scale.add(v * lanes));
                    y = y.mul(scale).add(bias(v));
                }
                let at = block * t.out_block + r * BLOCK + v * lanes % BLOCK;
                N::Floats::zero().max(y).store(t.out.add(at));
            }
        }
    }
}

/// The columns of one input row that a tile reads, of which whole registers are loaded once.
#[derive(Clone, Copy)]
struct Columns<V> {
    line: *const f32,
    loaded: [V; 4],
    /// How many columns lie in the registers.
    count: usize,
}

impl<V: ByLane> Columns<V> {
    /// Loads the columns that `pixels` convolution pixels read.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present.
    /// - `line` spans `(pixels - 1) * 2 + 7` floats.
    #[inline(always)]
    unsafe fn load(line: *const f32, pixels: usize) -> Self {
        // SAFETY: no more whole registers are loaded than lie within the columns.
        unsafe {
            let mut loaded = [V::zero(); 4];
            let whole = loaded
                .len()
                .min(((pixels - 1) * STRIDE + KERNEL) / V::LANES);
            for (index, columns) in loaded.iter_mut().enumerate().take(whole) {
                *columns = V::load(line.add(index * V::LANES));
            }
            let count = whole * V::LANES;
            Self {
                line,
                loaded,
                count,
            }
        }
    }

    /// Returns column `x` in all lanes.
    ///
    /// # Safety
    /// - The target features of `V` are enabled and present. It has four lanes.
    /// - `x` is among the columns.
    #[inline(always)]
    unsafe fn splat(&self, x: usize) -> V {
        // SAFETY: lanes are below 4, and a column that is not in a register is read from the line.
        unsafe {
            if x >= self.count {
                return V::splat_at(self.line.add(x));
            }
            let columns = self.loaded[x / 4];
            match x % 4 {
                0 => columns.lane::<0>(),
                1 => columns.lane::<1>(),
                2 => columns.lane::<2>(),
                _ => columns.lane::<3>(),
            }
        }
    }
}

/// Computes what [`tile`] does in float32, for vectors of four lanes of which each can be multiplied
/// by. All columns of an input row are loaded once, and not once for each tap and pixel.
///
/// # Safety
/// As [`tile`].
#[cfg_attr(
    not(target_arch = "aarch64"),
    expect(dead_code, reason = "NEON alone takes it")
)]
#[inline(always)]
pub(crate) unsafe fn tile_by_lane<V: ByLane, const MR: usize, const NV: usize>(t: &StemTile) {
    const { assert!(V::LANES == 4 && MR <= 6 && NV <= 4) };
    // SAFETY: `v` is below NV, so the bias is read within its width. `weights` moves on by that
    // width for each of the `3 * 7 * 7` taps of the panel. `line` spans the columns that MR pixels
    // read. Stores go to pixel `r` of a block below `out_blocks`.
    unsafe {
        let bias: [V; NV] = std::array::from_fn(|v| V::load(t.bias.add(v * V::LANES)));
        let mut acc = [bias; MR];
        let mut weights = t.panel;
        for channel in 0..CHANNELS {
            for ky in 0..KERNEL {
                let line = t.input.add(channel * t.channel + ky * t.row).cast();
                let columns = Columns::load(line, MR);
                // The compiler would keep a loop over the taps, and its lanes would be no constants.
                add_tap::<V, MR, NV, 0>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 1>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 2>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 3>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 4>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 5>(&mut acc, &columns, weights);
                add_tap::<V, MR, NV, 6>(&mut acc, &columns, weights);
                weights = weights.add(KERNEL * NV * V::LANES);
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

/// Adds the products of tap `KX` of an input row to the sums of each pixel.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `columns` are those that MR pixels read.
/// - `weights` spans those of the row's 7 taps, `NV * V::LANES` floats each.
#[inline(always)]
unsafe fn add_tap<V: ByLane, const MR: usize, const NV: usize, const KX: usize>(
    acc: &mut [[V; NV]; MR],
    columns: &Columns<V>,
    weights: *const f32,
) {
    // SAFETY: `v` is below NV and KX below 7, so the weights are among the row's. Pixel `r` reads
    // column `2 * r + KX`, which is among those of MR pixels.
    unsafe {
        macro_rules! pixels {
            ($w:ident, $v:literal, $($r:literal)+) => {$(
                if $r < MR {
                    acc[$r][$v] = columns.splat($r * STRIDE + KX).mul_add($w, acc[$r][$v]);
                }
            )+};
        }
        macro_rules! vectors {
            ($($v:literal)+) => {$(
                if $v < NV {
                    let w = V::load(weights.add((KX * NV + $v) * V::LANES));
                    pixels!(w, $v, 0 1 2 3 4 5);
                }
            )+};
        }
        vectors!(0 1 2 3);
    }
}

/// The operands for one row of the max-pool, 3x3 with stride 2, in one channel block.
pub(crate) struct PoolRow {
    /// The three convolution rows under the pooled row: `width * 16` floats each. At the edge of
    /// the image one of them is there twice, which changes no maximum.
    pub lines: [*const f32; 3],
    /// Pixels of a convolution row, at least 1.
    pub width: usize,
    /// The pooled row's first pixel: 16 channels are written for each of `width / 2` pixels, rounded
    /// up, which lie 16 words apart.
    pub out: *mut f32,
}

/// Computes one row of the max-pool.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `lines` and `out` of `row` span what their fields say. `out` overlaps none of the lines, and
///   nobody else has access to it.
#[inline(always)]
pub(crate) unsafe fn max_pool<V: Vector, S: Stored>(row: &PoolRow) {
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: lanes `v..v + LANES` lie within the 16 channels of a pixel. Columns are below
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
                let lane = v / S::NUMBERS.per_word();
                S::store(top, row.out.wrapping_add(x / 2 * BLOCK + lane));
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
    /// Numbers of an input row with its borders: whole words.
    padded_width: usize,
    /// How many of them fill a word.
    per_word: usize,
    /// The pooled rows of a task, except for an image's last, which may have fewer.
    band: usize,
}

impl Geometry {
    fn new(input: BatchDims, threads: usize, numbers: WeightNumbers) -> Self {
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
    fn bands(&self) -> usize {
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
    fn padded_words(&self) -> usize {
        (CHANNELS * self.padded_rows() * self.padded_row_words()).next_multiple_of(BLOCK)
    }

    /// Returns how many floats the three convolution rows take that pooling looks at.
    fn ring_floats(&self, blocks: usize) -> usize {
        3 * self.conv.w * blocks * BLOCK
    }
}

/// Images as bytes: for each a slice of interleaved pixels, `[h, w, 3]`.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    /// The images.
    pub images: &'a [&'a [u8]],
    /// Which of a pixel's three bytes each of the network's planes takes.
    pub channels: [usize; CHANNELS],
    /// For each plane the number that a byte stands for. A stem in integers does without.
    pub values: &'a [[f32; 256]; CHANNELS],
}

/// The images that a stem reads.
#[derive(Clone, Copy)]
enum Images<'a> {
    /// Planar numbers, `[n, 3, h, w]`.
    Planar(&'a [f32]),
    Pixels(Pixels<'a>),
}

impl PackedStem {
    /// Packs `weight`, which is `[out_channels, 3, 7, 7]` with the batch norm folded into it, and
    /// `bias`, which has a number for each output channel.
    ///
    /// # Panics
    /// If `weight` does not have `147` numbers for each of `bias`.
    #[must_use]
    pub fn new(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        Self::packed(isa, WeightNumbers::F32, weight, bias)
    }

    /// Packs what [`Self::new`] does for a stem in bfloat16. It reads floats, which it rounds, and
    /// its output is bfloat16.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn bf16(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        Self::packed(isa, WeightNumbers::Bf16, weight, bias)
    }

    /// Packs a stem in 8-bit integers.
    ///
    /// # Panics
    /// As [`Self::new`], or if there is not a scale for each of the biases.
    #[must_use]
    pub fn int8(isa: Isa, stem: &Int8Stem) -> Self {
        let Int8Stem {
            weight,
            scale,
            bias,
            border,
        } = stem;
        assert_eq!(scale.len(), bias.len(), "scales of the stem");
        let whole: Vec<f32> = weight.iter().map(|&w| f32::from(w)).collect();
        let mut packed = Self::packed(isa, WeightNumbers::I8, &whole, bias);
        let mut padded = Buffer::zeroed(packed.bias.len());
        padded.as_mut_slice()[..scale.len()].copy_from_slice(scale);
        packed.scale = Some(padded);
        let offset = packed.kernels.pixel_offset;
        packed.start = pack::integer_starts(weight, scale.len(), offset, packed.bias.len());
        packed.border = *border;
        packed
    }

    fn packed(isa: Isa, numbers: WeightNumbers, weight: &[f32], bias: &[f32]) -> Self {
        let out_channels = bias.len();
        assert_eq!(
            weight.len(),
            out_channels * TAPS,
            "stem weight length for {out_channels} channels"
        );
        let kernels = isa.stem(numbers);
        let width = kernels.width;
        let count = out_channels.div_ceil(width);
        let (per_word, steps) = (numbers.per_word(), KERNEL.div_ceil(numbers.per_word()));
        let rows = CHANNELS * KERNEL;
        let mut panels = Buffer::zeroed(count * rows * steps * width);
        let packed = panels.as_mut_slice();
        for (channel, kernel) in weight.chunks_exact(TAPS).enumerate() {
            let panel = channel / width * rows * steps;
            for (tap, &value) in kernel.iter().enumerate() {
                let (row, column) = (tap / KERNEL, tap % KERNEL);
                let step = panel + row * steps + column / per_word;
                let word = step * width + channel % width;
                numbers.write(packed, word * per_word + column % per_word, value);
            }
        }
        let mut padded_bias = Buffer::zeroed(count * width);
        padded_bias.as_mut_slice()[..out_channels].copy_from_slice(bias);
        Self {
            kernels,
            numbers,
            out_channels,
            panels,
            bias: padded_bias,
            start: None,
            scale: None,
            border: [0; CHANNELS],
        }
    }

    /// Returns the type of the output.
    #[must_use]
    pub fn output_numbers(&self) -> Numbers {
        self.kernels.stored
    }

    fn geometry(&self, input: BatchDims, threads: usize) -> Geometry {
        Geometry::new(input, threads, self.numbers)
    }

    /// Returns the images, rows and columns of the output for an input.
    #[must_use]
    pub fn output_dims(&self, input: BatchDims) -> BatchDims {
        self.geometry(input, 1).pooled
    }

    /// Returns the number of output channels.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Returns the multiplications and additions of the convolution for an input.
    #[must_use]
    pub fn flops(&self, input: BatchDims) -> u64 {
        (2 * self.geometry(input, 1).conv.pixels() * self.out_channels * TAPS) as u64
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
    /// As [`Self::forward_into`].
    #[must_use]
    pub fn forward(&self, pool: &ThreadPool, x: &[f32], input: BatchDims) -> Vec<f32> {
        let dims = self.output_dims(input);
        let mut out = vec![0.0; dims.words(self.out_channels, self.output_numbers())];
        self.forward_into(pool, x, input, &mut out);
        out
    }

    /// Computes what [`Self::forward`] does, and writes it over every word of `out`.
    ///
    /// # Panics
    /// If `x` or `out` does not have the length of `input`, if `input` is empty, or if the stem is
    /// one of integers.
    pub fn forward_into(&self, pool: &ThreadPool, x: &[f32], input: BatchDims, out: &mut [f32]) {
        assert_ne!(
            self.numbers,
            WeightNumbers::I8,
            "a stem in integers reads bytes"
        );
        assert_eq!(
            x.len(),
            CHANNELS * input.pixels(),
            "stem input length for {input:?}"
        );
        self.run(pool, Images::Planar(x), input, out);
    }

    /// Computes the output for pixels, and writes it over every word of `out`.
    ///
    /// # Panics
    /// If `pixels` are not the images of `input`, if `out` does not have its length, if `input` is
    /// empty, or if a plane takes another byte than one of three.
    pub fn forward_pixels_into(
        &self,
        pool: &ThreadPool,
        pixels: Pixels<'_>,
        input: BatchDims,
        out: &mut [f32],
    ) {
        let length = CHANNELS * input.h * input.w;
        assert!(
            pixels.images.len() == input.n
                && pixels.images.iter().all(|image| image.len() == length),
            "stem input length for {input:?}"
        );
        assert!(
            pixels.channels.iter().all(|&channel| channel < CHANNELS),
            "planes of bytes {:?} of a pixel",
            pixels.channels
        );
        self.run(pool, Images::Pixels(pixels), input, out);
    }

    fn run(&self, pool: &ThreadPool, x: Images<'_>, input: BatchDims, out: &mut [f32]) {
        assert!(
            input.pixels() > 0,
            "the stem was given an empty input: {input:?}"
        );
        let mut session = pool.session();
        let geometry = self.geometry(input, session.threads());
        let blocks = self.out_channels.div_ceil(BLOCK);
        let stored = self.output_numbers();
        assert_eq!(
            out.len(),
            geometry.pooled.words(self.out_channels, stored),
            "stem output length for {input:?}"
        );
        if !self.out_channels.is_multiple_of(stored.block()) {
            // The pass writes sixteen channels at a time. Those beyond the last are zero.
            out.fill(0.0);
        }
        let own = geometry.padded_words() + geometry.ring_floats(blocks);
        let out = Destination::new(out);
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
            unsafe { band.run(x, padded, padded.wrapping_add(geometry.padded_words()), out) }
        });
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
    /// - `x` holds the whole input.
    /// - `padded` spans [`Geometry::padded_words`] words, and `ring` [`Geometry::ring_floats`]
    ///   floats. They do not overlap, and nobody else has access to them.
    /// - `out` spans the whole output: 16 words for each block and pooled pixel. Nobody else has
    ///   access to the rows of this band.
    unsafe fn run(&self, x: Images<'_>, padded: *mut f32, ring: *mut f32, out: Destination<'_>) {
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
