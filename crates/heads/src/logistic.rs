//! Multinomial logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression`
//! defines it: the minimum of `C * sum(weight * loss) + |W|² / 2`, with a bias that is not
//! penalised.

use crate::lbfgs::{Stop, minimise};
use crate::product::{AddWeighted, Dots, dot};

/// How many rows are worked on at one time. 64 rows of 2048 numbers are half a megabyte, which the
/// second-level cache of current processors holds.
const BLOCK: usize = 64;

/// The parameters of a linear classifier: `[classes, dims]` weights, then `classes` biases.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) values: Vec<f32>,
    pub(crate) classes: usize,
    pub(crate) dims: usize,
}

impl Parameters {
    pub(crate) fn zero(classes: usize, dims: usize) -> Self {
        Self {
            values: vec![0.0; classes * (dims + 1)],
            classes,
            dims,
        }
    }

    /// Returns the weights `[classes, dims]`.
    pub(crate) fn weights(&self) -> &[f32] {
        &self.values[..self.classes * self.dims]
    }

    /// Returns the biases `[classes]`.
    pub(crate) fn bias(&self) -> &[f32] {
        &self.values[self.classes * self.dims..]
    }

    /// Returns the logits of some rows, `[rows, classes]`.
    pub(crate) fn logits(&self, rows: &[&[f32]]) -> Vec<f32> {
        let mut out = vec![0f32; rows.len() * self.classes];
        for (rows, out) in rows.chunks(BLOCK).zip(out.chunks_mut(BLOCK * self.classes)) {
            Dots {
                rows,
                matrix: self.weights(),
                dims: self.dims,
                out,
            }
            .run();
            for row in out.chunks_exact_mut(self.classes) {
                for (logit, bias) in row.iter_mut().zip(self.bias()) {
                    *logit += bias;
                }
            }
        }
        out
    }
}

/// What a classifier is fitted to.
pub(crate) struct Problem<'a> {
    /// The features of each example.
    pub(crate) rows: Vec<&'a [f32]>,
    /// The class of each example.
    pub(crate) classes: Vec<usize>,
    /// The weight of an example, by its class.
    pub(crate) class_weights: &'a [f32],
    /// scikit-learn's `C`, in the units of the features here.
    pub(crate) c: f64,
}

impl Problem<'_> {
    /// Moves `parameters` to the optimum. `precision` is the length of the gradient at which the
    /// search ends, as a share of its length for a classifier that knows nothing. Returns how many
    /// steps were taken.
    pub(crate) fn fit(&self, parameters: &mut Parameters, precision: f64, steps: usize) -> usize {
        let mut gradient = vec![0f32; parameters.values.len()];
        let (classes, dims) = (parameters.classes, parameters.dims);
        let zero = Parameters::zero(classes, dims);
        self.value_and_gradient(&zero.values, classes, &mut gradient);
        let stop = Stop {
            gradient: precision * dot(&gradient, &gradient).sqrt(),
            steps,
        };
        minimise(&mut parameters.values, stop, |values, gradient| {
            self.value_and_gradient(values, classes, gradient)
        })
    }

    /// Returns the objective, divided by `C` times the sum of all weights so that it does not depend
    /// on the number of examples, and writes its gradient.
    fn value_and_gradient(&self, values: &[f32], classes: usize, gradient: &mut [f32]) -> f64 {
        let dims = values.len() / classes - 1;
        let (weights, bias) = values.split_at(classes * dims);
        let total: f64 = self
            .classes
            .iter()
            .map(|&class| f64::from(self.class_weights[class]))
            .sum();
        gradient.fill(0.0);
        let (weights_gradient, bias_gradient) = gradient.split_at_mut(classes * dims);
        let mut bias_sums = vec![0f64; classes];
        let mut loss = 0f64;
        let mut errors = vec![0f32; BLOCK * classes];
        for (rows, labels) in self.rows.chunks(BLOCK).zip(self.classes.chunks(BLOCK)) {
            let errors = &mut errors[..rows.len() * classes];
            Dots {
                rows,
                matrix: weights,
                dims,
                out: errors,
            }
            .run();
            for (row, &label) in errors.chunks_exact_mut(classes).zip(labels) {
                let weight = f64::from(self.class_weights[label]);
                for (logit, bias) in row.iter_mut().zip(bias) {
                    *logit += bias;
                }
                loss += weight * loss_to_probabilities(row, label);
                row[label] -= 1.0;
                for (error, sum) in row.iter_mut().zip(&mut bias_sums) {
                    let part = f64::from(*error) * weight / total;
                    *sum += part;
                    *error = part as f32;
                }
            }
            AddWeighted {
                rows,
                weights: errors,
                dims,
                matrix: weights_gradient,
            }
            .run();
        }
        let penalty = 1.0 / (self.c * total);
        for (gradient, weight) in weights_gradient.iter_mut().zip(weights) {
            *gradient += penalty as f32 * weight;
        }
        for (gradient, sum) in bias_gradient.iter_mut().zip(bias_sums) {
            *gradient = sum as f32;
        }
        loss / total + 0.5 * penalty * dot(weights, weights)
    }
}

/// Turns one example's logits into probabilities, and returns the logistic loss of its class.
pub(crate) fn loss_to_probabilities(logits: &mut [f32], label: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let of_label = logits.get(label).copied().unwrap_or(max);
    let mut sum = 0f64;
    for x in logits.iter_mut() {
        *x = (*x - max).exp();
        sum += f64::from(*x);
    }
    for x in logits.iter_mut() {
        *x = (f64::from(*x) / sum) as f32;
    }
    sum.ln() - f64::from(of_label - max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_value() {
        let (classes, dims) = (3, 5);
        let numbers = |count: usize, step: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * step).sin()).collect()
        };
        let features = numbers(40 * dims, 0.7);
        let problem = Problem {
            rows: features.chunks(dims).collect(),
            classes: (0..40).map(|i| i % classes).collect(),
            class_weights: &[1.0, 0.5, 2.0],
            c: 0.3,
        };
        let point = numbers(classes * (dims + 1), 1.3);
        let mut gradient = vec![0f32; point.len()];
        problem.value_and_gradient(&point, classes, &mut gradient);
        for i in 0..point.len() {
            let value = |shift: f32| {
                let mut moved = point.clone();
                moved[i] += shift;
                problem.value_and_gradient(&moved, classes, &mut vec![0f32; point.len()])
            };
            let slope = (value(1e-2) - value(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[i])).abs() < 1e-4,
                "{i}: {slope} {}",
                gradient[i]
            );
        }
    }
}
