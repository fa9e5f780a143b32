//! The softmax and the logistic loss, in vectors.
//!
//! The loops are plain Rust over sixteen lanes, which `pulp` compiles for the processor's vectors.

use imgclass_kernels::BLOCK;
use pulp::{Arch, Simd, WithSimd};

/// How many exponentials are added in `f32` before their sum goes into an `f64`. Differences of the
/// loss decide whether a step was good, so they must not drown in rounding.
const EXACT: usize = 32;

/// Up to sixteen rows, whose logits become errors: the derivatives of the loss by the logits.
pub(crate) struct BlockErrors<'a> {
    /// The logits without bias, and then the errors, `[classes][16]`.
    pub(crate) logits: &'a mut [f32],
    /// The bias of each class.
    pub(crate) bias: &'a [f32],
    /// The class of each row. Lanes without one get errors of zero.
    pub(crate) labels: &'a [usize],
    /// How much a row counts, by its class.
    pub(crate) row_weights: &'a [f32],
    /// Receives the sum of each class's errors.
    pub(crate) class_sums: &'a mut [f32],
}

impl BlockErrors<'_> {
    /// Computes the errors. Returns the sum of the rows' losses, each times its weight.
    pub(crate) fn run(self) -> f64 {
        Arch::new().dispatch(self)
    }
}

impl WithSimd for BlockErrors<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let rows = self.logits.as_chunks_mut::<BLOCK>().0;
        let mut max = [f32::NEG_INFINITY; BLOCK];
        for (row, bias) in rows.iter_mut().zip(self.bias) {
            for lane in 0..BLOCK {
                row[lane] += bias;
                max[lane] = if row[lane] > max[lane] {
                    row[lane]
                } else {
                    max[lane]
                };
            }
        }
        let mut own = max;
        let mut weights = [0f32; BLOCK];
        for (lane, &label) in self.labels.iter().enumerate() {
            own[lane] = rows[label][lane];
            weights[lane] = self.row_weights[label];
        }
        let mut sums = [0f64; BLOCK];
        for rows in rows.chunks_mut(EXACT) {
            let mut part = [0f32; BLOCK];
            for row in rows {
                for lane in 0..BLOCK {
                    row[lane] = exp(row[lane] - max[lane]);
                    part[lane] += row[lane];
                }
            }
            for lane in 0..BLOCK {
                sums[lane] += f64::from(part[lane]);
            }
        }
        let mut loss = 0.0;
        let mut scales = [0f32; BLOCK];
        for lane in 0..BLOCK {
            scales[lane] = (f64::from(weights[lane]) / sums[lane]) as f32;
            let of_row = sums[lane].ln() - f64::from(own[lane] - max[lane]);
            if lane < self.labels.len() {
                loss += f64::from(weights[lane]) * of_row;
            }
        }
        for (row, class_sum) in rows.iter_mut().zip(self.class_sums.iter_mut()) {
            let mut sum = 0.0;
            for lane in 0..BLOCK {
                row[lane] *= scales[lane];
                sum += row[lane];
            }
            *class_sum = sum;
        }
        for (lane, &label) in self.labels.iter().enumerate() {
            rows[label][lane] -= weights[lane];
            self.class_sums[label] -= weights[lane];
        }
        loss
    }
}

/// Returns `e` to the power of `x` for an `x` that is not above 0, within three units in the last
/// place; below -87 it is 1.6e-38. It has no branch and no call, so loops over it become vectors.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, of which the first times a whole number is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = x - whole * LN_2[0] - whole * LN_2[1];
    // Taylor's series up to the sixth power: the rest is at most ln 2 / 2.
    let mut sum = 1.0 / 720.0;
    for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + factor;
    }
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    sum * f32::from_bits(power.wrapping_add(127) << 23)
}

/// Turns one row's logits into probabilities, and returns the logistic loss of its class.
pub(crate) fn loss_to_probabilities(logits: &mut [f32], label: usize) -> f64 {
    let of_label = logits.get(label).copied().unwrap_or_default();
    let (max, sum) = exponentials(logits, 1.0);
    let scale = (1.0 / sum) as f32;
    logits.iter_mut().for_each(|x| *x *= scale);
    sum.ln() - f64::from(of_label - max)
}

/// Returns the logistic loss of one row's class with the logits multiplied by `scale`.
/// `space` is overwritten.
pub(crate) fn scaled_loss(logits: &[f32], label: usize, scale: f32, space: &mut Vec<f32>) -> f64 {
    space.clear();
    space.extend_from_slice(logits);
    let (max, sum) = exponentials(space, scale);
    sum.ln() - f64::from(scale) * f64::from(logits[label] - max)
}

/// Replaces each `x` by `e` to the power of `scale * (x - max)`. Returns the largest logit, and the
/// sum of the exponentials.
fn exponentials(logits: &mut [f32], scale: f32) -> (f32, f64) {
    struct Exponentials<'a>(&'a mut [f32], f32);
    impl WithSimd for Exponentials<'_> {
        type Output = (f32, f64);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (f32, f64) {
            let Self(logits, scale) = self;
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for x in logits.iter_mut() {
                *x = exp((*x - max) * scale);
            }
            let mut sums = [0f64; BLOCK];
            let (blocks, rest) = logits.as_chunks::<BLOCK>();
            for block in blocks {
                for lane in 0..BLOCK {
                    sums[lane] += f64::from(block[lane]);
                }
            }
            let rest = rest.iter().map(|x| f64::from(*x));
            (max, sums.iter().sum::<f64>() + rest.sum::<f64>())
        }
    }
    Arch::new().dispatch(Exponentials(logits, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_exact_to_a_few_units_in_the_last_place() {
        for i in 0..870_000 {
            let x = i as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let off = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(off < 6.0 / f64::from(1 << 24), "{x}: {off}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn losses_are_those_of_the_definition() {
        let logits: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        for (label, scale) in [(0, 1.0), (36, 1.0), (3, 0.25)] {
            let exponential = |x: &f32| (f64::from(*x) * f64::from(scale)).exp();
            let sum: f64 = logits.iter().map(exponential).sum();
            let exact = sum.ln() - f64::from(logits[label]) * f64::from(scale);
            let found = scaled_loss(&logits, label, scale, &mut Vec::new());
            assert!((found - exact).abs() < 1e-6, "{found} {exact}");
            if scale == 1.0 {
                let mut probabilities = logits.clone();
                let found = loss_to_probabilities(&mut probabilities, label);
                assert!((found - exact).abs() < 1e-6, "{found} {exact}");
                for (found, logit) in probabilities.iter().zip(&logits) {
                    assert!((f64::from(*found) - exponential(logit) / sum).abs() < 1e-6);
                }
            }
        }
    }
}
