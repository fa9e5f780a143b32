//! Fewer features: the directions in which pictures differ most.
//!
//! A fit's time grows with the number of features. A network's 2048 features mostly move together, so
//! a few hundred directions hold nearly all of their variance. They are found by subspace iteration:
//! random directions are multiplied by the covariance, which stretches them towards the main ones,
//! and made orthogonal again.

use imgclass_kernels::{Isa, PackedLinear, ThreadPool};

use crate::examples::Examples;
use crate::folds::mix;
use crate::product::dot;
use crate::rows::{PackedBudget, Parameters, Rows};

/// How many directions are kept.
const DIRECTIONS: usize = 512;

/// How often the directions are multiplied by the covariance.
const ROUNDS: usize = 4;

/// The most pictures that the directions are found by.
const MOST_PICTURES: usize = 8192;

/// Orthogonal directions of unit length among the features.
pub(crate) struct Directions {
    /// `[directions, dims]`.
    rows: Vec<f32>,
    dims: usize,
}

impl Directions {
    /// Finds the main directions of centred examples. `None` where there are so few features that it
    /// is not worth it.
    pub(crate) fn find(examples: &Examples, pool: &ThreadPool) -> Option<Self> {
        let dims = examples.dims();
        if dims < 2 * DIRECTIONS {
            return None;
        }
        let one_in = examples.len().div_ceil(MOST_PICTURES) as u64;
        let some = (0..examples.len()).filter(|&i| mix(i).is_multiple_of(one_in));
        let some: Vec<usize> = some.collect();
        let packed = Rows::new(examples, &some, false, &mut PackedBudget::default());
        let random = |i: usize| (mix(i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let mut rows: Vec<f32> = (0..DIRECTIONS * dims).map(random).collect();
        for _ in 0..ROUNDS {
            let start = Parameters::of_weights(&rows, dims);
            rows = packed.covariance_times(pool, &start).weights();
            make_orthogonal(&mut rows, dims);
        }
        Some(Self { rows, dims })
    }

    /// Returns the examples with one feature for each direction.
    pub(crate) fn reduce(&self, examples: &Examples, pool: &ThreadPool) -> Examples {
        let directions = Parameters::of_weights(&self.rows, self.dims);
        let all: Vec<usize> = (0..examples.len()).collect();
        // Packed piece by piece: the rows are used once.
        let mut nothing = PackedBudget::none();
        let mut form = |mirrored: bool| {
            let rows = Rows::new(examples, &all, mirrored, &mut nothing);
            rows.look_at_logits(pool, &directions, |_, row| row.to_vec())
                .concat()
        };
        let features = form(false);
        let mirrored = if examples.has_mirrored() {
            form(true)
        } else {
            Vec::new()
        };
        examples.with_features(features, mirrored)
    }

    /// Returns what a classifier of reduced features is for the features themselves.
    pub(crate) fn lift(&self, reduced: &Parameters, pool: &ThreadPool) -> Parameters {
        let count = self.rows.len() / self.dims;
        let mut columns = vec![0f32; self.rows.len()];
        for (i, row) in self.rows.chunks_exact(self.dims).enumerate() {
            for (x, column) in row.iter().zip(columns.chunks_exact_mut(count)) {
                column[i] = *x;
            }
        }
        let packed = PackedLinear::new(Isa::detect(), count, &columns, &vec![0.0; self.dims]);
        let weights = packed.forward(pool, &reduced.weights(), reduced.classes);
        let mut parameters = Parameters::of_weights(&weights, self.dims);
        parameters.set_bias(reduced.bias());
        parameters
    }
}

/// Makes each row orthogonal to those before it, and gives it unit length (Gram and Schmidt, modified).
/// A row of which nothing is left becomes zero.
fn make_orthogonal(rows: &mut [f32], dims: usize) {
    for i in 0..rows.len() / dims {
        let (done, rest) = rows.split_at_mut(i * dims);
        let row = &mut rest[..dims];
        let before = dot(row, row).sqrt();
        // Once is not enough in `f32`, twice is.
        for _ in 0..2 {
            for other in done.chunks_exact(dims) {
                let share = dot(row, other) as f32;
                for (x, other) in row.iter_mut().zip(other) {
                    *x -= share * other;
                }
            }
        }
        let length = dot(row, row).sqrt();
        let scale = if length > 1e-5 * before {
            (1.0 / length) as f32
        } else {
            0.0
        };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Picture;
    use std::num::NonZeroUsize;

    #[test]
    fn the_main_directions_hold_the_variance_and_classifiers_come_back_from_them() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        // 1024 features, the first thirty of which have a hundred times the deviation of the others.
        let dims = 2 * DIRECTIONS;
        let number = |i: usize| (mix(i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let feature = |i: usize, j: usize| number(i * dims + j) * if j < 30 { 1.0 } else { 0.01 };
        let picture = |i: usize| Picture {
            name: String::new(),
            label: (i % 2).to_string(),
            features: (0..dims).map(|j| feature(i, j)).collect(),
            mirrored: Some((0..dims).map(|j| feature(i + 1000, j)).collect()),
        };
        let examples = Examples::new((0..40).map(picture)).unwrap();
        let directions = Directions::find(&examples, &pool).unwrap();
        let reduced = directions.reduce(&examples, &pool);
        assert_eq!((reduced.len(), reduced.dims()), (40, DIRECTIONS));
        assert_eq!(reduced.classes(), examples.classes());
        for picture in 0..40 {
            let length = |row: &[f32]| dot(row, row);
            let share = length(reduced.row(picture)) / length(examples.row(picture));
            assert!((share - 1.0).abs() < 1e-3, "{share}");
        }
        let numbers = (0..2 * DIRECTIONS)
            .map(|i| number(i + 77))
            .collect::<Vec<_>>();
        let mut classifier = Parameters::of_weights(&numbers, DIRECTIONS);
        classifier.set_bias(&[0.5, -0.5]);
        let lifted = directions.lift(&classifier, &pool);
        assert_eq!(lifted.bias(), [0.5, -0.5]);
        for mirrored in [false, true] {
            for (weights, lifted) in classifier
                .weights()
                .chunks(DIRECTIONS)
                .zip(lifted.weights().chunks(dims))
            {
                let found = dot(lifted, examples.form(7, mirrored));
                let expected = dot(weights, reduced.form(7, mirrored));
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            }
        }
        let few = Examples::new((0..4).map(|i| Picture {
            features: vec![i as f32; dims - 1],
            mirrored: None,
            ..picture(i)
        }));
        assert!(Directions::find(&few.unwrap(), &pool).is_none());
    }
}
