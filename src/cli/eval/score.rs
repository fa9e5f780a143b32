//! Counts how often the most probable class, or one of the five most probable, is right, which
//! classes are taken for which, and whether confidence is deserved.

use std::collections::BTreeMap;

/// The number of bins of the expected calibration error, as in <https://arxiv.org/abs/1706.04599>.
pub(super) const BINS: usize = 15;

/// What the model said of one image, and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    /// The index of the right class.
    pub(super) class: usize,
    /// The most probable classes, at most five, the most probable first.
    pub(super) predicted: Vec<usize>,
    /// The probability of the first of them, from 0 to 1.
    pub(super) confidence: f64,
}

/// Counts how often the answers for some images were right.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ScoreTally {
    pub(super) images: usize,
    /// The number of images whose most probable class was right.
    pub(super) top1: usize,
    /// The number of images for which one of the five most probable classes was right.
    pub(super) top5: usize,
    /// The sum of the confidences.
    pub(super) confidence: f64,
}

impl ScoreTally {
    fn add(&mut self, judged: &Judged) {
        self.images += 1;
        self.top1 += usize::from(judged.predicted.first() == Some(&judged.class));
        self.top5 += usize::from(judged.predicted.contains(&judged.class));
        self.confidence += judged.confidence;
    }

    /// Returns `part` as a share of the images, or 0 if there are none.
    pub(super) fn share(&self, part: f64) -> f64 {
        part / self.images.max(1) as f64
    }

    /// Returns the share of the images whose most probable class was right.
    pub(super) fn accuracy(&self) -> f64 {
        self.share(self.top1 as f64)
    }
}

/// Counts the answers for all images, by class and by confidence.
#[derive(Debug, Clone)]
pub(super) struct Evaluation {
    pub(super) all: ScoreTally,
    /// The tallies by class index.
    pub(super) classes: Vec<ScoreTally>,
    /// The tallies by confidence, in bins of equal width from 0 to 1.
    pub(super) bins: [ScoreTally; BINS],
    /// How often the first class of a pair was taken for the second.
    pub(super) confusions: BTreeMap<(usize, usize), usize>,
    /// The images that could not be judged, and why.
    pub(super) failures: Vec<(String, String)>,
}

impl Evaluation {
    /// Creates empty counts for `classes` classes.
    pub(super) fn new(classes: usize) -> Self {
        Self {
            all: ScoreTally::default(),
            classes: vec![ScoreTally::default(); classes],
            bins: [ScoreTally::default(); BINS],
            confusions: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Counts one answer.
    pub(super) fn add(&mut self, judged: &Judged) {
        self.all.add(judged);
        if let Some(class) = self.classes.get_mut(judged.class) {
            class.add(judged);
        }
        // A bin includes its upper edge, as in the paper. The conversion to an integer saturates at
        // 0.
        let bin = (judged.confidence * BINS as f64).ceil() as usize;
        if let Some(bin) = self.bins.get_mut(bin.saturating_sub(1).min(BINS - 1)) {
            bin.add(judged);
        }
        if let Some(&first) = judged
            .predicted
            .first()
            .filter(|first| **first != judged.class)
        {
            *self.confusions.entry((judged.class, first)).or_default() += 1;
        }
    }

    /// Notes an image that could not be judged.
    pub(super) fn add_failure(&mut self, file: String, reason: String) {
        self.failures.push((file, reason));
    }

    /// Returns the expected calibration error: the mean distance of confidence from accuracy, over
    /// all bins, weighted by their images.
    pub(super) fn calibration_error(&self) -> f64 {
        let gaps = self
            .bins
            .iter()
            .map(|bin| (bin.top1 as f64 - bin.confidence).abs());
        self.all.share(gaps.sum())
    }

    /// Returns the pairs of confused classes with their counts, the most frequent first.
    pub(super) fn most_confused(&self) -> Vec<((usize, usize), usize)> {
        let mut pairs: Vec<_> = self
            .confusions
            .iter()
            .map(|(pair, count)| (*pair, *count))
            .collect();
        pairs.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(class: usize, predicted: &[usize], confidence: f64) -> Judged {
        Judged {
            class,
            predicted: predicted.to_vec(),
            confidence,
        }
    }

    #[test]
    fn right_answers_confusions_and_calibration_are_counted() {
        let mut evaluation = Evaluation::new(10);
        evaluation.add(&judged(1, &[1, 2, 3, 4, 5], 0.9));
        evaluation.add(&judged(1, &[2, 1, 3, 4, 5], 0.9));
        evaluation.add(&judged(7, &[2, 1, 3, 4, 5], 0.3));
        evaluation.add(&judged(1, &[2, 0, 3, 4, 5], 0.3));
        let ScoreTally {
            images, top1, top5, ..
        } = evaluation.all;
        assert_eq!((images, top1, top5), (4, 1, 2));
        assert_eq!(evaluation.classes[1].images, 3);
        assert_eq!(evaluation.most_confused(), [((1, 2), 2), ((7, 2), 1)]);
        // |1 - 1.8| and |0 - 0.6|, over four images.
        assert!((evaluation.calibration_error() - 0.35).abs() < 1e-12);
    }

    #[test]
    fn confidences_at_the_edges_fall_into_a_bin() {
        for (confidence, bin) in [
            (0.0, 0),
            (1.0 / 15.0, 0),
            (0.07, 1),
            (1.0, 14),
            (f64::NAN, 0),
        ] {
            let mut evaluation = Evaluation::new(1);
            evaluation.add(&judged(0, &[0], confidence));
            let found = evaluation.bins.iter().position(|bin| bin.images > 0);
            assert_eq!(found, Some(bin), "{confidence}");
        }
    }
}
