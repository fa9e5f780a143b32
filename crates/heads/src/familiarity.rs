//! How well a picture fits anything that a head was trained on.
//!
//! The score is the cosine between a picture's features and the nearest class's mean direction,
//! where both are taken from the mean of all training pictures. It was chosen by measurement among
//! energy, the largest probability, Mahalanobis distances and nearest neighbours
//! (docs/own-classes.md has the figures): only neighbours did as well, and those need every
//! training picture's features in the file.
//!
//! A score becomes a share: `known` is the share of held-out training pictures that fit no better.
//! So 0.05 means that 95 % of the pictures of the trained classes fit better than this one.

use crate::examples::Examples;
use crate::product::{dot, dots};

/// How many quantiles of the held-out scores are kept at most.
const QUANTILES: usize = 1001;

/// The mean directions of the classes, and the scores of pictures that were held out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Familiarity {
    /// The origin `[dims]`: the mean of all training pictures' features.
    pub(crate) mean: Vec<f32>,
    /// A unit vector for each class, `[classes, dims]`.
    pub(crate) directions: Vec<f32>,
    /// Scores of held-out pictures at equal steps of rank, rising.
    pub(crate) quantiles: Vec<f32>,
}

impl Familiarity {
    /// Returns the score of some features, from -1 to 1.
    pub(crate) fn score(&self, features: &[f32]) -> f32 {
        let centred: Vec<f32> = features
            .iter()
            .zip(&self.mean)
            .map(|(x, mean)| x - mean)
            .collect();
        let cosines = cosines(&centred, &self.directions);
        cosines.into_iter().fold(-1.0, f32::max)
    }

    /// Returns the share of held-out pictures whose score is no better, from 0 to 1.
    pub(crate) fn known(&self, features: &[f32]) -> f32 {
        share_below(&self.quantiles, self.score(features))
    }
}

/// Returns the share of `sorted` that is no larger than `score`; between two values it rises
/// evenly.
fn share_below(sorted: &[f32], score: f32) -> f32 {
    let above = sorted.partition_point(|value| *value <= score);
    match (
        above.checked_sub(1).and_then(|i| sorted.get(i)),
        sorted.get(above),
    ) {
        (None, _) => 0.0,
        (_, None) => 1.0,
        (Some(low), Some(high)) => {
            let within = (score - low) / (high - low);
            ((above - 1) as f32 + within) / (sorted.len() - 1).max(1) as f32
        }
    }
}

/// Returns values at equal steps of rank, at most [`QUANTILES`] of them.
pub(crate) fn quantiles(mut scores: Vec<f32>) -> Vec<f32> {
    scores.sort_by(f32::total_cmp);
    let count = scores.len().min(QUANTILES);
    if count < 2 {
        return scores;
    }
    let rank = |i: usize| i * (scores.len() - 1) / (count - 1);
    (0..count).map(|i| scores[rank(i)]).collect()
}

/// Returns the cosines between a vector and some unit vectors.
fn cosines(vector: &[f32], directions: &[f32]) -> Vec<f32> {
    let length = dot(vector, vector).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
    let mut out = dots(vector, directions);
    for cosine in &mut out {
        *cosine = (*cosine / length).clamp(-1.0, 1.0);
    }
    out
}

/// Returns each class's mean direction over some pictures of centred examples, `[classes, dims]`. A
/// class without pictures has zeros.
pub(crate) fn mean_directions(examples: &Examples, pictures: &[usize]) -> Vec<f32> {
    let dims = examples.dims();
    let mut directions = vec![0f32; examples.labels().len() * dims];
    for &picture in pictures {
        let row = examples.row(picture);
        let length = dot(row, row).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
        let class = examples.classes()[picture];
        for (sum, x) in directions[class * dims..][..dims].iter_mut().zip(row) {
            *sum += x / length;
        }
    }
    for direction in directions.chunks_exact_mut(dims) {
        let length = dot(direction, direction).sqrt() as f32;
        if length > 0.0 {
            direction.iter_mut().for_each(|x| *x /= length);
        }
    }
    directions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_becomes_the_share_of_held_out_pictures_that_fit_no_better() {
        let sorted = [0.1, 0.2, 0.3, 0.4, 0.5];
        for (score, share) in [
            (0.0, 0.0),
            (0.1, 0.0),
            (0.3, 0.5),
            (0.35, 0.625),
            (0.9, 1.0),
        ] {
            assert!(
                (share_below(&sorted, score) - share).abs() < 1e-6,
                "{score}"
            );
        }
        assert_eq!(share_below(&[], 0.3), 0.0);
    }

    #[test]
    fn quantiles_keep_the_ends() {
        let found = quantiles((0..5000).rev().map(|i| i as f32).collect());
        assert_eq!(found.len(), QUANTILES);
        assert_eq!((found[0], found[QUANTILES - 1]), (0.0, 4999.0));
        assert_eq!(quantiles(vec![2.0]), [2.0]);
    }
}
