//! 3x3 convolutions of stride 1 by Winograd's minimal filtering.
//!
//! The output is cut into tiles of 2x2 or 4x4 pixels ([`grid`]). A layer then takes three phases:
//!
//! 1. Each input tile is transformed into a number for each of 16 or 36 *positions*
//!    ([`transform`]).
//! 2. For each position the transformed inputs are multiplied by the transformed weights: one
//!    matrix product of tiles times channels ([`crate::gemm`]).
//! 3. The products are transformed back into output pixels.
//!
//! Products are computed in float32, or in bfloat16 with float32 sums ([`Winograd::new`]). The
//! activations are of the products' type, or 8-bit integers beside products in bfloat16. A block of
//! channels is then longer or shorter from phase to phase ([`Numbers::block`]).
//!
//! Tiles pass through the phases in *chunks*, so that a chunk's intermediate numbers stay in a
//! cache. Where there are many tiles, a chunk is small, and one thread takes it through all phases.
//! Where there are few, all threads work on one chunk, phase by phase.

mod grid;
pub(crate) mod transform;

use std::ops::Range;

use super::buffer::{Destination, Source};
use super::gemm::Gemm;
use super::isa::{Isa, TileKernels, WinogradKernels};
use super::layout::BatchDims;
use super::number::Numbers;
use super::pack::{Panels, WeightNumbers};
use super::pool::Session;
use super::tile::BLOCK;
use grid::{Grid, Place};
use transform::{InputTile, OutputTile, omitted};

/// The most words of transformed inputs and products of a chunk that one thread works on alone.
/// They leave room for weights in a second-level cache.
const FUSED_WORDS: usize = 72 << 10;

/// The most tiles of a chunk that all threads work on together, and of one that a thread works on
/// at home. Their transformed inputs and
/// products stay in a shared cache, and the weights are read once for them.
const CHUNK_TILES: usize = 128;

/// The most bytes of weights with which each thread has a home. Every thread reads them all.
const HOME_WEIGHT_BYTES: usize = 3 << 20;

/// The side of the output tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// F(2x2, 3x3): 16 products for 4 outputs, 2.25 times fewer than direct.
    Two,
    /// F(4x4, 3x3): 36 products for 16 outputs, 4 times fewer than direct.
    Four,
}

impl Side {
    /// Returns the side of the output tile in pixels.
    pub(crate) fn outputs(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Returns the side of the input tile in pixels.
    fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Returns how many products a tile takes: one for each position.
    fn positions(self) -> usize {
        self.inputs() * self.inputs()
    }
}

/// The transformed and packed weights of one layer, and what computes it.
pub(crate) struct Winograd {
    side: Side,
    /// The transforms.
    kernels: &'static WinogradKernels,
    /// The micro-kernels of the products.
    products: &'static TileKernels,
    /// Blocks of the transformed inputs.
    factor_blocks: usize,
    /// Blocks of 16 channels of the products.
    product_blocks: usize,
    panels: Panels,
    /// A zero for each output channel up to the end of the last panel: products start from nothing.
    no_bias: super::buffer::Buffer,
}

/// The operands of one layer's forward call. All lengths are in words of 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The blocked input: `input_blocks * dims.pixels() * 16` words.
    pub input: Source<'a>,
    /// The input's images, rows and columns.
    pub dims: BatchDims,
    /// Blocks of input channels, at least 1.
    pub input_blocks: usize,
    /// The bias: a float for each output channel, up to the end of the last panel.
    pub bias: Source<'a>,
    /// The blocked output: `output_blocks * 16` words for each output pixel.
    pub output: Destination<'a>,
    /// Blocks of output channels, at least 1.
    pub output_blocks: usize,
    /// The residual: as many words as the output, in the same places. It may be nothing, or the
    /// output itself.
    pub skip: Source<'a>,
    /// Whether sums below zero are stored as zero.
    pub relu: bool,
}

/// Returns which of the four transforms for a side serves a tile that is a row short, or a column
/// short.
fn kind((rows, columns): (bool, bool)) -> usize {
    2 * usize::from(rows) + usize::from(columns)
}

