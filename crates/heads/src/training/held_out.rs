//! What classifiers say of pictures that they have not seen.

use super::trainer::Trainer;
use crate::calibration::temperature;
use crate::evaluation::CurvePoint;
use crate::familiarity::mean_directions;
use crate::folds::mix;
use crate::product::dot;
use crate::rows::Parameters;
use crate::softmax::loss_to_probabilities;

/// The most logits that the temperature is chosen by, 40 MB. Where there are more, some pictures
/// stand for all.
const TEMPERATURE_LOGITS: usize = 10_000_000;

/// What a classifier says of one picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// The most probable class.
    pub(super) found: usize,
    /// Its probability.
    pub(super) probability: f64,
    /// The probability of the picture's own class.
    pub(super) of_label: f64,
    /// How many classes are more probable than the picture's own.
    pub(super) better: usize,
    /// The logistic loss.
    pub(super) loss: f64,
}

impl Trainer<'_> {
    /// Asks about each picture the classifier that was not fitted to its fold. Returns the
    /// temperature, and the answers with it in the order of the pictures.
    pub(super) fn answers(&self, fits: &[Parameters]) -> (f64, Vec<Answer>) {
        let temperature = self.temperature(fits);
        let scale = (1.0 / temperature) as f32;
        let answers = self.ask(fits, |picture, logits| {
            let label = self.examples.classes()[picture];
            logits.iter_mut().for_each(|logit| *logit *= scale);
            let own = logits[label];
            let better = logits.iter().enumerate();
            let better = better.filter(|(i, x)| **x > own || (**x == own && *i < label));
            let better = better.count();
            let found = most_probable(logits);
            let loss = loss_to_probabilities(logits, label);
            Answer {
                found,
                probability: f64::from(logits[found]),
                of_label: f64::from(logits[label]),
                better,
                loss,
            }
        });
        (temperature, answers)
    }

    /// Returns the temperature with which the classifiers' probabilities are deserved.
    fn temperature(&self, fits: &[Parameters]) -> f64 {
        let classes = self.examples.labels().len();
        let one_in = (self.examples.len() * classes).div_ceil(TEMPERATURE_LOGITS) as u64;
        let some = self.ask(fits, |picture, logits| {
            mix(picture).is_multiple_of(one_in).then(|| logits.to_vec())
        });
        let (logits, labels): (Vec<_>, Vec<usize>) = some
            .into_iter()
            .zip(self.examples.classes())
            .filter_map(|(logits, label)| logits.map(|logits| (logits, *label)))
            .unzip();
        temperature(&logits.concat(), &labels, classes)
    }

    /// Calls `look` with each picture and the logits that the classifier of its fold gives. Returns
    /// the results in the order of the pictures.
    fn ask<T: Send>(
        &self,
        fits: &[Parameters],
        look: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let mut results = Vec::with_capacity(self.examples.len());
        for (fold, parameters) in self.folds.iter().zip(fits) {
            let found = fold.plain.look_at_logits(self.pool, parameters, &look);
            results.extend(fold.pictures.iter().copied().zip(found));
        }
        results.sort_by_key(|(picture, _)| *picture);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Returns how well each picture fits when it is held out, and how well it fits the other
    /// classes, as a picture of an unknown class would.
    pub(super) fn familiarity_scores(&self) -> (Vec<f32>, Vec<f32>) {
        let mut scores = Vec::with_capacity(self.examples.len());
        for (i, fold) in self.folds.iter().enumerate() {
            let others = self.folds.iter().enumerate().filter(|(j, _)| *j != i);
            let others: Vec<usize> = others
                .flat_map(|(_, other)| &other.pictures)
                .copied()
                .collect();
            let directions = mean_directions(self.examples, &others);
            let directions = Parameters::of_weights(&directions, self.examples.dims());
            let of_fold = fold
                .plain
                .look_at_logits(self.pool, &directions, |picture, products| {
                    let row = self.examples.row(picture);
                    let length = dot(row, row).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
                    let class = self.examples.classes()[picture];
                    let (mut known, mut unknown) = (-1f32, -1f32);
                    for (i, product) in products.iter().enumerate() {
                        let cosine = (product / length).clamp(-1.0, 1.0);
                        known = known.max(cosine);
                        if i != class {
                            unknown = unknown.max(cosine);
                        }
                    }
                    (known, unknown)
                });
            scores.extend(fold.pictures.iter().copied().zip(of_fold));
        }
        scores.sort_by_key(|(picture, _)| *picture);
        scores.into_iter().map(|(_, scores)| scores).unzip()
    }

    /// Measures the accuracy with fewer pictures; the last point is that of `answers`.
    pub(super) fn curve(&self, c: f64, shares: &[f64], answers: &[Answer]) -> Vec<CurvePoint> {
        let folds = self.folds.len();
        let classes = self.examples.classes();
        let learned = self.examples.len() as f64 * (folds - 1) as f64 / folds as f64;
        let per_class = learned / self.examples.labels().len() as f64;
        let mut curve = Vec::new();
        // Below two pictures of a class a share means nothing.
        let usable = |share: &&f64| per_class * **share >= 2.0;
        for &share in shares.iter().filter(usable) {
            let fits = self.each_fold(folds, |fold| self.fit_share(fold, c, share));
            let right = self.ask(&fits, |picture, logits| {
                most_probable(logits) == classes[picture]
            });
            curve.push(CurvePoint {
                pictures_per_class: per_class * share,
                accuracy: share_of(right.into_iter()),
            });
        }
        let right = answers.iter().zip(classes);
        curve.push(CurvePoint {
            pictures_per_class: per_class,
            accuracy: share_of(right.map(|(answer, class)| answer.found == *class)),
        });
        curve
    }
}

/// Returns the index of the largest number; of equal ones the first.
pub(super) fn most_probable(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// Returns the share of values that are true.
fn share_of(values: impl ExactSizeIterator<Item = bool>) -> f64 {
    let count = values.len().max(1);
    values.filter(|value| *value).count() as f64 / count as f64
}
