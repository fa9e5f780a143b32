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

/// The product that a line of outputs one shorter does without: its point of interpolation is -1, or -2.
pub(crate) const fn omitted(inputs: usize) -> usize {
    if inputs == 4 { 2 } else { 4 }
}

/// `B^T d` for one line of `S` pixels. A short line has one pixel and one product less; the weights stay those of the
/// full one, so their scale is made up for here.
#[inline(always)]
unsafe fn input_line<V: Vector, const S: usize, const SHORT: bool>(d: [V; S]) -> [V; S] {
    let mut y = d;
    // SAFETY: only register operations; the features are the caller's duty.
    unsafe {
        if S == 4 && SHORT {
            // F(1, 3) at 0, 1 and infinity.
            y[0] = d[0].sub(d[1]);
            y[1] = d[1].add(d[1]);
            y[3] = d[2].sub(d[1]);
        } else if S == 6 && SHORT {
            // F(3, 3) at 0, 1, -1, 2 and infinity.
            let (two, three, four) = (V::splat(2.0), V::splat(3.0), V::splat(4.0));
            let (odd, even) = (d[3].sub(d[1]), d[0].sub(d[2]));
            y[0] = two.mul(two.mul_add(even, odd));
            y[1] = three.mul(two.neg_mul_add(d[1], d[3].sub(d[2])));
            y[2] = two.mul_add(d[1], three.neg_mul_add(d[2], d[3]));
            y[3] = four.mul(odd);
            y[5] = two.neg_mul_add(odd, d[4].sub(d[2]));
        } else if S == 4 {
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

/// `A^T m` for one line of `S` products: `M` outputs, of which a short line's last means nothing.
#[inline(always)]
unsafe fn output_line<V: Vector, const S: usize, const M: usize, const SHORT: bool>(
    m: [V; S],
) -> [V; M] {
    // SAFETY: only register operations; the features are the caller's duty.
    unsafe {
        let mut y = [V::zero(); M];
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        if S == 4 && SHORT {
            y[0] = m[0].add(m[1]).add(m[3]);
        } else if S == 6 && SHORT {
            let (two, four) = (V::splat(2.0), V::splat(4.0));
            y[0] = m[0].add(sum1).add(m[3]);
            y[1] = two.mul_add(m[3], difference1);
            y[2] = four.mul_add(m[3], sum1).add(m[5]);
        } else if S == 4 {
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

/// Transforms one input tile: `B^T d B`. It may be a row (`Y`) or a column (`X`) short.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - The pointers of `t` span what its fields say.
#[inline(always)]
pub(crate) unsafe fn input<V: Vector, const S: usize, const Y: bool, const X: bool>(t: &InputTile) {
    let whole = t.rows == (0, S - Y as usize) && t.columns == (0, S - X as usize);
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: this function's contract.
        unsafe {
            if whole {
                input_lanes::<V, S, Y, X>(t, v, |_, _| true);
            } else {
                let inside =
                    |y, x| t.rows.0 <= y && y < t.rows.1 && t.columns.0 <= x && x < t.columns.1;
                input_lanes::<V, S, Y, X>(t, v, inside);
            }
        }
        v += V::LANES;
    }
}

#[inline(always)]
unsafe fn input_lanes<V: Vector, const S: usize, const Y: bool, const X: bool>(
    t: &InputTile,
    v: usize,
    inside: impl Fn(usize, usize) -> bool,
) {
    // SAFETY: pixels inside the image are readable, every position's line is writable.
    unsafe {
        let mut half = [[V::zero(); S]; S];
        for x in 0..S - X as usize {
            let mut column = [V::zero(); S];
            for (y, pixel) in column.iter_mut().enumerate().take(S - Y as usize) {
                if inside(y, x) {
                    *pixel = V::load(t.x.wrapping_add(y * t.row + x * BLOCK + v));
                }
            }
            let column = input_line::<V, S, Y>(column);
            for (row, value) in half.iter_mut().zip(column) {
                row[x] = value;
            }
        }
        for (y, row) in half.into_iter().enumerate() {
            if Y && y == omitted(S) {
                continue;
            }
            for (x, value) in input_line::<V, S, X>(row).into_iter().enumerate() {
                if X && x == omitted(S) {
                    continue;
                }
                value.store(t.out.wrapping_add((y * S + x) * t.position + v));
            }
        }
    }
}

/// Transforms one tile of products back, `A^T m A`, and stores it with bias, residual and ReLU. It may be a row (`Y`) or a
/// column (`X`) short.
///
/// # Safety
/// As [`input`]; only pixels inside the image are read from `skip` and written.
#[inline(always)]
pub(crate) unsafe fn output<
    V: Vector,
    const S: usize,
    const M: usize,
    const Y: bool,
    const X: bool,
>(
    t: &OutputTile,
) {
    let mut v = 0;
    while v < BLOCK {
        // SAFETY: this function's contract.
        unsafe {
            let mut half = [[V::zero(); S]; M];
            for x in 0..S {
                if X && x == omitted(S) {
                    continue;
                }
                let mut column = [V::zero(); S];
                for (y, value) in column.iter_mut().enumerate() {
                    if Y && y == omitted(S) {
                        continue;
                    }
                    *value = V::load(t.product.wrapping_add((y * S + x) * t.position + v));
                }
                let column = output_line::<V, S, M, Y>(column);
                for (row, value) in half.iter_mut().zip(column) {
                    row[x] = value;
                }
            }
            let bias = V::load(t.bias.wrapping_add(v));
            for (y, row) in half.into_iter().enumerate() {
                if y >= t.inside.0 {
                    break;
                }
                for (x, value) in output_line::<V, S, M, X>(row).into_iter().enumerate() {
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