/// Some of a batch's tiles, and where their transformed inputs and products lie. All lengths are in
/// words of 32 bits.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    grid: Grid,
    /// The first tile of the chunk.
    first: usize,
    /// How many tiles the chunk has, at least 1.
    tiles: usize,
    /// The transformed inputs: `positions * stride(factor_blocks, tiles)` words. At each position
    /// lies `[factor_blocks][tiles][16]`.
    inputs: Destination<'a>,
    /// The products: `positions * stride(product_blocks, tiles)` floats. At each position lies
    /// `[product_blocks][tiles][16]`.
    products: Destination<'a>,
}

impl Winograd {
    /// Transforms and packs `weight`, which is `[outputs, inputs, 3, 3]`, for products of type
    /// `numbers` and for activations of type `activations`.
    pub(crate) fn new(
        isa: Isa,
        side: Side,
        numbers: WeightNumbers,
        activations: Numbers,
        (outputs, inputs): (usize, usize),
        weight: &[f32],
    ) -> Self {
        let (kernels, products) = (isa.winograd(activations), isa.tiles(numbers, Numbers::F32));
        let positions = side.positions();
        let mut transformed = vec![0.0; positions * outputs * inputs];
        for (index, kernel) in weight.chunks_exact(9).enumerate() {
            for (position, value) in weights(side, kernel)
                .into_iter()
                .take(positions)
                .enumerate()
            {
                transformed[position * outputs * inputs + index] = value;
            }
        }
        // Products fill the last block of the output.
        let padded = outputs.next_multiple_of(activations.block());
        let panels = Panels::new(
            numbers,
            products.width,
            (positions, padded, inputs, 1),
            outputs,
            |position, output, input, _| {
                transformed[(position * outputs + output) * inputs + input]
            },
        );
        let no_bias = super::buffer::Buffer::zeroed(panels.panels * products.width);
        Self {
            side,
            kernels,
            products,
            factor_blocks: kernels.factors.blocks(inputs),
            product_blocks: padded / BLOCK,
            panels,
            no_bias,
        }
    }

    /// Returns the transformed and packed weights.
    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Computes the layer on all threads of the session.
    ///
    /// # Safety
    /// - The operands of `call` span what their fields say, and `call.dims` are not empty.
    /// - The output overlaps no other operand, unless the residual is the output itself, float for
    ///   float.
    /// - Nobody else writes to the operands meanwhile, or reads the output.
    pub(crate) unsafe fn run(&self, session: &mut Session<'_>, call: &Call<'_>) {
        let grid = Grid::new(call.dims, self.side.outputs());
        let tiles = grid.tiles();
        let per_tile = self.stride(self.factor_blocks, 1) + self.stride(self.product_blocks, 1);
        let words_per_tile = per_tile * self.side.positions();
        // A multiple of what one micro-kernel holds.
        let height = self.products.dense.len();
        let fused = FUSED_WORDS / words_per_tile / height * height;
        let threads = session.threads();
        let fused = if fused > 0 && tiles >= 2 * threads * fused {
            fused
        } else {
            self.home_tiles(tiles, threads, height)
        };
        if fused > 0 {
            let size = self.chunk_words(fused);
            session.run(tiles.div_ceil(fused), |task, scratch| {
                let tiles = fused.min(tiles - task * fused);
                let range = task * fused..task * fused + tiles;
                let chunk = self.chunk(grid, range, scratch.grow(size));
                // SAFETY: the operands are as the caller promised. Tasks have different tiles, so
                // they write different output pixels, and the scratch memory is this thread's own.
                unsafe { self.alone(call, &chunk) }
            });
        } else {
            let chunks = tiles.div_ceil(CHUNK_TILES);
            let largest = tiles.div_ceil(chunks);
            let mut scratch = session.take_scratch(self.chunk_words(largest));
            for index in 0..chunks {
                let (from, to) = (index * tiles / chunks, (index + 1) * tiles / chunks);
                let chunk = self.chunk(grid, from..to, scratch.as_mut_slice());
                // SAFETY: the operands are as the caller promised, and one chunk is computed after
                // the other, so nobody else uses the scratch memory.
                unsafe { self.together(session, call, &chunk) }
            }
            session.keep_scratch(scratch);
        }
    }

