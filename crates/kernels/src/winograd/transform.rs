//! The Winograd transforms of one tile of one channel block: of the input before the products, and
//! of the products back to outputs.
//!
//! Transforms compute in float32, whatever the type of what they read and write. The input's
//! transform reads activations and writes the type in which the products are computed; the
//! transform back reads float32 and writes activations. Multiplications by other numbers than powers
//! of two are not fused with additions, so that each instruction set gives the same bits.
//!
//! They are F(2x2, 3x3) and F(4x4, 3x3) with the matrices of Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks" (2015): interpolation at 0, 1, -1, infinity and, for the larger,
//! 2 and -2. The type parameters are `S`, the side of the input tile (4 or 6); `M`, the side of the
//! output tile (2 or 4); `Y` and `X`, whether the tile is one row or one column short.

use crate::number::Stored;
use crate::simd::Vector;
use crate::tile::BLOCK;

/// An input tile: `S` x `S` pixels of one channel block of the products, part of which may lie
/// outside the image. All lengths are in words of 32 bits.
pub(crate) struct InputTile {
    /// Pixel (0, 0) of the tile, which may lie outside the image. Of each pixel (y, x) inside the
    /// image, the block's channels are read from `y * row + x * 16` on.
    pub x: *const f32,
    /// Words from one image row to the next.
    pub row: usize,
    /// The rows of the tile that lie inside the image: the first one, and the one after the last.
    pub rows: (usize, usize),
    /// The columns of the tile that lie inside the image: the first one, and the one after the
    /// last.
    pub columns: (usize, usize),
    /// Where the result goes: 16 words are written from `p * position` on, for each position `p` of
    /// the `S * S` that a tile of this kind takes part in.
    pub out: *mut f32,
    /// Words from one position to the next.
    pub position: usize,
}

/// An output tile: `M` x `M` pixels of one channel block of the output, part of which may lie
/// outside the image. All lengths are in words of 32 bits.
pub(crate) struct OutputTile {
    /// The tile's products: from `p * position + b * block` on 16 floats are read, for each position
    /// `p` of the `S * S` that a tile of this kind takes part in, and for each 16 channels `b` of the
    /// output's block.
    pub product: *const f32,
    /// Words from one position to the next.
    pub position: usize,
    /// Words from 16 channels to the next 16.
    pub block: usize,
    /// The bias: a float for each channel of the block.
    pub bias: *const f32,
    /// Pixel (0, 0) of the tile in the output. Of each pixel (y, x) `inside`, 16 words are written
    /// from `y * row + x * 16` on.
    pub out: *mut f32,
    /// The residual, which spans what `out` does. It may be null, or `out` itself.
    pub skip: *const f32,
    /// Words from one output row to the next.
    pub row: usize,
    /// How many rows and columns of the tile lie inside the image.
    pub inside: (usize, usize),
    /// Whether sums below zero are stored as zero.
    pub relu: bool,
}

/// Returns which of the `inputs` products in a line a tile that is one shorter does without. Its
/// point of interpolation is -1, or -2 for the larger tile.
pub(crate) const fn omitted(inputs: usize) -> usize {
    if inputs == 4 { 2 } else { 4 }
}

/// Returns `B^T d` for one line of `S` pixels. A short line has one pixel and one product less. The
/// weights stay those of the full line, so their scale is made up for here.
///
/// # Safety
/// - The target features of `V` are enabled and present.
#[inline(always)]
unsafe fn input_line<V: Vector, const S: usize, const SHORT: bool>(d: [V; S]) -> [V; S] {
    let mut y = d;
    // SAFETY: these operations have no pointers, and the caller vouches for the target features.
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
            y[2] = two.mul_add(d[1], d[3].sub(three.mul(d[2])));
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
            y[0] = four.mul_add(d[0], d[4]).sub(five.mul(d[2]));
            y[1] = even1.add(odd1);
            y[2] = even1.sub(odd1);
            y[3] = even2.add(odd2);
            y[4] = even2.sub(odd2);
            y[5] = four.mul_add(d[1], d[5]).sub(five.mul(d[3]));
        }
    }
    y
}

