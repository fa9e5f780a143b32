//! Multinomial logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression`
//! defines it: the minimum of `C * sum(weight * loss) + |W|² / 2`, with a bias that is not
//! penalised.

use imgclass_kernels::ThreadPool;

use crate::lbfgs::{Stop, minimise};
use crate::product::dot;
use crate::rows::{Parameters, Rows};

/// What a classifier is fitted to.
pub(crate) struct Problem<'a> {
    /// The features of all examples.
    pub(crate) rows: Vec<&'a Rows<'a>>,
    /// The weight of an example, by its class.
    pub(crate) class_weights: &'a [f32],
    /// scikit-learn's `C`, in the units of the features here.
    pub(crate) c: f64,
}

impl Problem<'_> {
    /// Moves `parameters` to the optimum. `precision` is the length of the gradient at which the
    /// search ends, as a share of its length for a classifier that knows nothing. Returns how often
    /// the objective was computed.
    pub(crate) fn fit(
        &self,
        pool: &ThreadPool,
        parameters: &mut Parameters,
        precision: f64,
        steps: usize,
    ) -> usize {
        let total = self.total_weight();
        let row_weights: Vec<f32> = self
            .class_weights
            .iter()
            .map(|weight| (f64::from(*weight) / total) as f32)
            .collect();
        let penalty = 1.0 / (self.c * total);
        let mut space = Vec::new();
        let mut computed = 0;
        // The objective divided by `C` times all weights, so that it does not depend on the number
        // of examples.
        let mut objective = |values: &[f32], gradient: &mut [f32]| {
            computed += 1;
            let weights = values.len() - row_weights.len();
            for (gradient, value) in gradient[..weights].iter_mut().zip(values) {
                *gradient = penalty as f32 * value;
            }
            gradient[weights..].fill(0.0);
            let mut loss = 0.0;
            for rows in &self.rows {
                loss += rows.add_gradient(pool, values, &row_weights, gradient, &mut space);
            }
            loss + 0.5 * penalty * dot(&values[..weights], &values[..weights])
        };
        let zero = vec![0f32; parameters.values.len()];
        let mut at_zero = zero.clone();
        objective(&zero, &mut at_zero);
        let stop = Stop {
            gradient: precision * dot(&at_zero, &at_zero).sqrt(),
            steps,
        };
        drop((zero, at_zero));
        minimise(pool, &mut parameters.values, stop, &mut objective);
        computed
    }

    /// Returns the sum of the weights of all examples.
    fn total_weight(&self) -> f64 {
        let classes = self.rows.iter().flat_map(|rows| rows.classes());
        classes
            .map(|class| f64::from(self.class_weights[class]))
            .sum()
    }
}