    /// Returns how many tiles a thread takes through all phases at once if each thread has a home,
    /// a contiguous part of the tiles; 0 if all threads should work on one chunk together.
    ///
    /// Together, each thread reads what the others have just written: once between the transform of
    /// the inputs and the products, and once between those and the transform of the outputs. At
    /// home it reads nothing of the others', but all of the weights. That pays while the weights
    /// are small and there are enough tiles for each thread.
    fn home_tiles(&self, tiles: usize, threads: usize, height: usize) -> usize {
        let each = tiles.div_ceil(threads);
        if threads == 1 || each < height || self.panels.bytes() > HOME_WEIGHT_BYTES {
            return 0;
        }
        let chunks = each.div_ceil(CHUNK_TILES);
        tiles.div_ceil(threads * chunks)
    }

    /// Computes all three phases of one chunk on this thread.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for.
    /// - Nobody else uses the chunk's memory, or writes to the output pixels of its tiles.
    unsafe fn alone(&self, call: &Call<'_>, chunk: &Chunk<'_>) {
        // SAFETY: all blocks, positions, panels and tiles are those that the call and the chunk
        // have, so the pointers stay within what the caller vouches for. The phases run one after
        // the other on this thread, and nobody else uses what they write.
        unsafe {
            for block in 0..self.factor_blocks {
                self.transform_inputs(call, chunk, block, 0..chunk.tiles);
            }
            for position in 0..self.side.positions() {
                let gemm = self.product(chunk, position);
                gemm.block(0..gemm.tiles(), 0..self.panels.panels, 1);
            }
            for block in 0..call.output_blocks {
                self.transform_outputs(call, chunk, block, 0..chunk.tiles);
            }
        }
    }

    /// Computes all three phases of one chunk, each on all threads.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for.
    /// - Nobody else uses the chunk's memory, or writes to the output pixels of its tiles.
    unsafe fn together(&self, session: &mut Session<'_>, call: &Call<'_>, chunk: &Chunk<'_>) {
        // There are enough tasks to even out, and each takes a few microseconds at least.
        let parts = if self.factor_blocks < 4 * session.threads() {
            chunk.tiles.clamp(1, 4)
        } else {
            1
        };
        let part = |index: usize| index * chunk.tiles / parts..(index + 1) * chunk.tiles / parts;
        session.run(self.factor_blocks * parts, |task, _| {
            // SAFETY: the block and the tiles are among the chunk's. No two tasks have the same
            // tiles of the same block, so they write different lines of the transformed inputs.
            unsafe { self.transform_inputs(call, chunk, task / parts, part(task % parts)) }
        });
        let halves = if self.side.positions() < 8 * session.threads() {
            self.panels.panels.min(4)
        } else {
            1
        };
        session.run(self.side.positions() * halves, |task, _| {
            let (position, half) = (task / halves, task % halves);
            let gemm = self.product(chunk, position);
            let all = self.panels.panels;
            let panels = half * all / halves..(half + 1) * all / halves;
            // SAFETY: the inputs of this position were written by the job before. No two tasks have
            // the same panels of the same position, so they write different products.
            unsafe { gemm.block(0..gemm.tiles(), panels, 1) }
        });
        session.run(call.output_blocks * parts, |task, _| {
            // SAFETY: the products were written by the job before. No two tasks have the same tiles
            // of the same block, so they write different output pixels or channels.
            unsafe { self.transform_outputs(call, chunk, task / parts, part(task % parts)) }
        });
    }

    /// Returns the floats from one position to the next. They are an odd number of cache lines: a
    /// multiple of 4 KB would put all positions of a tile into the same cache sets.
    fn stride(&self, blocks: usize, tiles: usize) -> usize {
        ((blocks * tiles) | 1) * BLOCK
    }

