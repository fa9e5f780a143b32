//! Pixels times weight panels: cuts a convolution into tiles for the micro-kernel and shares them
//! among threads.
//!
//! The output of a product is a matrix: one row for each output pixel, one column for each output
//! channel. It is cut twice. *Tiles* are up to 14 rows, what one call of the micro-kernel computes;
//! a *panel* is as many columns as its registers hold. A *task*, what one thread takes at a time,
//! is a rectangle of tiles and panels ([`Gemm::cut`]). The sum over input channels is never split,
//! so an output's bits do not depend on how the work was cut.
//!
//! While a tile is computed, weights that will be needed later are asked into the cache: the panel
//! after this one, and what the next layer will read ([`NextLayerPrefetch`]).

use std::ops::Range;

use super::buffer::{Destination, Source};
use super::isa::TileKernels;
use super::number::Numbers;
use super::pack::{Panels, Weights};
use super::pool::Session;
use super::tile::{BLOCK, Stream, Tile};
use super::window::Offsets;

/// The most bytes of input that one task should read: they leave most of a second-level cache of
/// 512 KB or more to the weights.
const TASK_INPUT_BYTES: usize = 192 << 10;

/// How many tasks there should be for each thread, so that they even out what a busy neighbour
/// takes. More of them would make each panel serve fewer pixels.
const TASKS_PER_THREAD: usize = 12;

/// The fewest tiles of a thread's home. With fewer of them, the weights, which every thread then
/// reads whole, would each serve too few pixels.
const HOME_TILES: usize = 8;

/// How a product is cut into tasks: `rows` parts of its tiles times `columns` parts of its panels.
struct Cut {
    rows: usize,
    columns: usize,
    along: Along,
}

/// What neighbouring tasks share. Threads begin with contiguous shares of the tasks.
enum Along {
    /// The tiles: a thread's first share is a part of the pixels.
    Rows,
    /// The panels: a thread's first share is a part of the output channels.
    Columns,
}

/// One product: its operands, and what is done to the sums before they are stored. All lengths are
/// in words of 32 bits ([`super::number`]).
pub(crate) struct Gemm<'a> {
    pub kernels: &'static TileKernels,
    pub panels: &'a Panels,
    /// Which of the packed matrices is multiplied by.
    pub matrix: usize,
    /// What is added to the sums: `panels.panels * panels.width` floats, one for each output
    /// channel up to the end of the last panel.
    pub bias: Source<'a>,
    /// What integer sums start from: as many integers as the bias has floats. Nothing for floats,
    /// and where sums start from zero.
    pub start: Source<'a>,
    /// What integer sums are multiplied by: as many floats as the bias. Nothing for floats.
    pub scale: Source<'a>,
    /// The blocked input: `(blocks - 1) * input_block` words and those of the last block's pixels,
    /// which are `pixels * 16` without offsets, and all pixels that the offsets name with them.
    pub input: Source<'a>,
    /// Words from one input block to the next.
    pub input_block: usize,
    /// Input blocks, at least 1.
    pub blocks: usize,
    /// Output pixels.
    pub pixels: usize,
    /// Which input pixels each output pixel reads; `None` if it is the one in the same place.
    pub offsets: Option<&'a Offsets>,
    /// The blocked output: `(output_blocks - 1) * output_block + pixels * 16` words.
    pub output: Destination<'a>,
    /// Words from one output block to the next.
    pub output_block: usize,
    /// Output blocks, at least 1.
    pub output_blocks: usize,
    /// The residual, which is added to the sums: as many channels as the output, in the same
    /// places. It may be nothing, or the output itself.
    pub skip: Source<'a>,
    /// The residual's type: the output's, or bfloat16 where the output is integers.
    pub skip_numbers: Numbers,
    /// Words from one block of the residual to the next.
    pub skip_block: usize,
    /// Blocks of the residual.
    pub skip_blocks: usize,
    /// What the residual of an integer product is multiplied by.
    pub skip_scale: f32,
    /// Integers only: whether results are between -2^31 and 2^31 before they are limited to the
    /// output's type, whatever the input is.
    pub bounded: bool,
    /// Whether sums below zero become zero.
    pub relu: bool,
    /// The weights that the next layer will read.
    pub next: Option<&'a Weights>,
}

