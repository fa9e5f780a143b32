//! The choice of `C` on held-out pictures.

use std::sync::{Mutex, PoisonError};

use super::held_out::most_probable;
use super::plan::ROUGH;
use super::trainer::Trainer;
use crate::evaluation::TriedC;
use crate::rows::Parameters;
use crate::softmax::loss_to_probabilities;

/// The values of `C` that are tried, for features whose mean squared length is 1. They are half a
/// decade apart: a smaller step changes accuracy by less than its own uncertainty.
const GRID: [f64; 10] = [
    0.1, 0.316, 1.0, 3.16, 10.0, 31.6, 100.0, 316.0, 1000.0, 3160.0,
];

/// Which values of `C` are tried, and on how many folds.
///
/// The search begins at one of the values and goes up until the loss has risen. If it rose at once,
/// the search goes down instead.
pub(super) struct Search {
    /// Rising values.
    values: Vec<f64>,
    /// The index of the value that is tried first.
    first: usize,
    /// How many values in a row must be worse than the best one before the search ends.
    patience: usize,
    /// How many folds judge.
    folds: usize,
}

impl Search {
    /// Tries one value alone, and judges it by one fold.
    pub(super) fn one(c: f64) -> Self {
        Self {
            values: vec![c],
            first: 0,
            patience: 1,
            folds: 1,
        }
    }

    /// Tries all values from the smallest on.
    pub(super) fn usual(folds: usize) -> Self {
        Self {
            values: GRID.to_vec(),
            first: 0,
            patience: 2,
            folds,
        }
    }

    /// Tries whole decades, from the middle on, and judges by one fold.
    pub(super) fn large() -> Self {
        let decades = GRID.into_iter().step_by(2);
        Self {
            values: decades.collect(),
            first: 2,
            patience: 1,
            folds: 1,
        }
    }

    /// Returns how many fits there are at most.
    pub(super) fn most_fits(&self) -> usize {
        let up = self.values.len() - self.first;
        // After the first step up, only one of the two directions is left.
        up.max(self.first + 2.min(up)) * self.folds
    }
}

/// What a classifier is worth on some held-out pictures.
#[derive(Debug, Clone, Copy, Default)]
struct Judgement {
    /// The sum of the weighted losses, and of their squares.
    loss: f64,
    squares: f64,
    weight: f64,
    right: usize,
    pictures: usize,
}

impl Trainer<'_> {
    /// Tries values of `C`. Returns what was found, by rising `C`.
    ///
    /// Each fold starts from its solution for the value before.
    pub(super) fn try_values(&self, search: &Search) -> Vec<TriedC> {
        let zeros = || (0..search.folds).map(|_| Mutex::new(self.zero()));
        let mut starts: Vec<_> = zeros().collect();
        let mut tried = Vec::new();
        for &c in &search.values[search.first..] {
            tried.push(self.try_value(c, &starts));
            if worse_in_a_row(&tried) >= search.patience {
                break;
            }
        }
        if worse_in_a_row(&tried) + 1 == tried.len() {
            starts = zeros().collect();
            for &c in search.values[..search.first].iter().rev() {
                tried.insert(0, self.try_value(c, &starts));
                if tried[0].log_loss > tried[1].log_loss {
                    break;
                }
            }
        }
        tried
    }

    /// Judges one value of `C` by the first folds, as many as there are starts.
    fn try_value(&self, c: f64, starts: &[Mutex<Parameters>]) -> TriedC {
        let sums = self.each_fold(starts.len(), |fold| {
            let mut parameters = starts[fold].lock().unwrap_or_else(PoisonError::into_inner);
            self.fit_others(fold, c, ROUGH, &mut parameters);
            self.judge(fold, &parameters)
        });
        let all = sums.iter().fold(Judgement::default(), |a, b| Judgement {
            loss: a.loss + b.loss,
            squares: a.squares + b.squares,
            weight: a.weight + b.weight,
            right: a.right + b.right,
            pictures: a.pictures + b.pictures,
        });
        let count = all.pictures as f64;
        let variance = (all.squares / count - (all.loss / count).powi(2)).max(0.0);
        TriedC {
            c,
            log_loss: all.loss / all.weight,
            log_loss_error: (variance * count).sqrt() / all.weight,
            accuracy: all.right as f64 / count,
        }
    }

    /// Judges a classifier by the pictures of a fold.
    fn judge(&self, fold: usize, parameters: &Parameters) -> Judgement {
        let rows = &self.folds[fold].plain;
        let losses = rows.look_at_logits(self.pool, parameters, |picture, logits| {
            let label = self.examples.classes()[picture];
            let is_right = most_probable(logits) == label;
            let weight = f64::from(self.class_weights[label]);
            (
                weight,
                weight * loss_to_probabilities(logits, label),
                is_right,
            )
        });
        let mut judgement = Judgement::default();
        for (weight, loss, is_right) in losses {
            judgement.loss += loss;
            judgement.squares += loss * loss;
            judgement.weight += weight;
            judgement.right += usize::from(is_right);
            judgement.pictures += 1;
        }
        judgement
    }
}

/// Returns how many values were tried after the one with the least loss.
fn worse_in_a_row(tried: &[TriedC]) -> usize {
    let least = tried
        .iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| a.log_loss.total_cmp(&b.log_loss));
    least.map_or(0, |(index, _)| tried.len() - 1 - index)
}

/// Returns the `C` with the best accuracy among those whose loss is within a standard error of the
/// least loss. Loss alone is the steadier measure; among equals, accuracy is what people want.
pub(super) fn choose(tried: &[TriedC]) -> f64 {
    let least = tried
        .iter()
        .min_by(|a, b| a.log_loss.total_cmp(&b.log_loss));
    let Some(least) = least else { return 1.0 };
    let bound = least.log_loss + least.log_loss_error;
    let equal = tried.iter().filter(|tried| tried.log_loss <= bound);
    let best = equal.max_by(|a, b| {
        a.accuracy
            .total_cmp(&b.accuracy)
            .then(b.log_loss.total_cmp(&a.log_loss))
    });
    best.unwrap_or(least).c
}