    /// Returns how many words a chunk of `tiles` tiles needs.
    fn chunk_words(&self, tiles: usize) -> usize {
        let strides =
            self.stride(self.factor_blocks, tiles) + self.stride(self.product_blocks, tiles);
        strides * self.side.positions()
    }

    /// Makes the chunk of the tiles in `range`, whose numbers will lie in `scratch`.
    ///
    /// # Panics
    /// If `scratch` is shorter than [`Self::chunk_words`].
    fn chunk<'a>(&self, grid: Grid, range: Range<usize>, scratch: &'a mut [f32]) -> Chunk<'a> {
        let (first, tiles) = (range.start, range.len());
        let inputs = self.stride(self.factor_blocks, tiles) * self.side.positions();
        let products = self.stride(self.product_blocks, tiles) * self.side.positions();
        let scratch = Destination::new(scratch);
        Chunk {
            grid,
            first,
            tiles,
            inputs: scratch.part(0, inputs),
            products: scratch.part(inputs, products),
        }
    }

    /// Returns the product of one position, over those of the chunk's tiles that take part in it.
    fn product<'a>(&'a self, chunk: &Chunk<'a>, position: usize) -> Gemm<'a> {
        let inputs = self.side.inputs();
        let is_omitted = |line: usize| line == omitted(inputs);
        let all = chunk
            .grid
            .full(is_omitted(position / inputs), is_omitted(position % inputs));
        let end = chunk.first + chunk.tiles;
        let (from, to) = (
            all.start.clamp(chunk.first, end),
            all.end.clamp(chunk.first, end),
        );
        let first = (from - chunk.first) * BLOCK;
        // At one position lies a line of 16 words for each block and tile.
        let lines = |of: Destination<'a>, blocks: usize| {
            let stride = self.stride(blocks, chunk.tiles);
            of.part(position * stride + first, stride - first)
        };
        let input = lines(chunk.inputs, self.factor_blocks).as_source();
        let output = lines(chunk.products, self.product_blocks);
        Gemm {
            kernels: self.products,
            panels: &self.panels,
            matrix: position,
            bias: Source::new(self.no_bias.as_slice()),
            start: Source::NOTHING,
            scale: Source::NOTHING,
            input,
            input_block: chunk.tiles * BLOCK,
            blocks: self.factor_blocks,
            pixels: to - from,
            offsets: None,
            output,
            output_block: chunk.tiles * BLOCK,
            output_blocks: self.product_blocks,
            skip: Source::NOTHING,
            skip_numbers: Numbers::F32,
            skip_block: 0,
            skip_blocks: 0,
            skip_scale: 1.0,
            bounded: false,
            relu: false,
            next: None,
        }
    }

    /// Transforms block `block` of the factors of `tiles`, which are counted from the chunk's first.
    ///
    /// # Safety
    /// - `call.input` spans what its field says, and nobody writes to it meanwhile.
    /// - `block` is below `self.factor_blocks`, and `tiles` lie below `chunk.tiles`.
    /// - Nobody else uses the transformed inputs of these tiles in this block meanwhile.
    unsafe fn transform_inputs(
        &self,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        block: usize,
        tiles: Range<usize>,
    ) {
        let BatchDims { h, w, .. } = call.dims;
        let (row, side) = (w * BLOCK, self.side.inputs());
        let channel = block * self.kernels.factors.block();
        let (plane, word) = self.kernels.activations.place(channel);
        let plane = plane * call.dims.pixels() * BLOCK + word;
        for tile in tiles {
            let Place { image, y, x, short } = chunk.grid.place(chunk.first + tile);
            let (height, width) = (side - usize::from(short.0), side - usize::from(short.1));
            // The input tile starts one pixel up and left of the output tile.
            let start = (plane + (image * h + y) * row + x * BLOCK).wrapping_sub(row + BLOCK);
            let t = InputTile {
                x: call.input.at(0).wrapping_add(start),
                row,
                rows: (usize::from(y == 0), height.min(h + 1 - y)),
                columns: (usize::from(x == 0), width.min(w + 1 - x)),
                out: chunk.inputs.at((block * chunk.tiles + tile) * BLOCK),
                position: self.stride(self.factor_blocks, chunk.tiles),
            };
            // SAFETY: `rows` and `columns` leave out the tile's pixels above, left of, below and
            // right of the image, so what is read lies in the image's plane of this block, of which
            // a block of factors is the whole or a part. What is written is this tile's line in this
            // block at each position, and each position has one for every tile and block. An `Isa`
            // led to the kernels, so the processor has their features.
            unsafe { self.kernels.input[self.side as usize][kind(short)](&t) };
        }
    }

    /// Transforms output channel block `block` of `tiles` back, which are counted from the chunk's
    /// first, and stores them.
    ///
    /// # Safety
    /// - `call.output` and `call.skip` span and overlap as [`Self::run`] asks for, and `call.bias`
    ///   spans what its field says.
    /// - `block` is below `call.output_blocks`, and `tiles` lie below `chunk.tiles`.
    /// - Nobody writes to the products of these tiles in this block meanwhile, or uses their output
    ///   pixels.
    unsafe fn transform_outputs(
        &self,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        block: usize,
        tiles: Range<usize>,
    ) {
        let BatchDims { h, w, .. } = call.dims;
        let (row, side) = (w * BLOCK, self.side.outputs());
        let plane = block * call.dims.pixels() * BLOCK;
        let channels = self.kernels.activations.block();
        for tile in tiles {
            let Place { image, y, x, short } = chunk.grid.place(chunk.first + tile);
            let (height, width) = (side - usize::from(short.0), side - usize::from(short.1));
            let first = block * channels / BLOCK * chunk.tiles + tile;
            let at = plane + (image * h + y) * row + x * BLOCK;
            let t = OutputTile {
                product: chunk.products.at(first * BLOCK),
                position: self.stride(self.product_blocks, chunk.tiles),
                block: chunk.tiles * BLOCK,
                bias: call.bias.at(block * channels),
                out: call.output.at(at),
                skip: call.skip.at(at),
                row,
                inside: (height.min(h - y), width.min(w - x)),
                relu: call.relu,
            };
            // SAFETY: `inside` leaves out the tile's pixels below and right of the image, so what
            // is read of the residual and written lies in the image's plane of this block. What is
            // read of the products is this tile's lines in this block at each position. The bias has
            // a float for each channel of the block. An `Isa` led to the kernels, so the processor has their
            // features.
            unsafe { self.kernels.output[self.side as usize][kind(short)](&t) };
        }
    }
}

