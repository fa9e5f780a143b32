//! How much of a training is done: everything, or less where there is very much to compute.

use super::choice::Search;
use crate::examples::Examples;

/// The length of the gradient at which a fit for the choice of `C` ends, as a share of its length at
/// zero.
pub(super) const ROUGH: f64 = 1e-3;

/// The same for the fits that the evaluation and the head are made of.
const FINE: f64 = 5e-5;

/// The same for the head itself where there is very much to compute.
const LARGE_FINE: f64 = 5e-4;

/// The most multiplications in one evaluation of the objective for which everything is done.
const USUAL_WORK: f64 = 4e9;

/// The shares of the pictures with which the curve is measured, beside all of them.
const SHARES: [f64; 3] = [0.125, 0.25, 0.5];

/// What is done in a training.
pub(super) struct Plan {
    /// Whether the folds are fitted to fewer features.
    pub(super) reduces_features: bool,
    /// Which values of `C` are tried.
    pub(super) search: Search,
    /// The precision of the folds' classifiers that the evaluation is made of.
    pub(super) precision_of_folds: f64,
    /// The precision of the head.
    pub(super) precision: f64,
    /// The shares of the pictures with which the curve is measured.
    pub(super) shares: &'static [f64],
    folds: usize,
}

impl Plan {
    /// Plans a training. `c` is the only value of `C`, if it is given.
    pub(super) fn new(examples: &Examples, c: Option<f64>, folds: usize) -> Self {
        if multiplications(examples) > USUAL_WORK {
            Self::large(examples, c, folds)
        } else {
            Self {
                reduces_features: false,
                search: c.map_or_else(|| Search::usual(folds), Search::one),
                precision_of_folds: FINE,
                precision: FINE,
                shares: &SHARES,
                folds,
            }
        }
    }

    /// Plans a training with very much to compute.
    pub(super) fn large(_: &Examples, c: Option<f64>, folds: usize) -> Self {
        Self {
            reduces_features: true,
            search: c.map_or_else(Search::large, Search::one),
            precision_of_folds: ROUGH,
            precision: LARGE_FINE,
            shares: &[],
            folds,
        }
    }

    /// Returns how many fits there are at most.
    pub(super) fn most_fits(&self) -> usize {
        self.search.most_fits() + (1 + self.shares.len()) * self.folds + 1
    }
}

/// Returns how many multiplications one evaluation of the objective takes.
pub(super) fn multiplications(examples: &Examples) -> f64 {
    let forms = if examples.has_mirrored() { 2.0 } else { 1.0 };
    2.0 * forms * examples.len() as f64 * examples.dims() as f64 * examples.labels().len() as f64
}
