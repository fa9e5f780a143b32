//! How many blocks the components of a picture have, and how large these are at a reduced size.

use super::idct::Block;
use super::markers::{self, Frame};
use crate::reduction::Reduction;

/// The measures of a component.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) across: usize,
    pub(super) down: usize,
    /// Blocks that belong to the picture.
    pub(super) blocks_wide: usize,
    pub(super) blocks_high: usize,
    /// Blocks in whole MCUs.
    pub(super) padded_wide: usize,
    pub(super) padded_high: usize,
}

impl Layout {
    /// Returns the blocks in whole MCUs.
    pub(super) fn padded_blocks(&self) -> usize {
        self.padded_wide * self.padded_high
    }

    /// Returns the DC coefficients of five rows of five blocks around a block. Beyond the picture's
    /// edge the last block is repeated. In the last row of MCUs, if that is not whole, libjpeg
    /// finds the upper edge too early; so does this.
    pub(super) fn dc_around(&self, coefficients: &[Block], x: usize, y: usize) -> [[i64; 5]; 5] {
        let rows_of_mcus = self.padded_high / self.down;
        let mcu_row = y / self.down;
        let rows = if mcu_row + 1 < rows_of_mcus {
            self.down
        } else {
            self.blocks_high - mcu_row * self.down
        };
        let (place, end) = (mcu_row * rows + y % self.down, rows * rows_of_mcus);
        let (above, below) = (place.min(2), (end - 1 - place).min(2));
        std::array::from_fn(|row| {
            let row = (y + row.clamp(2 - above, 2 + below)) - 2;
            std::array::from_fn(|column| {
                let column = (x + column).clamp(2, self.blocks_wide + 1) - 2;
                coefficients[row * self.padded_wide + column][0].into()
            })
        })
    }
}

/// Returns the length of a block's side in samples when a component is decoded at a reduced size. A
/// component with fewer samples is reduced less, where that saves stretching it.
pub(super) fn block_size(
    frame: &Frame,
    component: &markers::Component,
    reduction: Reduction,
) -> usize {
    let (most_across, most_down) = frame.largest_sampling();
    let least = reduction.block_size();
    let (across, down) = (u32::from(component.across), u32::from(component.down));
    let fits = |size: usize| {
        let size = size as u32 * 2;
        (most_across * least as u32).is_multiple_of(across * size)
            && (most_down * least as u32).is_multiple_of(down * size)
    };
    let mut size = least;
    while size < 8 && fits(size) {
        size *= 2;
    }
    size
}

/// Returns the measures of all components.
pub(super) fn layouts(frame: &Frame) -> Vec<Layout> {
    let (most_across, most_down) = frame.largest_sampling();
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    let mcus_wide = width.div_ceil(8 * most_across) as usize;
    let mcus_high = height.div_ceil(8 * most_down) as usize;
    frame
        .components
        .iter()
        .map(|component| {
            let (across, down) = (u32::from(component.across), u32::from(component.down));
            Layout {
                across: across as usize,
                down: down as usize,
                blocks_wide: (width * across).div_ceil(8 * most_across) as usize,
                blocks_high: (height * down).div_ceil(8 * most_down) as usize,
                padded_wide: mcus_wide * across as usize,
                padded_high: mcus_high * down as usize,
            }
        })
        .collect()
}
