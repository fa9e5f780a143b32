//! Pixels times weight panels: cuts a convolution into micro-kernel tiles and shares them among threads. It never
//! splits the sum over input channels, so an output's bits do not depend on how the work was cut.

use std::ops::Range;

use super::buffer::{Destination, Source};
use super::isa::Kernels;
use super::pack::{Panels, Weights};
use super::pool::Session;
use super::tile::{BLOCK, Stream, Tile};
use super::window::Window;

/// A task's share of the input should leave most of a second-level cache of 512 KB or more to the weights.
const TASK_INPUT_BYTES: usize = 192 << 10;

/// Tasks per thread that even out what a busy neighbour takes; more would cut the reuse of panels.
const TASKS_PER_THREAD: usize = 12;

/// One product, its operands and its epilogue.
pub(crate) struct Gemm<'a> {
    pub kernels: &'static Kernels,
    pub panels: &'a Panels,
    /// Which of the packed matrices.
    pub matrix: usize,
    /// Start values, one per output channel up to the last panel's end.
    pub bias: Source<'a>,
    /// Input, blocked.
    pub input: Source<'a>,
    /// Floats from one input channel block to the next.
    pub input_block: usize,
    /// Input channel blocks.
    pub blocks: usize,
    /// Output pixels.
    pub pixels: usize,
    /// Which input pixels an output pixel reads; `None` for the one in the same place.
    pub window: Option<Window>,
    /// Output, blocked.
    pub output: Destination<'a>,
    /// Floats from one output channel block to the next.
    pub output_block: usize,
    /// Output channel blocks.
    pub output_blocks: usize,
    /// Residual, in the output's geometry; may be null, or the output itself.
    pub skip: Source<'a>,
    /// Clamp at zero.
    pub relu: bool,
    /// What the next layer will read.
    pub next: Option<&'a Weights>,
}

/// Operations (two for a multiply-add) per cache line of the next layer's weights that comes meanwhile, two lines for
/// each prefetch: about 30 GB/s a core at 250 GFLOP/s, more than two cores get from memory together.
const OPERATIONS_PER_LINE: usize = 512;

