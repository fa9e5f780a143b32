//! The Winograd transforms of one tile of one channel block, over sixteen channels at once. It never multiplies by
//! weights at run time.
//!
//! F(2x2, 3x3) and F(4x4, 3x3) with the matrices of Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks" (2015): interpolation at 0, 1, -1, infinity and, for the larger, 2 and -2.

use super::super::simd::Vector;
use super::super::tile::BLOCK;

/// An input tile: `S` x `S` pixels of one channel block, part of which may lie outside the image.
pub(crate) struct InputTile {
    /// Pixel (0, 0) of the tile, which may lie outside the image.
    pub x: *const f32,
    /// Floats from one image row to the next.
    pub row: usize,
    /// Rows of the tile inside the image: from, to.
    pub rows: (usize, usize),
    /// Columns of the tile inside the image: from, to.
    pub columns: (usize, usize),
    /// Where the tile's line for position 0 goes.
    pub out: *mut f32,
    /// Floats from one position's line to the next position's.
    pub position: usize,
}

/// An output tile: `M` x `M` pixels of one channel block, part of which may lie outside the image.
pub(crate) struct OutputTile {
    /// The tile's line for position 0.
    pub product: *const f32,
    /// Floats from one position's line to the next position's.
    pub position: usize,
    /// 16 floats.
    pub bias: *const f32,
    /// Pixel (0, 0) of the tile in the output.
    pub out: *mut f32,
    /// The same pixel of the residual, or null.
    pub skip: *const f32,
    /// Floats from one output row to the next.
    pub row: usize,
    /// Rows and columns of the tile inside the image.
    pub inside: (usize, usize),
    /// Clamp at zero.
    pub relu: bool,
}

/// `B^T d` for one line of `S` pixels.
#[inline(always)]
unsafe fn input_line<V: Vector, const S: usize>(d: [V; S]) -> [V; S] {
    let mut y = d;
    // SAFETY: only register operations; the features are the caller's duty.
    unsafe {
        if S == 4 {
            y[0] = d[0].sub(d[2]);
            y[1] = d[1].add(d[2]);
            y[2] = d[2].sub(d[1]);
            y[3] = d[1].sub(d[3]);
        } else {
            let (two, four, five) = (V::splat(2.0), V::splat(4.0), V::splat(5.0));
            // Points 1 and -1 share their even and odd parts, so do 2 and -2.
            let (even1, odd1) = (four.neg_mul_add(d[2], d[4]), four.neg_mul_add(d[1], d[3]));
            let (even2, odd2) = (d[4].sub(d[2]), d[3].sub(d[1]).mul(two));
            y[0] = five.neg_mul_add(d[2], four.mul_add(d[0], d[4]));
            y[1] = even1.add(odd1);
            y[2] = even1.sub(odd1);
            y[3] = even2.add(odd2);
            y[4] = even2.sub(odd2);
            y[5] = five.neg_mul_add(d[3], four.mul_add(d[1], d[5]));
        }
    }
    y
}

/// `A^T m` for one line of `S` products: `M` outputs.
#[inline(always)]
unsafe fn output_line<V: Vector, const S: usize, const M: usize>(m: [V; S]) -> [V; M] {
    // SAFETY: only register operations; the features are the caller's duty.
    unsafe {
        let mut y = [V::zero(); M];
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        if S == 4 {
            y[0] = m[0].add(sum1);
            y[1] = difference1.sub(m[3]);
        } else {
            let (two, four, eight) = (V::splat(2.0), V::splat(4.0), V::splat(8.0));
            let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
            y[0] = m[0].add(sum1).add(sum2);
            y[1] = two.mul_add(difference2, difference1);
            y[2] = four.mul_add(sum2, sum1);
            y[3] = eight.mul_add(difference2, difference1).add(m[5]);
        }
        y
    }
}

/// Transforms one input tile: `B^T d B`.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - The pointers of `t` span what its fields say.
#[inline(always)]
pub(crate) unsafe fn input<V: Vector, const S: usize>(t: &InputTile) {
    let whole = t.rows == (0, S) && t.columns == (0, S);
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: this function's contract.
        unsafe {
            if whole {
                input_lanes::<V, S>(t, v, |_, _| true);
            } else {
                let inside =
                    |y, x| t.rows.0 <= y && y < t.rows.1 && t.columns.0 <= x && x < t.columns.1;
                input_lanes::<V, S>(t, v, inside);
            }
        }
        v += V::LANES;
    }
}

#[inline(always)]
unsafe fn input_lanes<V: Vector, const S: usize>(
    t: &InputTile,
    v: usize,
    inside: impl Fn(usize, usize) -> bool,
) {
    // SAFETY: pixels inside the image are readable, every position's line is writable.
    unsafe {
        let mut half = [[V::zero(); S]; S];
        for x in 0..S {
            let mut column = [V::zero(); S];
            for (y, pixel) in column.iter_mut().enumerate() {
                if inside(y, x) {
                    *pixel = V::load(t.x.wrapping_add(y * t.row + x * BLOCK + v));
                }
            }
            let column = input_line::<V, S>(column);
            for (row, value) in half.iter_mut().zip(column) {
                row[x] = value;
            }
        }
        for (y, row) in half.into_iter().enumerate() {
            for (x, value) in input_line::<V, S>(row).into_iter().enumerate() {
                value.store(t.out.wrapping_add((y * S + x) * t.position + v));
            }
        }
    }
}

/// Transforms one tile of products back, `A^T m A`, and stores it with bias, residual and ReLU.
///
/// # Safety
/// As [`input`]; only pixels inside the image are read from `skip` and written.
#[inline(always)]
pub(crate) unsafe fn output<V: Vector, const S: usize, const M: usize>(t: &OutputTile) {
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: this function's contract.
        unsafe {
            let mut half = [[V::zero(); S]; M];
            for x in 0..S {
                let mut column = [V::zero(); S];
                for (y, value) in column.iter_mut().enumerate() {
                    *value = V::load(t.product.wrapping_add((y * S + x) * t.position + v));
                }
                let column = output_line::<V, S, M>(column);
                for (row, value) in half.iter_mut().zip(column) {
                    row[x] = value;
                }
            }
            let bias = V::load(t.bias.wrapping_add(v));
            for (y, row) in half.into_iter().enumerate() {
                if y >= t.inside.0 {
                    break;
                }
                for (x, value) in output_line::<V, S, M>(row).into_iter().enumerate() {
                    if x < t.inside.1 {
                        let at = y * t.row + x * BLOCK + v;
                        let mut value = value.add(bias);
                        if !t.skip.is_null() {
                            value = value.add(V::load(t.skip.wrapping_add(at)));
                        }
                        if t.relu {
                            value = V::zero().max(value);
                        }
                        value.store(t.out.wrapping_add(at));
                    }
                }
            }
        }
        v += V::LANES;
    }
}