/// Returns `G g G^T` for one 3x3 kernel. It is computed in double precision, so that only the last
/// rounding counts.
fn weights(side: Side, kernel: &[f32]) -> [f32; 36] {
    let two: &[[f64; 3]] = &[
        [1.0, 0.0, 0.0],
        [0.5, 0.5, 0.5],
        [0.5, -0.5, 0.5],
        [0.0, 0.0, 1.0],
    ];
    let (sixth, twelfth, twentyfourth) = (1.0 / 6.0, 1.0 / 12.0, 1.0 / 24.0);
    let four: &[[f64; 3]] = &[
        [0.25, 0.0, 0.0],
        [-sixth, -sixth, -sixth],
        [-sixth, sixth, -sixth],
        [twentyfourth, twelfth, sixth],
        [twentyfourth, -twelfth, sixth],
        [0.0, 0.0, 1.0],
    ];
    let g = if side == Side::Two { two } else { four };
    let mut out = [0.0; 36];
    for (i, left) in g.iter().enumerate() {
        for (j, right) in g.iter().enumerate() {
            let mut sum = 0.0;
            for (ky, l) in left.iter().enumerate() {
                for (kx, r) in right.iter().enumerate() {
                    sum += l * f64::from(kernel[ky * 3 + kx]) * r;
                }
            }
            out[i * g.len() + j] = sum as f32;
        }
    }
    out
}
