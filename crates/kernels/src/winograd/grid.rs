//! How the images of a batch are covered with output tiles.
//!
//! Where the side of a tile does not divide the side of an image, the last tiles are one pixel
//! shorter, as many of them as it takes: 14 is 4 + 4 + 3 + 3, and not 4 + 4 + 4 and half a tile. A
//! short line of outputs needs one product less, so short tiles take no part in the positions of
//! one line of the transform ([`super::transform::omitted`]).

use std::ops::Range;

use crate::layout::BatchDims;

/// How many tiles cover one dimension of an image: first the full ones, then those one pixel
/// shorter.
#[derive(Clone, Copy)]
struct Cover {
    full: usize,
    short: usize,
}

impl Cover {
    fn new(len: usize, side: usize) -> Self {
        let tiles = len.div_ceil(side);
        let short = tiles * side - len;
        // If an image is too small for that, the rest of a full tile lies outside the image.
        let short = if short <= tiles { short } else { 0 };
        Self {
            full: tiles - short,
            short,
        }
    }

    /// Returns the first pixel of a tile.
    fn start(self, tile: usize, side: usize) -> usize {
        tile * side - tile.saturating_sub(self.full)
    }
}

/// The tiles of a batch. Their order is by kind ([`Grid::kinds`]), then by image: so the tiles that
/// take part in a position are neighbours.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    side: usize,
    images: usize,
    rows: Cover,
    columns: Cover,
}

/// Where one output tile lies.
pub(crate) struct Place {
    pub image: usize,
    /// The first row of the tile in its image.
    pub y: usize,
    /// The first column of the tile in its image.
    pub x: usize,
    /// Whether the tile is one row short, and whether it is one column short.
    pub short: (bool, bool),
}

impl Grid {
    /// Covers images of `dims` with tiles of `side` x `side` pixels.
    pub(crate) fn new(dims: BatchDims, side: usize) -> Self {
        Self {
            side,
            images: dims.n,
            rows: Cover::new(dims.h, side),
            columns: Cover::new(dims.w, side),
        }
    }

    /// Returns the four kinds of tiles in their order. For each: rows and columns of such tiles in
    /// one image, whether they are a row short, and whether they are a column short.
    fn kinds(&self) -> [(usize, usize, bool, bool); 4] {
        let (rows, columns) = (self.rows, self.columns);
        [
            (rows.full, columns.short, false, true),
            (rows.full, columns.full, false, false),
            (rows.short, columns.full, true, false),
            (rows.short, columns.short, true, true),
        ]
    }

    /// Returns how many tiles the batch has.
    pub(crate) fn tiles(&self) -> usize {
        let (rows, columns) = (self.rows, self.columns);
        self.images * (rows.full + rows.short) * (columns.full + columns.short)
    }

    /// Returns the tiles that are not a row short if `rows` asks for that, and not a column short
    /// if `columns` does.
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

    /// Returns where a tile lies.
    ///
    /// # Panics
    /// If there is no such tile.
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
