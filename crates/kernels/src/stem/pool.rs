//! The stem's max-pool, row by row.

use crate::number::Stored;
use crate::simd::Vector;
use crate::tile::BLOCK;

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
