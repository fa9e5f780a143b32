//! Counting: how often the first or one of five classes is right, which classes are taken for which, and whether confidence is deserved. Pure.

use std::collections::BTreeMap;

/// Bins of the expected calibration error: 15, as in <https://arxiv.org/abs/1706.04599>.
pub(super) const BINS: usize = 15;

/// What the model said of one picture.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    /// What it is.
    pub(super) class: usize,
    /// The most probable classes, at most five, falling.
    pub(super) predicted: Vec<usize>,
    /// The probability of the first of them.
    pub(super) confidence: f64,
}

/// How often something was right.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) images: usize,
    pub(super) top1: usize,
    pub(super) top5: usize,
    /// The sum of the confidences.
    pub(super) confidence: f64,
}

impl Tally {
    fn add(&mut self, judged: &Judged) {
        self.images += 1;
        self.top1 += usize::from(judged.predicted.first() == Some(&judged.class));
        self.top5 += usize::from(judged.predicted.contains(&judged.class));
        self.confidence += judged.confidence;
    }

    /// A share of the images; 0 of none.
    pub(super) fn share(&self, part: f64) -> f64 {
        part / self.images.max(1) as f64
    }

    pub(super) fn accuracy(&self) -> f64 {
        self.share(self.top1 as f64)
    }
}

/// Everything that was counted.
#[derive(Debug, Clone)]
pub(super) struct Evaluation {
    pub(super) all: Tally,
    /// By class index.
    pub(super) classes: Vec<Tally>,
    /// By confidence, in bins of equal width from 0 to 1.
    pub(super) bins: [Tally; BINS],
    /// How often the first class was taken for the second.
    pub(super) confusions: BTreeMap<(usize, usize), usize>,
    /// Pictures that gave no answer, and why.
    pub(super) failures: Vec<(String, String)>,
}

impl Evaluation {
    pub(super) fn new(classes: usize) -> Self {
        Self {
            all: Tally::default(),
            classes: vec![Tally::default(); classes],
            bins: [Tally::default(); BINS],
            confusions: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, judged: &Judged) {
        self.all.add(judged);
        if let Some(class) = self.classes.get_mut(judged.class) {
            class.add(judged);
        }
        // The upper edge belongs to a bin, as in the paper; a conversion to an integer saturates at 0.
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

    pub(super) fn fail(&mut self, file: String, reason: String) {
        self.failures.push((file, reason));
    }

    /// The expected calibration error: how far confidence is from accuracy, over the bins by their images.
    pub(super) fn calibration_error(&self) -> f64 {
        let gaps = self
            .bins
            .iter()
            .map(|bin| (bin.top1 as f64 - bin.confidence).abs());
        self.all.share(gaps.sum())
    }

    /// Pairs of classes, the most confused first.
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
        let Tally {
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
