//! The two matrix products of logistic regression, in blocks of rows that stay in the cache.
//!
//! The loops are plain Rust over lanes of eight numbers. `pulp` compiles them for the processor's
//! vectors and chooses at run time. Every sum is made in the same order on every processor, so the
//! numbers are the same bits everywhere.

use pulp::{Arch, Simd, WithSimd};

/// How many numbers are summed side by side.
const LANES: usize = 8;

/// Rows that one tile of a product works on.
const ROWS: usize = 4;

/// Classes that one tile of a product works on. Four rows by three classes are twelve sums, which
/// leaves four of sixteen vector registers for what is loaded.
const CLASSES: usize = 3;

/// The dot products of some rows with the rows of a matrix.
pub(crate) struct Dots<'a> {
    /// The rows, each with `dims` numbers.
    pub(crate) rows: &'a [&'a [f32]],
    /// The matrix `[columns, dims]`.
    pub(crate) matrix: &'a [f32],
    /// How many numbers a row has.
    pub(crate) dims: usize,
    /// Receives `[rows, columns]`.
    pub(crate) out: &'a mut [f32],
}

/// Adds to every row of a matrix a weighted sum of some rows.
pub(crate) struct AddWeighted<'a> {
    /// The rows, each with `dims` numbers.
    pub(crate) rows: &'a [&'a [f32]],
    /// The weights `[rows, columns]`.
    pub(crate) weights: &'a [f32],
    /// How many numbers a row has.
    pub(crate) dims: usize,
    /// The matrix `[columns, dims]` that is added to.
    pub(crate) matrix: &'a mut [f32],
}

impl Dots<'_> {
    /// Computes the products on the best vectors that the processor has.
    pub(crate) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl AddWeighted<'_> {
    /// Computes the sums on the best vectors that the processor has.
    pub(crate) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let columns = self.matrix.len() / self.dims.max(1);
        let rows = self.rows.chunks(ROWS);
        for (rows, out) in rows.zip(self.out.chunks_mut(ROWS * columns.max(1))) {
            let mut first = 0;
            while first < columns {
                let row = |column: usize| &self.matrix[column * self.dims..][..self.dims];
                if rows.len() == ROWS && columns - first >= CLASSES {
                    let tile = [row(first), row(first + 1), row(first + 2)];
                    let sums = dot_tile([rows[0], rows[1], rows[2], rows[3]], tile);
                    for (sums, out) in sums.iter().zip(out.chunks_mut(columns)) {
                        out[first..first + CLASSES].copy_from_slice(sums);
                    }
                    first += CLASSES;
                } else {
                    for (x, out) in rows.iter().zip(out.chunks_mut(columns)) {
                        let [[sum]] = dot_tile([x], [row(first)]);
                        out[first] = sum;
                    }
                    first += 1;
                }
            }
        }
    }
}

/// Returns the dot products of `R` rows with `C` others, all of one length.
#[inline(always)]
fn dot_tile<const R: usize, const C: usize>(a: [&[f32]; R], b: [&[f32]; C]) -> [[f32; C]; R] {
    let length = a[0].len();
    let (a_lanes, b_lanes) = (
        a.map(|x| x.as_chunks::<LANES>().0),
        b.map(|x| x.as_chunks::<LANES>().0),
    );
    let mut sums = [[[0f32; LANES]; C]; R];
    for i in 0..length / LANES {
        for r in 0..R {
            for c in 0..C {
                for lane in 0..LANES {
                    sums[r][c][lane] += a_lanes[r][i][lane] * b_lanes[c][i][lane];
                }
            }
        }
    }
    let rest = length - length % LANES;
    let mut totals = [[0f32; C]; R];
    for r in 0..R {
        for c in 0..C {
            let tail: f32 = a[r][rest..]
                .iter()
                .zip(&b[c][rest..])
                .map(|(x, y)| x * y)
                .sum();
            let [s0, s1, s2, s3, s4, s5, s6, s7] = sums[r][c];
            totals[r][c] = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)) + tail;
        }
    }
    totals
}

impl WithSimd for AddWeighted<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let columns = self.matrix.len() / self.dims.max(1);
        let weights = self.weights.chunks(ROWS * columns.max(1));
        for (rows, weights) in self.rows.chunks(ROWS).zip(weights) {
            for (column, sums) in self.matrix.chunks_exact_mut(self.dims).enumerate() {
                if let [a, b, c, d] = *rows {
                    let weight = |row: usize| weights[row * columns + column];
                    add_four(
                        [a, b, c, d],
                        [weight(0), weight(1), weight(2), weight(3)],
                        sums,
                    );
                } else {
                    for (row, weights) in rows.iter().zip(weights.chunks(columns)) {
                        for (sum, x) in sums.iter_mut().zip(*row) {
                            *sum += weights[column] * x;
                        }
                    }
                }
            }
        }
    }
}

/// Adds the weighted sum of four rows to a fifth.
#[inline(always)]
fn add_four(rows: [&[f32]; ROWS], weights: [f32; ROWS], sums: &mut [f32]) {
    let [a, b, c, d] = rows;
    let terms = a.iter().zip(b).zip(c).zip(d);
    for (sum, (((a, b), c), d)) in sums.iter_mut().zip(terms) {
        *sum += (weights[0] * a + weights[1] * b) + (weights[2] * c + weights[3] * d);
    }
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

/// Adds `scale` times `x` to `y`.
pub(crate) fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
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
        for (rows, columns, dims) in [(1, 1, 1), (4, 3, 8), (5, 4, 9), (7, 10, 31), (9, 2, 64)] {
            let x = numbers(rows * dims, 1);
            let matrix = numbers(columns * dims, 2);
            let weights = numbers(rows * columns, 3);
            let slices: Vec<&[f32]> = x.chunks(dims).collect();
            let mut dots = vec![f32::NAN; rows * columns];
            Dots {
                rows: &slices,
                matrix: &matrix,
                dims,
                out: &mut dots,
            }
            .run();
            let mut sums = matrix.clone();
            AddWeighted {
                rows: &slices,
                weights: &weights,
                dims,
                matrix: &mut sums,
            }
            .run();
            for row in 0..rows {
                for column in 0..columns {
                    let exact: f64 = (0..dims)
                        .map(|i| {
                            f64::from(x[row * dims + i]) * f64::from(matrix[column * dims + i])
                        })
                        .sum();
                    let found = f64::from(dots[row * columns + column]);
                    assert!(
                        (found - exact).abs() < 1e-5,
                        "{rows} {columns} {dims}: {found} {exact}"
                    );
                }
            }
            for column in 0..columns {
                for i in 0..dims {
                    let exact: f64 = f64::from(matrix[column * dims + i])
                        + (0..rows)
                            .map(|row| {
                                f64::from(weights[row * columns + column])
                                    * f64::from(x[row * dims + i])
                            })
                            .sum::<f64>();
                    assert!((f64::from(sums[column * dims + i]) - exact).abs() < 1e-5);
                }
            }
            let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((dot(&x, &x) - exact).abs() < 1e-9);
        }
    }
}