/// Returns `A^T m` for one line of `S` products: `M` outputs, of which the last of a short line
/// means nothing.
///
/// # Safety
/// - The target features of `V` are enabled and present.
#[inline(always)]
unsafe fn output_line<V: Vector, const S: usize, const M: usize, const SHORT: bool>(
    m: [V; S],
) -> [V; M] {
    // SAFETY: these operations have no pointers, and the caller vouches for the target features.
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

/// Transforms one input tile, `B^T d B`, from type `F` to type `T`, whose blocks are no larger.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `x` and `out` of `t` span what their fields say. They do not overlap, and nobody else has
///   access to what is written.
#[inline(always)]
pub(crate) unsafe fn input<
    V: Vector,
    F: Stored,
    T: Stored,
    const S: usize,
    const Y: bool,
    const X: bool,
>(
    t: &InputTile,
) {
    let whole = t.rows == (0, S - Y as usize) && t.columns == (0, S - X as usize);
    let mut v = 0;
    while v < T::NUMBERS.block() {
        // SAFETY: `v` is a multiple of LANES below the block's channels, and `input_lanes` asks for
        // no more than that the tile spans what its fields say, which is this function's contract.
        // If the tile is whole, all its pixels lie inside the image.
        unsafe {
            if whole {
                input_lanes::<V, F, T, S, Y, X>(t, v, |_, _| true);
            } else {
                let inside =
                    |y, x| t.rows.0 <= y && y < t.rows.1 && t.columns.0 <= x && x < t.columns.1;
                input_lanes::<V, F, T, S, Y, X>(t, v, inside);
            }
        }
        v += V::LANES;
    }
}

/// Transforms channels `v..v + LANES` of one input tile. `inside(y, x)` says whether a pixel of the
/// tile lies inside the image.
///
/// # Safety
/// - `t` is as [`input`] asks for, and `v + LANES` is at most the channels of a block of `T`.
/// - `inside` returns true for no other pixels than those within `t.rows` and `t.columns`.
#[inline(always)]
unsafe fn input_lanes<
    V: Vector,
    F: Stored,
    T: Stored,
    const S: usize,
    const Y: bool,
    const X: bool,
>(
    t: &InputTile,
    v: usize,
    inside: impl Fn(usize, usize) -> bool,
) {
    let (from, to) = (v / F::NUMBERS.per_word(), v / T::NUMBERS.per_word());
    // SAFETY: loads are from the block's channels of a pixel that is inside the image, which `t.x`
    // spans. Stores are to the 16 words of a position that this kind of tile takes part in, which
    // `t.out` spans.
    unsafe {
        let mut half = [[V::zero(); S]; S];
        for x in 0..S - X as usize {
            let mut column = [V::zero(); S];
            for (y, pixel) in column.iter_mut().enumerate().take(S - Y as usize) {
                if inside(y, x) {
                    *pixel = F::load(t.x.wrapping_add(y * t.row + x * BLOCK + from));
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
                T::store(value, t.out.wrapping_add((y * S + x) * t.position + to));
            }
        }
    }
}

/// Transforms one tile of products back, `A^T m A`, and stores it in type `T` with bias, residual and
/// ReLU.
///
/// # Safety
/// - The target features of `V` are enabled and present.
/// - `product`, `bias`, `out` and `skip` of `t` span what their fields say. `out` overlaps nothing
///   that is read, unless `skip` is `out`, and nobody else has access to what is written.
#[inline(always)]
pub(crate) unsafe fn output<
    V: Vector,
    T: Stored,
    const S: usize,
    const M: usize,
    const Y: bool,
    const X: bool,
>(
    t: &OutputTile,
) {
    let mut v = 0;
    while v < T::NUMBERS.block() {
        let product = t.product.wrapping_add(v / BLOCK * t.block + v % BLOCK);
        let to = v / T::NUMBERS.per_word();
        // SAFETY: `v + LANES` is at most the block's channels. Loads from the products are from
        // positions that this kind of tile takes part in. The residual is read and the output
        // written at pixels below `t.inside` alone. All of these are spanned by the tile's pointers.
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
                    *value = V::load(product.wrapping_add((y * S + x) * t.position));
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
                        let at = y * t.row + x * BLOCK + to;
                        let mut value = value.add(bias);
                        if !t.skip.is_null() {
                            value = value.add(T::load(t.skip.wrapping_add(at)));
                        }
                        T::store(T::activate(value, t.relu), t.out.wrapping_add(at));
                    }
                }
            }
        }
        v += V::LANES;
    }
}
