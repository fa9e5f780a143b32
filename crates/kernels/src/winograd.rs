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
//! cache. The last two phases take one *group* of output channels after the other, those of a panel
//! or of a block: so the products of a group alone are kept, by the thread that transforms them
//! back. Where there are many tiles, a chunk is small, and one thread takes it through all phases.
//! Where there are few, all threads transform the inputs of one chunk, and then each takes groups;
//! where there are too few groups for the threads, these share each of the phases.

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
    /// Groups of output channels.
    groups: usize,
    /// Blocks of 16 channels of a group's products.
    product_blocks: usize,
    /// A matrix for each position of each group.
    panels: Panels,
    /// A zero for each output channel of a group: products start from nothing.
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

/// Some of a batch's tiles, and where their transformed inputs lie. All lengths are in words of 32
/// bits.
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
}

impl Chunk<'_> {
    /// Returns the tiles of share `index` of `shares`.
    fn share(&self, index: usize, shares: usize) -> Range<usize> {
        index * self.tiles / shares..(index + 1) * self.tiles / shares
    }
}

/// Some of a chunk's tiles and a group of output channels, and where their products lie.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// The first tile, counted from the chunk's first.
    first: usize,
    /// How many tiles the part has, at least 1.
    tiles: usize,
    group: usize,
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
        // The products of a group fill blocks of the output.
        let group_channels = products.width.max(activations.block());
        // A group's weights lie together, position after position, as they are read.
        let panels = Panels::new(
            numbers,
            products.width,
            (
                outputs.div_ceil(group_channels) * positions,
                group_channels,
                inputs,
                1,
            ),
            group_channels,
            |matrix, output, input, _| {
                let (group, position) = (matrix / positions, matrix % positions);
                let output = group * group_channels + output;
                if output < outputs {
                    transformed[(position * outputs + output) * inputs + input]
                } else {
                    0.0
                }
            },
        );
        let no_bias = super::buffer::Buffer::zeroed(group_channels);
        Self {
            side,
            kernels,
            products,
            factor_blocks: kernels.factors.blocks(inputs),
            groups: outputs.div_ceil(group_channels),
            product_blocks: group_channels / BLOCK,
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
        let blocks = self.factor_blocks + self.product_blocks;
        let words_per_tile = blocks * BLOCK * self.side.positions();
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
            let (inputs, products) = (self.input_words(fused), self.product_words(fused));
            session.run(tiles.div_ceil(fused), |task, scratch| {
                let tiles = fused.min(tiles - task * fused);
                let range = task * fused..task * fused + tiles;
                let (inputs, products) = scratch.grow(inputs + products).split_at_mut(inputs);
                let chunk = self.chunk(grid, range, inputs);
                // SAFETY: the operands are as the caller promised. Tasks have different tiles, so
                // they write different output pixels, and the scratch memory is this thread's own.
                unsafe { self.alone(call, &chunk, products) }
            });
        } else {
            let chunks = tiles.div_ceil(CHUNK_TILES);
            let largest = tiles.div_ceil(chunks);
            let inputs = self.input_words(largest);
            let parts = self.parts(largest, threads);
            let products = match parts {
                Some(_) => 0,
                None => self.groups * self.product_words(largest),
            };
            let mut scratch = session.take_scratch(inputs + products);
            for index in 0..chunks {
                let (from, to) = (index * tiles / chunks, (index + 1) * tiles / chunks);
                let (inputs, products) = scratch.as_mut_slice().split_at_mut(inputs);
                let chunk = self.chunk(grid, from..to, inputs);
                // SAFETY: the operands are as the caller promised, and one chunk is computed after
                // the other, so nobody else uses the scratch memory.
                unsafe {
                    self.transform_together(session, call, &chunk);
                    match parts {
                        Some(parts) => self.multiply_apart(session, call, &chunk, parts),
                        None => self.multiply_together(session, call, &chunk, products),
                    }
                }
            }
            session.keep_scratch(scratch);
        }
    }

    /// Returns how many tiles a thread takes through all phases at once if each thread has a home,
    /// a contiguous part of the tiles; 0 if all threads should work on one chunk together.
    ///
    /// Together, each thread reads the inputs that the others have just transformed. At home it reads
    /// nothing of the others', but all of the weights. That pays while the weights are small and
    /// there are enough tiles for each thread.
    fn home_tiles(&self, tiles: usize, threads: usize, height: usize) -> usize {
        let each = tiles.div_ceil(threads);
        if threads == 1 || each < height || self.panels.bytes() > HOME_WEIGHT_BYTES {
            return 0;
        }
        let chunks = each.div_ceil(CHUNK_TILES);
        tiles.div_ceil(threads * chunks)
    }

    /// Computes all three phases of one chunk on this thread. `products` serves one group after the
    /// other, and has at least [`Self::product_words`] of the chunk's tiles.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for.
    /// - Nobody else uses the chunk's memory, or writes to the output pixels of its tiles.
    unsafe fn alone(&self, call: &Call<'_>, chunk: &Chunk<'_>, products: &mut [f32]) {
        // SAFETY: all blocks, tiles and groups are those that the call and the chunk have, so the
        // pointers stay within what the caller vouches for. The phases run one after the other on
        // this thread, and nobody else uses what they write.
        unsafe {
            for block in 0..self.factor_blocks {
                self.transform_inputs(call, chunk, block, 0..chunk.tiles);
            }
            let products = Destination::new(products);
            for group in 0..self.groups {
                self.multiply(call, chunk, &self.part(group, 0..chunk.tiles, products));
            }
        }
    }

    /// Computes the first phase of one chunk on all threads.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for.
    /// - Nobody else uses the chunk's memory.
    unsafe fn transform_together(
        &self,
        session: &mut Session<'_>,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
    ) {
        // There are enough tasks to even out, and each takes a few microseconds at least.
        let parts = if self.factor_blocks < 4 * session.threads() {
            chunk.tiles.clamp(1, 4)
        } else {
            1
        };
        session.run(self.factor_blocks * parts, |task, _| {
            let tiles = chunk.share(task % parts, parts);
            // SAFETY: the block and the tiles are among the chunk's. No two tasks have the same
            // tiles of the same block, so they write different lines of the transformed inputs.
            unsafe { self.transform_inputs(call, chunk, task / parts, tiles) }
        });
    }

    /// Computes the last two phases of one chunk: each thread takes groups, each in `parts` parts of
    /// the tiles, and transforms back what it has multiplied.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for. The inputs of the chunk are
    ///   transformed.
    /// - Nobody else writes to the chunk's memory, or to the output pixels of its tiles.
    unsafe fn multiply_apart(
        &self,
        session: &mut Session<'_>,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        parts: usize,
    ) {
        let words = self.product_words(chunk.tiles.div_ceil(parts));
        session.run(self.groups * parts, |task, scratch| {
            let tiles = chunk.share(task % parts, parts);
            let products = Destination::new(scratch.grow(words));
            let part = self.part(task / parts, tiles, products);
            // SAFETY: no two tasks have the same tiles of the same group, so they write different
            // output pixels or channels, and the scratch memory is this thread's own.
            unsafe { self.multiply(call, chunk, &part) }
        });
    }

    /// Computes the last two phases of one chunk, each on all threads. `products` has room for the
    /// products of all groups.
    ///
    /// # Safety
    /// As [`Self::multiply_apart`].
    unsafe fn multiply_together(
        &self,
        session: &mut Session<'_>,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        products: &mut [f32],
    ) {
        let words = self.product_words(chunk.tiles);
        let products = Destination::new(products);
        let whole = |group: usize| {
            let products = products.part(group * words, words);
            self.part(group, 0..chunk.tiles, products)
        };
        let positions = self.side.positions();
        session.run(self.groups * positions, |task, _| {
            let gemm = self.product(chunk, &whole(task / positions), task % positions);
            // SAFETY: no two tasks have the same position of the same group, so they write different
            // products.
            unsafe { gemm.block(0..gemm.tiles(), 0..self.panels.panels, 1) }
        });
        let parts = chunk.tiles.clamp(1, 4);
        session.run(call.output_blocks * parts, |task, _| {
            let (block, tiles) = (task / parts, chunk.share(task % parts, parts));
            let part = whole(block / self.group_blocks());
            // SAFETY: the products were written by the job before. No two tasks have the same tiles
            // of the same block, so they write different output pixels or channels.
            unsafe { self.transform_outputs(call, chunk, &part, block, tiles) }
        });
    }

    /// Returns into how many parts the tiles of each group are cut where each thread takes groups;
    /// `None` if there are too few groups and tiles to give each thread as much as the others.
    ///
    /// Each part reads all of the group's weights, so there are no more of them than that takes, and
    /// than it takes to keep the products of a part in a second-level cache.
    fn parts(&self, tiles: usize, threads: usize) -> Option<usize> {
        let groups = self.groups;
        let even = if groups.is_multiple_of(threads) || groups >= 4 * threads {
            1
        } else {
            (2 * threads).div_ceil(groups)
        };
        let small = self.product_words(tiles).div_ceil(FUSED_WORDS);
        let height = self.products.dense.len();
        let parts = even.max(small).min(tiles.div_ceil(height));
        let tasks = groups * parts;
        (tasks >= 2 * threads || tasks.is_multiple_of(threads)).then_some(parts)
    }

    /// Returns how many blocks of the output a group has.
    fn group_blocks(&self) -> usize {
        self.product_blocks * BLOCK / self.kernels.activations.block()
    }

    /// Computes the last two phases of a part: the products of its group, position by position, and
    /// their transform into outputs.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for. The inputs of the chunk are
    ///   transformed, and nobody writes to them meanwhile.
    /// - The part's group is below `groups`, and its tiles are among the chunk's.
    /// - Nobody else uses the part's memory, or the output pixels of its tiles in its group.
    unsafe fn multiply(&self, call: &Call<'_>, chunk: &Chunk<'_>, part: &Part<'_>) {
        let first = part.group * self.group_blocks();
        let end = call.output_blocks.min(first + self.group_blocks());
        // SAFETY: the blocks are those of the group, as far as the layer has them. The
        // products are written before they are read, by this thread, and nobody else uses them.
        unsafe {
            for position in 0..self.side.positions() {
                let gemm = self.product(chunk, part, position);
                gemm.block(0..gemm.tiles(), 0..self.panels.panels, 1);
            }
            for block in first..end {
                self.transform_outputs(call, chunk, part, block, 0..part.tiles);
            }
        }
    }

    /// Returns the floats from one position to the next. They are an odd number of cache lines: a
    /// multiple of 4 KB would put all positions of a tile into the same cache sets.
    fn stride(&self, blocks: usize, tiles: usize) -> usize {
        ((blocks * tiles) | 1) * BLOCK
    }

    /// Returns how many words the transformed inputs of `tiles` tiles take.
    fn input_words(&self, tiles: usize) -> usize {
        self.stride(self.factor_blocks, tiles) * self.side.positions()
    }

    /// Returns how many words the products of `tiles` tiles take in one group.
    fn product_words(&self, tiles: usize) -> usize {
        self.stride(self.product_blocks, tiles) * self.side.positions()
    }

    /// Makes the chunk of the tiles in `range`, whose transformed inputs will lie in `scratch`.
    ///
    /// # Panics
    /// If `scratch` is shorter than [`Self::input_words`].
    fn chunk<'a>(&self, grid: Grid, range: Range<usize>, scratch: &'a mut [f32]) -> Chunk<'a> {
        let (first, tiles) = (range.start, range.len());
        Chunk {
            grid,
            first,
            tiles,
            inputs: Destination::new(scratch).part(0, self.input_words(tiles)),
        }
    }

    /// Makes the part of a group and of the tiles in `range`, whose products will lie in `products`.
    ///
    /// # Panics
    /// If `products` is shorter than [`Self::product_words`].
    fn part<'a>(&self, group: usize, range: Range<usize>, products: Destination<'a>) -> Part<'a> {
        let (first, tiles) = (range.start, range.len());
        Part {
            first,
            tiles,
            group,
            products: products.part(0, self.product_words(tiles)),
        }
    }

    /// Returns the product of one position, over those of the part's tiles that take part in it.
    fn product<'a>(&'a self, chunk: &Chunk<'a>, part: &Part<'a>, position: usize) -> Gemm<'a> {
        let inputs = self.side.inputs();
        let is_omitted = |line: usize| line == omitted(inputs);
        let all = chunk
            .grid
            .full(is_omitted(position / inputs), is_omitted(position % inputs));
        let begin = chunk.first + part.first;
        let end = begin + part.tiles;
        let (from, to) = (all.start.clamp(begin, end), all.end.clamp(begin, end));
        // At one position lies a line of 16 words for each block and tile.
        let lines = |of: Destination<'a>, blocks: usize, tiles: usize, first: usize| {
            let stride = self.stride(blocks, tiles);
            of.part(position * stride + first * BLOCK, stride - first * BLOCK)
        };
        let first = from - chunk.first;
        let input = lines(chunk.inputs, self.factor_blocks, chunk.tiles, first).as_source();
        let output = lines(part.products, self.product_blocks, part.tiles, from - begin);
        Gemm {
            kernels: self.products,
            panels: &self.panels,
            matrix: part.group * self.side.positions() + position,
            bias: Source::new(self.no_bias.as_slice()),
            start: Source::NOTHING,
            scale: Source::NOTHING,
            input,
            input_block: chunk.tiles * BLOCK,
            blocks: self.factor_blocks,
            pixels: to - from,
            offsets: None,
            output,
            output_block: part.tiles * BLOCK,
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

    /// Transforms output channel block `block` of `tiles` back, which are counted from the part's
    /// first, and stores them.
    ///
    /// # Safety
    /// - `call.output` and `call.skip` span and overlap as [`Self::run`] asks for, and `call.bias`
    ///   spans what its field says.
    /// - `block` is below `call.output_blocks` and in the part's group, `tiles` lie below
    ///   `part.tiles`, and the part's tiles are among the chunk's.
    /// - Nobody writes to the products of these tiles in this block meanwhile, or uses their output
    ///   pixels.
    unsafe fn transform_outputs(
        &self,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        part: &Part<'_>,
        block: usize,
        tiles: Range<usize>,
    ) {
        let BatchDims { h, w, .. } = call.dims;
        let (row, side) = (w * BLOCK, self.side.outputs());
        let plane = block * call.dims.pixels() * BLOCK;
        let channels = self.kernels.activations.block();
        let product_block = block * channels / BLOCK - part.group * self.product_blocks;
        for tile in tiles {
            let place = chunk.grid.place(chunk.first + part.first + tile);
            let Place { image, y, x, short } = place;
            let (height, width) = (side - usize::from(short.0), side - usize::from(short.1));
            let first = product_block * part.tiles + tile;
            let at = plane + (image * h + y) * row + x * BLOCK;
            let t = OutputTile {
                product: part.products.at(first * BLOCK),
                position: self.stride(self.product_blocks, part.tiles),
                block: part.tiles * BLOCK,
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