impl Gemm<'_> {
    /// Tiles of the pixels, as tall as possible and as equal as possible: 49 pixels in tiles of at most 14 are
    /// 12 + 12 + 12 + 13, so none is wasted on padding.
    pub(crate) fn tiles(&self) -> usize {
        self.pixels.div_ceil(self.kernels.dense.len())
    }

    /// Computes everything, on all threads of the session.
    ///
    /// # Safety
    /// - The operands span what the fields say; the output overlaps none of them, unless the residual is the
    ///   output itself.
    pub(crate) unsafe fn run(&self, session: &mut Session<'_>) {
        let (tiles, panels) = (self.tiles(), self.panels.panels);
        let threads = session.threads();
        let (tiles_per_task, panels_per_task) = self.cut(threads);
        let (rows, columns) = (
            tiles.div_ceil(tiles_per_task),
            panels.div_ceil(panels_per_task),
        );
        session.run(rows * columns, |task, _| {
            let (row, column) = (task % rows, task / rows);
            let tiles = row * tiles / rows..(row + 1) * tiles / rows;
            let panels = column * panels / columns..(column + 1) * panels / columns;
            // SAFETY: this function's contract; tasks write disjoint pixels or channels.
            unsafe { self.block(tiles, panels, threads) }
        });
    }

    /// Tiles and panels per task. Many pixels are split by pixels, so that a task reads its input once and shares the
    /// weights; few pixels are split by panels, so that each weight is read by one thread only.
    fn cut(&self, threads: usize) -> (usize, usize) {
        let (tiles, panels) = (self.tiles(), self.panels.panels);
        let tile_bytes = self.kernels.dense.len() * self.blocks * BLOCK * size_of::<f32>();
        let fit = (TASK_INPUT_BYTES / tile_bytes).max(4);
        if tiles >= 4 * TASKS_PER_THREAD * threads.min(16) {
            let even = tiles.div_ceil(TASKS_PER_THREAD * threads);
            (fit.min(even), panels)
        } else {
            let wanted = TASKS_PER_THREAD * threads;
            let columns = panels.min(wanted);
            let rows = wanted.div_ceil(columns).max(tiles.div_ceil(32));
            (tiles.div_ceil(rows), panels.div_ceil(columns))
        }
    }

    /// Computes some tiles of some panels on this thread.
    ///
    /// # Safety
    /// As [`Self::run`]; nobody else writes these tiles of these panels meanwhile.
    pub(crate) unsafe fn block(&self, tiles: Range<usize>, panels: Range<usize>, threads: usize) {
        let all = self.tiles();
        if all == 0 {
            return;
        }
        // The first tiles are one pixel taller, where the pixels do not divide.
        let (height, taller) = (self.pixels / all, self.pixels % all);
        let edge = |tile: usize| tile * height + tile.min(taller);
        let (first, end) = (edge(tiles.start), edge(tiles.end));
        let offsets = self
            .window
            .as_ref()
            .map(|window| window.offsets(first..end));
        let taps = self.window.as_ref().map_or(1, Window::taps);
        let width_blocks = self.panels.width / BLOCK;
        let steps = self.blocks * taps;
        // While the tiles of a panel are computed, its successor is asked for in as many slices.
        let slice = self.panels.width.div_ceil(tiles.len().max(1));
        let next_layer = self.next_layer(panels.start * all + tiles.start, height * steps, threads);
        for panel in panels {
            let weights = self.panels.panel(self.matrix, panel);
            let ahead = weights.wrapping_add(self.panels.depth * self.panels.width);
            let block = panel * width_blocks;
            for (index, tile) in tiles.clone().enumerate() {
                let (from, to) = (edge(tile), edge(tile + 1));
                let at = block * self.output_block + from * BLOCK;
                let (a, offsets) = match &offsets {
                    None => (self.input.at(from * BLOCK), std::ptr::null()),
                    Some(offsets) => (
                        self.input.at(0),
                        offsets.as_ptr().wrapping_add(from - first),
                    ),
                };
                let t = Tile {
                    a,
                    a_block: self.input_block,
                    blocks: self.blocks,
                    offsets,
                    tap_stride: end - first,
                    taps,
                    panel: weights,
                    bias: self.bias.at(panel * self.panels.width),
                    out: self.output.at(at),
                    out_block: self.output_block,
                    out_blocks: width_blocks.min(self.output_blocks - block),
                    skip: self.skip.at(at),
                    relu: self.relu,
                    prefetch: [
                        Stream {
                            start: ahead.wrapping_add(index * slice * steps * BLOCK),
                            count: slice,
                            step: BLOCK,
                        },
                        next_layer.stream(panel * all + tile, steps),
                    ],
                };
                let kernels = if self.window.is_some() {
                    self.kernels.indirect
                } else {
                    self.kernels.dense
                };
                // SAFETY: `run`'s contract; `to - from` is at least 1 and at most the tallest tile.
                unsafe { kernels[to - from - 1](&t) };
            }
        }
    }

    /// What the task whose first tile of all panels' tiles is `unit` asks for on behalf of the next layer: a tile, with
    /// `steps` rows of 16 multiplications, as much as its arithmetic covers; all tiles of a thread, the first part of
    /// the share that the thread will read.
    fn next_layer(&self, unit: usize, steps: usize, threads: usize) -> NextLayer<'_> {
        let units = self.tiles() * self.panels.panels;
        let lines = self.next.map_or(0, Weights::lines);
        let covered = 2 * steps * BLOCK * self.panels.width / OPERATIONS_PER_LINE;
        let needed = lines.div_ceil(units);
        // Where the arithmetic covers all lines, they are dealt out in the order of the tiles.
        let threads = if covered < needed { threads } else { 1 };
        let share = unit * threads / units;
        NextLayer {
            weights: self.next,
            each: covered.min(needed),
            line: share * lines / threads,
            end: (share + 1) * lines / threads,
            unit: (share * units).div_ceil(threads),
        }
    }
}

/// The next layer's weights as one task asks for them.
struct NextLayer<'a> {
    weights: Option<&'a Weights>,
    /// Lines that each tile asks for.
    each: usize,
    /// The lines that the task's tiles share, and the first of those tiles.
    line: usize,
    end: usize,
    unit: usize,
}

impl NextLayer<'_> {
    /// What one tile asks for in `steps` slices.
    fn stream(&self, unit: usize, steps: usize) -> Stream {
        let line = self.line + (unit - self.unit) * self.each;
        match self.weights {
            Some(weights) if line < self.end => Stream {
                start: weights.line(line),
                // The processor fetches pairs of lines: asking for one of each costs half the places where misses wait.
                count: self.each.div_ceil(2 * steps),
                step: 2 * BLOCK,
            },
            _ => Stream::NONE,
        }
    }
}