/// How many operations (a multiply-add counts as two) pay for one cache line of the next layer's
/// weights.
///
/// At 250 GFLOP/s a core this asks for about 30 GB/s a core, as each prefetch brings two lines;
/// that is more than two cores get from memory together.
const OPERATIONS_PER_LINE: usize = 512;

impl Gemm<'_> {
    /// Returns into how many tiles the pixels are cut. They are as tall as possible, and as equal
    /// as possible: 49 pixels in tiles of at most 14 are 13 + 12 + 12 + 12, so nothing is spent on
    /// padding.
    pub(crate) fn tiles(&self) -> usize {
        let tallest = self.kernels.dense.len();
        if (1..=tallest).contains(&self.pixels) {
            // Winograd's many small products do without a division.
            return 1;
        }
        self.pixels.div_ceil(tallest)
    }

    /// Computes the whole product on all threads of the session.
    ///
    /// # Safety
    /// - `bias`, `start`, `scale`, `input`, `output` and `skip` span what their fields say.
    /// - Every one of the offsets lies within one block of the input.
    /// - Nobody else writes to the operands meanwhile, or reads the output.
    /// - The output overlaps no other operand, unless the residual is the output itself, word for
    ///   word.
    pub(crate) unsafe fn run(&self, session: &mut Session<'_>) {
        let (tiles, panels) = (self.tiles(), self.panels.panels);
        let threads = session.threads();
        let Cut {
            rows,
            columns,
            along,
        } = self.cut(threads);
        session.run(rows * columns, |task, _| {
            let (row, column) = match along {
                Along::Rows => (task / columns, task % columns),
                Along::Columns => (task % rows, task / rows),
            };
            let tiles = row * tiles / rows..(row + 1) * tiles / rows;
            let panels = column * panels / columns..(column + 1) * panels / columns;
            // SAFETY: the operands span what the caller promised. Two tasks differ in their row or
            // in their column, and rows are disjoint ranges of tiles, columns of panels: so no
            // other task writes these tiles of these panels.
            unsafe { self.block(tiles, panels, threads) }
        });
    }

    /// Returns how the product is cut into tasks.
    ///
    /// What all threads read should be small, and what each has for itself large. So if the input
    /// is larger than the weights, each thread has a *home*: a contiguous part of the pixels, the
    /// same in one layer after the other, and all threads read the weights. Otherwise each thread
    /// has some of the panels: each weight is then read by one thread only.
    fn cut(&self, threads: usize) -> Cut {
        let (tiles, panels) = (self.tiles(), self.panels.panels);
        let tile_bytes = self.kernels.dense.len() * self.blocks * BLOCK * size_of::<f32>();
        let fit = (TASK_INPUT_BYTES / tile_bytes).max(4);
        let wanted = TASKS_PER_THREAD * threads;
        if tiles >= 4 * TASKS_PER_THREAD * threads.min(16) {
            let tiles_per_task = fit.min(tiles.div_ceil(wanted));
            return Cut {
                rows: tiles.div_ceil(tiles_per_task),
                columns: 1,
                along: Along::Rows,
            };
        }
        let weight_words = panels * self.panels.depth * self.panels.width;
        let input_words = self.blocks * self.input_block;
        let has_home = tiles >= HOME_TILES * threads && weight_words <= input_words;
        if has_home && threads > 1 {
            // The tasks of a row read the same input, which stays in a second-level cache. They
            // differ in their panels, so that the last tasks of a layer are short.
            let rows = threads * (tiles / threads).div_ceil(fit.min(HOME_TILES));
            return Cut {
                rows,
                columns: wanted.div_ceil(rows).min(panels),
                along: Along::Rows,
            };
        }
        let columns = panels.min(wanted);
        let rows = wanted.div_ceil(columns).max(tiles.div_ceil(32));
        Cut {
            rows: tiles.div_ceil(tiles.div_ceil(rows)),
            columns: panels.div_ceil(panels.div_ceil(columns)),
            along: Along::Columns,
        }
    }

    /// Computes `tiles` of `panels` on this thread. `threads` is how many threads work on the
    /// product.
    ///
    /// # Safety
    /// - The operands span and overlap as [`Self::run`] asks for.
    /// - `tiles` lie below [`Self::tiles`], and `panels` below the number of panels.
    /// - Nobody else writes to these tiles of these panels of the output meanwhile, or to the
    ///   input.
    pub(crate) unsafe fn block(&self, tiles: Range<usize>, panels: Range<usize>, threads: usize) {
        let all = self.tiles();
        if all == 0 {
            return;
        }
        // The first tiles are one pixel taller, where the pixels do not divide.
        let (height, taller) = if all == 1 {
            (self.pixels, 0)
        } else {
            (self.pixels / all, self.pixels % all)
        };
        let edge = |tile: usize| tile * height + tile.min(taller);
        let taps = self.offsets.map_or(1, Offsets::taps);
        let stored = self.kernels.stored;
        let steps = self.blocks * taps;
        // While the tiles of a panel are computed, the panel after it is asked for, a slice with
        // each tile. A panel is `steps * 16` rows of `width` floats, that is `width` lines for each
        // of the `steps`.
        let slice = match tiles.len() {
            0 | 1 => self.panels.width,
            tiles => self.panels.width.div_ceil(tiles),
        };
        let prefetch =
            self.next_layer_prefetch(panels.start * all + tiles.start, height * steps, threads);
        for panel in panels {
            let weights = self.panels.panel(self.matrix, panel);
            let ahead = weights.wrapping_add(self.panels.depth * self.panels.width);
            let channel = panel * self.panels.width;
            let (block, word) = stored.place(channel);
            let (skip_block, skip_word) = self.skip_numbers.place(channel);
            let skip_blocks = self.skip_blocks.saturating_sub(skip_block);
            for (index, tile) in tiles.clone().enumerate() {
                let (from, to) = (edge(tile), edge(tile + 1));
                let at = block * self.output_block + from * BLOCK + word;
                let skip_at = skip_block * self.skip_block + from * BLOCK + skip_word;
                let (a, offsets) = match self.offsets {
                    None => (self.input.at(from * BLOCK), std::ptr::null()),
                    Some(offsets) => (self.input.at(0), offsets.from(from)),
                };
                let t = Tile {
                    a,
                    a_block: self.input_block,
                    blocks: self.blocks,
                    offsets,
                    tap_stride: self.pixels,
                    taps,
                    panel: weights,
                    bias: self.bias.at(channel),
                    start: self.start.at(channel),
                    scale: self.scale.at(channel),
                    out: self.output.at(at),
                    out_block: self.output_block,
                    out_blocks: stored
                        .blocks(self.panels.width)
                        .min(self.output_blocks - block),
                    skip: if skip_blocks > 0 {
                        self.skip.at(skip_at)
                    } else {
                        std::ptr::null()
                    },
                    skip_block: self.skip_block,
                    skip_blocks,
                    skip_scale: self.skip_scale,
                    skip_is_bf16: self.skip_numbers == Numbers::Bf16,
                    bounded: self.bounded,
                    relu: self.relu,
                    prefetch: [
                        Stream {
                            start: ahead.wrapping_add(index * slice * steps * BLOCK),
                            count: slice,
                            step: BLOCK,
                        },
                        prefetch.stream(panel * all + tile, steps),
                    ],
                };
                let kernels = if self.offsets.is_some() {
                    self.kernels.indirect
                } else {
                    self.kernels.dense
                };
                // SAFETY: pixels `from..to` and this panel's channels lie within the operands,
                // whose length the caller vouches for, as it does for nobody else writing them. The
                // offsets have `pixels` entries for each tap, of which the tile's begin at `from`.
                // The tile has `to - from` pixels: at least 1, since there are no more tiles than
                // pixels, and at most the tallest tile's. An `Isa` led to the kernels, so the
                // processor has their features.
                unsafe { kernels[to - from - 1](&t) };
            }
        }
    }

    /// Plans what the task that begins with tile `first_tile` asks for on behalf of the next layer.
    /// Tiles are counted over all panels here: those of panel 0 first. `steps` is how many steps of
    /// 16 words of input a tile of this task takes, over all of its pixels and taps.
    ///
    /// A tile asks for no more lines than its arithmetic pays for. If that is enough for all lines,
    /// they are dealt out evenly in the order of the tiles. If it is not, each thread's tiles ask
    /// for the first part of the share that the thread will presumably read itself in the next
    /// layer.
    ///
    /// An example with 2 threads: a product of 98 pixels and 4 panels of 32 channels, 64 input
    /// channels; 7 tiles of 14 pixels for each panel are 28 tiles. A tile does `14 * 64 * 32`
    /// multiply-adds: `steps` is `14 * 64 / 16 = 56`, and `2 * 56 * 16 * 32 / 512 = 112` lines are
    /// paid for. If the next layer has 1792 lines, a tile needs to ask for 64, and tile 5 asks for
    /// lines 320 to 383. If it has 7168 lines, a tile would need to ask for 256, but asks for 112:
    /// thread 0's tiles, 0 to 13, ask for lines 0 to 1567 of its half, lines 0 to 3583, and thread
    /// 1's tiles, 14 to 27, for lines 3584 to 5151.
    fn next_layer_prefetch(
        &self,
        first_tile: usize,
        steps: usize,
        threads: usize,
    ) -> NextLayerPrefetch<'_> {
        let Some(next) = self.next else {
            return NextLayerPrefetch::NONE;
        };
        let tiles = self.tiles() * self.panels.panels;
        let lines = next.lines();
        let paid_for = 2 * steps * BLOCK * self.panels.width / OPERATIONS_PER_LINE;
        let needed = lines.div_ceil(tiles);
        let shares = if paid_for < needed { threads } else { 1 };
        let share = first_tile * shares / tiles;
        NextLayerPrefetch {
            weights: self.next,
            lines_per_tile: paid_for.min(needed),
            first_line: share * lines / shares,
            end_line: (share + 1) * lines / shares,
            first_tile: (share * tiles).div_ceil(shares),
        }
    }
}

