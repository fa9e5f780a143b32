//! Products of vectors: one picture's features with the weights of each class, and the optimiser's own
//! vectors.
//!
//! The loops are plain Rust over lanes of eight numbers. `pulp` compiles them for the processor's
//! vectors and chooses at run time. Every sum is made in the same order on every processor, so the
//! numbers are the same bits everywhere.

use pulp::{Arch, Simd, WithSimd};

/// How many numbers are summed side by side.
const LANES: usize = 8;

/// How many rows of a matrix are worked on side by side, so that additions need not wait for one
/// another.
const ROWS: usize = 4;

/// Returns the dot products of a vector with each row of a matrix, `[rows, vector.len()]`.
pub(crate) fn dots(vector: &[f32], matrix: &[f32]) -> Vec<f32> {
    struct Dots<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Dots<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
            let Self(vector, matrix) = self;
            let length = vector.len().max(1);
            let mut out = Vec::with_capacity(matrix.len() / length);
            for rows in matrix.chunks(ROWS * length) {
                if rows.len() == ROWS * length {
                    let row = |i: usize| &rows[i * length..][..length];
                    out.extend(dot_each(vector, [row(0), row(1), row(2), row(3)]));
                } else {
                    let rows = rows.chunks_exact(length);
                    out.extend(rows.flat_map(|row| dot_each(vector, [row])));
                }
            }
            out
        }
    }
    Arch::new().dispatch(Dots(vector, matrix))
}

/// Returns the dot products of a vector with `R` others of its length.
#[inline(always)]
fn dot_each<const R: usize>(vector: &[f32], rows: [&[f32]; R]) -> [f32; R] {
    let (lanes, tail) = vector.as_chunks::<LANES>();
    let row_lanes = rows.map(|row| &row.as_chunks::<LANES>().0[..lanes.len()]);
    let mut sums = [[0f32; LANES]; R];
    for (i, lanes) in lanes.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(row_lanes) {
            for lane in 0..LANES {
                sums[lane] += lanes[lane] * row[i][lane];
            }
        }
    }
    let mut totals = [0f32; R];
    for r in 0..R {
        let rest = rows[r][lanes.len() * LANES..].iter().zip(tail);
        let rest: f32 = rest.map(|(x, y)| x * y).sum();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = sums[r];
        totals[r] = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)) + rest;
    }
    totals
}

/// Returns the dot product of two vectors as an `f64`, for the optimiser's own vectors.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    struct Dot<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Dot<'_> {
        type Output = f64;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> f64 {
            let (a, a_rest) = self.0.as_chunks::<LANES>();
            let (b, b_rest) = self.1.as_chunks::<LANES>();
            let mut sums = [0f64; LANES];
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
                }
            }
            let rest = a_rest
                .iter()
                .zip(b_rest)
                .map(|(a, b)| f64::from(*a) * f64::from(*b));
            sums.iter().sum::<f64>() + rest.sum::<f64>()
        }
    }
    Arch::new().dispatch(Dot(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn the_products_are_those_of_plain_sums_at_every_edge_of_a_tile() {
        for (rows, dims) in [(1, 1), (4, 8), (5, 9), (7, 31), (9, 64)] {
            let x = numbers(dims, 1);
            let matrix = numbers(rows * dims, 2);
            let found = dots(&x, &matrix);
            assert_eq!(found.len(), rows);
            for (found, row) in found.iter().zip(matrix.chunks(dims)) {
                let products = x.iter().zip(row);
                let exact: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{found} {exact}");
                assert!((dot(&x, row) - exact).abs() < 1e-9);
            }
        }
    }
}
