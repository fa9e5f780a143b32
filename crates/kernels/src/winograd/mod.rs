//! 3x3 convolutions of stride 1 by Winograd's minimal filtering: transform tiles, multiply per position, transform
//! back. It never serves another kernel size or stride.

mod grid;
pub(crate) mod transform;

use std::ops::Range;

use super::buffer::{Destination, Source};
use super::gemm::Gemm;
use super::isa::Kernels;
use super::layout::BatchDims;
use super::pack::Panels;
use super::pool::Session;
use super::tile::BLOCK;
use grid::{Grid, Place};
use transform::{InputTile, OutputTile, omitted};

/// Floats of one thread's transformed inputs and products that leave room for weights in a second-level cache.
const FUSED_FLOATS: usize = 72 << 10;

/// Tiles that pass through the three phases together, when all threads work on one chunk: their transformed inputs and
/// products stay in a shared cache, and the weights are read once for them.
const CHUNK_TILES: usize = 128;

/// The output tile's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// F(2x2, 3x3): 16 products for 4 outputs, 2.25 times fewer than direct.
    Two,
    /// F(4x4, 3x3): 36 products for 16 outputs, 4 times fewer than direct.
    Four,
}

impl Side {
    pub(crate) fn outputs(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Side of the input tile.
    fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Products per tile.
    fn positions(self) -> usize {
        self.inputs() * self.inputs()
    }
}

/// Transformed and packed weights of one layer.
#[derive(Debug)]
pub(crate) struct Winograd {
    side: Side,
    panels: Panels,
    no_bias: super::buffer::Buffer,
}

/// One layer's forward call.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub kernels: &'static Kernels,
    pub input: Source<'a>,
    pub dims: BatchDims,
    pub input_blocks: usize,
    pub bias: Source<'a>,
    pub output: Destination<'a>,
    pub output_blocks: usize,
    pub skip: Source<'a>,
    pub relu: bool,
}

/// Which transform serves a tile, of those for a side.
fn kind((rows, columns): (bool, bool)) -> usize {
    2 * usize::from(rows) + usize::from(columns)
}

/// Where a chunk's transformed inputs and products lie, and which tiles it holds.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    grid: Grid,
    first: usize,
    tiles: usize,
    inputs: Destination<'a>,
    products: Destination<'a>,
}

impl Winograd {
    /// Transforms and packs `weight` (OIHW, 3x3).
    pub(crate) fn new(
        side: Side,
        width: usize,
        outputs: usize,
        inputs: usize,
        weight: &[f32],
    ) -> Self {
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
        let panels = Panels::new(
            width,
            (positions, outputs, inputs, 1),
            |position, output, input, _| {
                transformed[(position * outputs + output) * inputs + input]
            },
        );
        let no_bias = super::buffer::Buffer::zeroed(panels.panels * width);
        Self {
            side,
            panels,
            no_bias,
        }
    }

    /// Transformed and packed weights.
    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Computes the layer.
    ///
    /// # Safety
    /// - The operands span what the fields say; the output overlaps none of them, unless the residual is the
    ///   output itself.
    pub(crate) unsafe fn run(&self, session: &mut Session<'_>, call: &Call<'_>) {
        let grid = Grid::new(call.dims, self.side.outputs());
        let tiles = grid.tiles();
        let per_tile = self.stride(call.input_blocks, 1) + self.stride(call.output_blocks, 1);
        let floats_per_tile = per_tile * self.side.positions();
        // A multiple of what one micro-kernel holds.
        let height = call.kernels.dense.len();
        let fused = FUSED_FLOATS / floats_per_tile / height * height;
        let threads = session.threads();
        if fused > 0 && tiles >= 2 * threads * fused {
            let size = self.chunk_floats(call, fused);
            session.run(tiles.div_ceil(fused), |task, scratch| {
                let tiles = fused.min(tiles - task * fused);
                let range = task * fused..task * fused + tiles;
                let chunk = self.chunk(call, grid, range, scratch.grow(size));
                // SAFETY: this function's contract; the scratch is this thread's own.
                unsafe { self.alone(call, &chunk) }
            });
        } else {
            let chunks = tiles.div_ceil(CHUNK_TILES);
            let largest = tiles.div_ceil(chunks);
            let mut scratch = session.take_scratch(self.chunk_floats(call, largest));
            for index in 0..chunks {
                let (from, to) = (index * tiles / chunks, (index + 1) * tiles / chunks);
                let chunk = self.chunk(call, grid, from..to, scratch.as_mut_slice());
                // SAFETY: this function's contract.
                unsafe { self.together(session, call, &chunk) }
            }
            session.keep_scratch(scratch);
        }
    }

    /// All three phases of one chunk on this thread.
    unsafe fn alone(&self, call: &Call<'_>, chunk: &Chunk<'_>) {
        // SAFETY: `run`'s contract.
        unsafe {
            for block in 0..call.input_blocks {
                self.transform_inputs(call, chunk, block, 0..chunk.tiles);
            }
            for position in 0..self.side.positions() {
                let gemm = self.product(call, chunk, position);
                gemm.block(0..gemm.tiles(), 0..self.panels.panels, 1);
            }
            for block in 0..call.output_blocks {
                self.transform_outputs(call, chunk, block, 0..chunk.tiles);
            }
        }
    }