/// Which lines of the next layer's weights the tiles of one task ask for.
///
/// The tiles from `first_tile` on ask for the lines from `first_line` on, `lines_per_tile` each, up
/// to `end_line`. [`Gemm::next_layer_prefetch`] has an example.
struct NextLayerPrefetch<'a> {
    weights: Option<&'a Weights>,
    /// How many cache lines each tile asks for.
    lines_per_tile: usize,
    /// The first line of the share that this task's tiles belong to.
    first_line: usize,
    /// The line after the last of the share.
    end_line: usize,
    /// The first tile of the share, counted over all panels.
    first_tile: usize,
}

impl NextLayerPrefetch<'_> {
    /// Asks for nothing.
    const NONE: Self = Self {
        weights: None,
        lines_per_tile: 0,
        first_line: 0,
        end_line: 0,
        first_tile: 0,
    };

    /// Returns what tile `tile`, counted over all panels, asks for in `steps` portions.
    fn stream(&self, tile: usize, steps: usize) -> Stream {
        let line = self.first_line + (tile - self.first_tile) * self.lines_per_tile;
        match self.weights {
            Some(weights) if line < self.end_line => Stream {
                start: weights.line(line),
                // The processor fetches lines in pairs. Asking for one of each pair takes half as
                // many of the places in which a core's misses wait.
                count: self.lines_per_tile.div_ceil(2 * steps),
                step: 2 * BLOCK,
            },
            _ => Stream::NONE,
        }
    }
}
