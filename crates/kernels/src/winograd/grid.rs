//! How the images of a batch are covered with output tiles. It never looks at a pixel.
//!
//! Where the tile's side does not divide an image's, the last tiles are one pixel shorter, as many as it takes: 14 is
//! 4 + 4 + 3 + 3, not 4 + 4 + 4 and a half. A short line of outputs follows from one product less, so short tiles take no
//! part in the positions of one line of the transform ([`super::transform::omitted`]).

use std::ops::Range;

use super::super::layout::BatchDims;

/// The tiles of one dimension: full ones, then short ones.
#[derive(Clone, Copy)]
struct Cover {
    full: usize,
    short: usize,
}

impl Cover {
    fn new(len: usize, side: usize) -> Self {
        let tiles = len.div_ceil(side);
        let short = tiles * side - len;
        // Too small an image for that leaves the rest of a full tile outside.
        let short = if short <= tiles { short } else { 0 };
        Self {
            full: tiles - short,
            short,
        }
    }

    /// First pixel of a tile.
    fn start(self, tile: usize, side: usize) -> usize {
        tile * side - tile.saturating_sub(self.full)
    }
}

/// The tiles of a batch, in an order in which those that take part in a position are neighbours: by kind (see
/// [`Grid::kinds`]), then by image.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    side: usize,
    images: usize,
    rows: Cover,
    columns: Cover,
}

/// One output tile.
pub(crate) struct Place {
    pub image: usize,
    /// First row and column.
    pub y: usize,
    pub x: usize,
    /// Whether it is one row, or column, short.
    pub short: (bool, bool),
}

impl Grid {
    /// Tiles of `side` x `side` pixels over images of `dims`.
    pub(crate) fn new(dims: BatchDims, side: usize) -> Self {
        Self {
            side,
            images: dims.n,
            rows: Cover::new(dims.h, side),
            columns: Cover::new(dims.w, side),
        }
    }

    /// The four kinds in their order: tiles of one image, then first row and column of tiles.
    fn kinds(&self) -> [(usize, usize, bool, bool); 4] {
        let (rows, columns) = (self.rows, self.columns);
        [
            (rows.full, columns.short, false, true),
            (rows.full, columns.full, false, false),
            (rows.short, columns.full, true, false),
            (rows.short, columns.short, true, true),
        ]
    }

    /// All tiles.
    pub(crate) fn tiles(&self) -> usize {
        let (rows, columns) = (self.rows, self.columns);
        self.images * (rows.full + rows.short) * (columns.full + columns.short)
    }

    /// The tiles whose rows, or columns, are full where that is asked for.
    pub(crate) fn full(&self, rows: bool, columns: bool) -> Range<usize> {
        let mut range = 0..0;
        let mut at = 0;
        for (height, width, short_row, short_column) in self.kinds() {
            let end = at + self.images * height * width;
            if !(rows && short_row || columns && short_column) {
                // Those that qualify are neighbours.
                if range.is_empty() {
                    range.start = at;
                }
                range.end = end;
            }
            at = end;
        }
        range
    }

    /// Where a tile lies; one beyond the last lies nowhere.
    pub(crate) fn place(&self, tile: usize) -> Place {
        let mut tile = tile;
        for (height, width, short_row, short_column) in self.kinds() {
            let of_one = height * width;
            if tile < self.images * of_one {
                let row = tile % of_one / width + if short_row { self.rows.full } else { 0 };
                let column = tile % width + if short_column { self.columns.full } else { 0 };
                return Place {
                    image: tile / of_one,
                    y: self.rows.start(row, self.side),
                    x: self.columns.start(column, self.side),
                    short: (short_row, short_column),
                };
            }
            tile -= self.images * of_one;
        }
        unreachable!("tile {tile} beyond the last")
    }
}