    /// All three phases of one chunk, each on all threads.
    unsafe fn together(&self, session: &mut Session<'_>, call: &Call<'_>, chunk: &Chunk<'_>) {
        // Enough tasks to even out, of a few microseconds at least.
        let parts = if call.input_blocks < 4 * session.threads() {
            chunk.tiles.clamp(1, 4)
        } else {
            1
        };
        let part = |index: usize| index * chunk.tiles / parts..(index + 1) * chunk.tiles / parts;
        session.run(call.input_blocks * parts, |task, _| {
            // SAFETY: `run`'s contract; tasks write disjoint blocks or tiles.
            unsafe { self.transform_inputs(call, chunk, task / parts, part(task % parts)) }
        });
        let halves = if self.side.positions() < 8 * session.threads() {
            self.panels.panels.min(4)
        } else {
            1
        };
        session.run(self.side.positions() * halves, |task, _| {
            let (position, half) = (task / halves, task % halves);
            let gemm = self.product(call, chunk, position);
            let all = self.panels.panels;
            let panels = half * all / halves..(half + 1) * all / halves;
            // SAFETY: `run`'s contract; tasks write disjoint positions or channels.
            unsafe { gemm.block(0..gemm.tiles(), panels, 1) }
        });
        session.run(call.output_blocks * parts, |task, _| {
            // SAFETY: `run`'s contract; tasks write disjoint blocks or tiles.
            unsafe { self.transform_outputs(call, chunk, task / parts, part(task % parts)) }
        });
    }

    /// Floats from one position to the next: an odd number of cache lines, since a multiple of 4 KB would put all
    /// positions of a tile into the same cache sets.
    fn stride(&self, blocks: usize, tiles: usize) -> usize {
        ((blocks * tiles) | 1) * BLOCK
    }

    fn chunk_floats(&self, call: &Call<'_>, tiles: usize) -> usize {
        let strides =
            self.stride(call.input_blocks, tiles) + self.stride(call.output_blocks, tiles);
        strides * self.side.positions()
    }

    fn chunk<'a>(
        &self,
        call: &Call<'_>,
        grid: Grid,
        range: Range<usize>,
        scratch: &'a mut [f32],
    ) -> Chunk<'a> {
        let (first, tiles) = (range.start, range.len());
        let inputs = self.stride(call.input_blocks, tiles) * self.side.positions();
        let products = self.stride(call.output_blocks, tiles) * self.side.positions();
        let scratch = Destination::new(scratch);
        Chunk {
            grid,
            first,
            tiles,
            inputs: scratch.part(0, inputs),
            products: scratch.part(inputs, products),
        }
    }

    /// The product of one position, over those of the chunk's tiles that take part in it.
    fn product<'a>(&'a self, call: &Call<'_>, chunk: &Chunk<'a>, position: usize) -> Gemm<'a> {
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
        // What lies at one position: a line of 16 channels for each block and tile.
        let lines = |of: Destination<'a>, blocks: usize| {
            let stride = self.stride(blocks, chunk.tiles);
            of.part(position * stride + first, stride - first)
        };
        let input = lines(chunk.inputs, call.input_blocks).as_source();
        let output = lines(chunk.products, call.output_blocks);
        Gemm {
            kernels: call.kernels,
            panels: &self.panels,
            matrix: position,
            bias: Source::new(self.no_bias.as_slice()),
            input,
            input_block: chunk.tiles * BLOCK,
            blocks: call.input_blocks,
            pixels: to - from,
            window: None,
            output,
            output_block: chunk.tiles * BLOCK,
            output_blocks: call.output_blocks,
            skip: Source::NOTHING,
            relu: false,
            next: None,
        }
    }

    unsafe fn transform_inputs(
        &self,
        call: &Call<'_>,
        chunk: &Chunk<'_>,
        block: usize,
        tiles: Range<usize>,
    ) {
        let BatchDims { h, w, .. } = call.dims;
        let (row, side) = (w * BLOCK, self.side.inputs());
        let plane = block * call.dims.pixels() * BLOCK;
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
                position: self.stride(call.input_blocks, chunk.tiles),
            };
            // SAFETY: `run`'s contract; the bounds keep reads inside the image.
            unsafe { call.kernels.winograd_input[self.side as usize][kind(short)](&t) };
        }
    }

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
        for tile in tiles {
            let Place { image, y, x, short } = chunk.grid.place(chunk.first + tile);
            let (height, width) = (side - usize::from(short.0), side - usize::from(short.1));
            let at = plane + (image * h + y) * row + x * BLOCK;
            let t = OutputTile {
                product: chunk.products.at((block * chunk.tiles + tile) * BLOCK),
                position: self.stride(call.output_blocks, chunk.tiles),
                bias: call.bias.at(block * BLOCK),
                out: call.output.at(at),
                skip: call.skip.at(at),
                row,
                inside: (height.min(h - y), width.min(w - x)),
                relu: call.relu,
            };
            // SAFETY: `run`'s contract; the bounds keep writes inside the image.
            unsafe { call.kernels.winograd_output[self.side as usize][kind(short)](&t) };
        }
    }
}

/// `G g G^T` for one 3x3 kernel; in double precision, so that only the final rounding counts.
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
