//! Compares the model with the same model in another number type, on the same images.

use serde::Serialize;

/// The standard normal distribution's quantile for an interval of 95 %.
const Z: f64 = 1.959_964;

/// What both models said of one image.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// The index of the right class.
    pub(super) class: usize,
    /// The model's probabilities, by class.
    pub(super) probabilities: Vec<f32>,
    /// The other model's probabilities, by class.
    pub(super) other: Vec<f32>,
}

/// Counts what both models said.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ComparisonTally {
    images: usize,
    same_class: usize,
    right: usize,
    right_in_other: usize,
    /// The images that the model has right and the other one has not.
    gained: usize,
    /// The images that the other model has right and this one has not.
    lost: usize,
    /// The sum of the differences between the probabilities of the other model's first class.
    difference: f64,
    largest_difference: f64,
}

/// How the model compares with the same model in another number type. The names of the fields are
/// those of the report's JSON. All shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ComparisonReport {
    /// The number type that was evaluated.
    pub(super) dtype: String,
    /// The number type that it is compared with.
    pub(super) compared_with: String,
    /// The images that both models have answered.
    pub(super) images: usize,
    /// The images for which both have the same first class.
    pub(super) same_class: usize,
    /// The images that the model has right.
    pub(super) right: usize,
    /// The images that the other model has right.
    pub(super) right_in_other: usize,
    /// The model's accuracy less the other one's.
    pub(super) accuracy_difference: f64,
    /// The interval of 95 % of that difference.
    pub(super) accuracy_difference_interval: [f64; 2],
    /// How far the probabilities of the other model's first class are apart, on average.
    pub(super) mean_probability_difference: f64,
    /// How far they are apart at most.
    pub(super) largest_probability_difference: f64,
}

/// Returns the most probable class.
fn first_class(probabilities: &[f32]) -> Option<usize> {
    let numbered = probabilities.iter().enumerate();
    // Of equal probabilities the first class counts, as in answers.
    numbered
        .rev()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map(|(class, _)| class)
}

impl ComparisonTally {
    /// Counts one image.
    pub(super) fn add(&mut self, pair: &Pair) {
        let (own, other) = (first_class(&pair.probabilities), first_class(&pair.other));
        let is_right = own == Some(pair.class);
        let other_is_right = other == Some(pair.class);
        self.images += 1;
        self.same_class += usize::from(own == other);
        self.right += usize::from(is_right);
        self.right_in_other += usize::from(other_is_right);
        self.gained += usize::from(is_right && !other_is_right);
        self.lost += usize::from(other_is_right && !is_right);
        let at = |probabilities: &[f32]| {
            let probability = other.and_then(|class| probabilities.get(class));
            f64::from(probability.copied().unwrap_or_default())
        };
        let difference = (at(&pair.probabilities) - at(&pair.other)).abs();
        self.difference += difference;
        self.largest_difference = self.largest_difference.max(difference);
    }

    /// Returns the interval of 95 % of the difference between the accuracies: the adjusted interval
    /// of Agresti and Min for pairs, which half an image in each of the four cells keeps from being
    /// empty where all answers agree (<https://doi.org/10.1002/sim.1781>).
    fn interval(&self) -> [f64; 2] {
        let count = self.images as f64 + 2.0;
        let (gained, lost) = (self.gained as f64 + 0.5, self.lost as f64 + 0.5);
        let middle = (gained - lost) / count;
        let half = Z * (gained + lost - (gained - lost).powi(2) / count).sqrt() / count;
        [(middle - half).max(-1.0), (middle + half).min(1.0)]
    }

    /// Returns the report.
    pub(super) fn report(&self, dtype: String, compared_with: String) -> ComparisonReport {
        let images = self.images.max(1) as f64;
        ComparisonReport {
            dtype,
            compared_with,
            images: self.images,
            same_class: self.same_class,
            right: self.right,
            right_in_other: self.right_in_other,
            accuracy_difference: (self.gained as f64 - self.lost as f64) / images,
            accuracy_difference_interval: self.interval(),
            mean_probability_difference: self.difference / images,
            largest_probability_difference: self.largest_difference,
        }
    }
}

impl ComparisonReport {
    /// Returns the figures with their names, for people.
    pub(super) fn lines(&self) -> Vec<(String, String)> {
        let points = |share: f64| format!("{:+.2}", share * 100.0);
        let [from, to] = self.accuracy_difference_interval;
        let of_images = |count: usize| {
            let share = 100.0 * count as f64 / self.images.max(1) as f64;
            format!("{count} of {} ({share:.2} %)", self.images)
        };
        let Self {
            dtype,
            compared_with: other,
            ..
        } = self;
        vec![
            ("same class".to_owned(), of_images(self.same_class)),
            (format!("right in {dtype}"), of_images(self.right)),
            (format!("right in {other}"), of_images(self.right_in_other)),
            (
                "accuracy difference".to_owned(),
                format!(
                    "{} points, 95 % interval {} to {}",
                    points(self.accuracy_difference),
                    points(from),
                    points(to)
                ),
            ),
            (
                "probability difference".to_owned(),
                format!(
                    "{:.4} on average, {:.4} at most",
                    self.mean_probability_difference, self.largest_probability_difference
                ),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pairs: &[(usize, [f32; 2], [f32; 2])]) -> ComparisonReport {
        let mut tally = ComparisonTally::default();
        for (class, probabilities, other) in pairs {
            tally.add(&Pair {
                class: *class,
                probabilities: probabilities.to_vec(),
                other: other.to_vec(),
            });
        }
        tally.report("int8".to_owned(), "f32".to_owned())
    }

    #[test]
    fn agreement_accuracy_and_differences_are_counted_by_image() {
        let found = report(&[
            (0, [0.75, 0.25], [0.875, 0.125]),
            (0, [0.25, 0.75], [0.75, 0.25]),
            (1, [0.5, 0.5], [0.5, 0.5]),
            (1, [0.25, 0.75], [0.75, 0.25]),
        ]);
        assert_eq!((found.images, found.same_class), (4, 2));
        assert_eq!((found.right, found.right_in_other), (2, 2));
        assert_eq!(found.accuracy_difference, 0.0);
        assert_eq!(found.mean_probability_difference, (0.125 + 0.5 + 0.5) / 4.0);
        assert_eq!(found.largest_probability_difference, 0.5);
    }

    #[test]
    fn the_interval_is_that_of_agresti_and_min() {
        // 44 pairs of 500 where only the first is right, 24 where only the second is:
        // (44.5 - 24.5) / 502 +- 1.96 sqrt(69 - 20^2 / 502) / 502.
        let mut tally = ComparisonTally {
            images: 500,
            gained: 44,
            lost: 24,
            ..ComparisonTally::default()
        };
        let [from, to] = tally.interval();
        assert!(
            (from - 0.007_597).abs() < 1e-5 && (to - 0.072_084).abs() < 1e-5,
            "{from} {to}"
        );
        // Where all answers agree, the interval still has a width.
        (tally.gained, tally.lost) = (0, 0);
        let [from, to] = tally.interval();
        assert!(from < 0.0 && to > 0.0 && to < 0.01, "{from} {to}");
    }
}
