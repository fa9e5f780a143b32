//! Presents an evaluation with the names of classes instead of indices, as a table or as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::comparison::ComparisonReport;
use super::score::{BINS, Evaluation, ScoreTally};
use crate::cli::output::printable;
use crate::service::{Model, Service};
use imgclass_checkpoint::Labels;

/// The number of pairs of confused classes in a report.
const PAIRS: usize = 50;

/// The number of classes, and of confused pairs, in the table for people.
const SHOWN: usize = 10;

/// Everything that a report shows. The names of the fields are those of its JSON.
///
/// All shares are from 0 to 1.
#[derive(Debug, Serialize)]
pub(super) struct EvalReport {
    pub(super) model: String,
    /// The SHA-256 of the weights file, in lower-case hexadecimal.
    pub(super) sha256: Option<String>,
    pub(super) images: usize,
    pub(super) top1: f64,
    pub(super) top5: f64,
    pub(super) mean_confidence: f64,
    pub(super) expected_calibration_error: f64,
    pub(super) calibration: Vec<ConfidenceBin>,
    /// How the model compares with itself in another number type, under `--compare`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comparison: Option<ComparisonReport>,
    /// The classes of which there were images, the worst first.
    pub(super) classes: Vec<ClassScore>,
    /// The pairs of confused classes, the most frequent first.
    pub(super) confusions: Vec<Confusion>,
    pub(super) failures: Vec<FailedImage>,
}

/// The images whose confidence is in a range, from `from` (excluded) to `to` (included).
#[derive(Debug, Serialize)]
pub(super) struct ConfidenceBin {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) images: usize,
    pub(super) accuracy: Option<f64>,
    pub(super) mean_confidence: Option<f64>,
}

/// The images of one class.
#[derive(Debug, Serialize)]
pub(super) struct ClassScore {
    pub(super) index: usize,
    pub(super) wnid: Option<String>,
    pub(super) label: String,
    pub(super) images: usize,
    pub(super) top1: f64,
    pub(super) top5: f64,
}

/// How often one class was taken for another.
#[derive(Debug, Serialize)]
pub(super) struct Confusion {
    pub(super) class: usize,
    pub(super) label: String,
    pub(super) taken_for: usize,
    pub(super) taken_for_label: String,
    pub(super) images: usize,
}

/// An image that could not be judged, and why.
#[derive(Debug, Serialize)]
pub(super) struct FailedImage {
    pub(super) file: String,
    pub(super) error: String,
}

impl EvalReport {
    /// Creates the report of an evaluation, with the class names of `model`.
    pub(super) fn new(evaluation: &Evaluation, service: &Service, model: &Model) -> Self {
        let labels = service.labels_of(model);
        let all = &evaluation.all;
        let name = |index: usize| {
            let label = labels.get(index);
            label.map_or_else(|| format!("class {index}"), |label| label.name.clone())
        };
        let pairs = evaluation.most_confused().into_iter().take(PAIRS);
        Self {
            model: match model.head() {
                None => service.model().checkpoint.id.clone(),
                Some(served) => served.path.display().to_string(),
            },
            sha256: match model.head() {
                None => service.model().checkpoint.sha256.clone(),
                Some(served) => Some(served.sha256.clone()),
            },
            images: all.images,
            top1: all.accuracy(),
            top5: all.share(all.top5 as f64),
            mean_confidence: all.share(all.confidence),
            expected_calibration_error: evaluation.calibration_error(),
            calibration: confidence_bins(evaluation),
            comparison: None,
            classes: class_scores(evaluation, labels, &name),
            confusions: pairs
                .map(|((class, taken_for), images)| Confusion {
                    class,
                    label: name(class),
                    taken_for,
                    taken_for_label: name(taken_for),
                    images,
                })
                .collect(),
            failures: evaluation
                .failures
                .iter()
                .map(|(file, error)| FailedImage {
                    file: file.clone(),
                    error: error.clone(),
                })
                .collect(),
        }
    }

    /// Formats the summary for people.
    pub(super) fn table(&self) -> String {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{label:<28}{value}");
        };
        line("model", printable(&self.model).into_owned());
        line("images", self.images.to_string());
        line("top-1", percent(self.top1));
        line("top-5", percent(self.top5));
        line("mean confidence", percent(self.mean_confidence));
        line(
            "expected calibration error",
            percent(self.expected_calibration_error),
        );
        if let Some(comparison) = &self.comparison {
            let (dtype, other) = (&comparison.dtype, &comparison.compared_with);
            line(&format!("\n{dtype} compared with {other}"), String::new());
            for (name, value) in comparison.lines() {
                line(&format!("  {name}"), value);
            }
        }
        line("\nmost confused", String::new());
        for pair in self.confusions.iter().take(SHOWN) {
            let what = format!("{} taken for {}", pair.label, pair.taken_for_label);
            line(
                &format!("  {} x", pair.images),
                printable(&what).into_owned(),
            );
        }
        line("\nworst classes", "images   top-1     top-5".to_owned());
        for class in self.classes.iter().take(SHOWN) {
            let numbers = format!(
                "{:>6}  {:>8}  {:>8}",
                class.images,
                percent(class.top1),
                percent(class.top5)
            );
            line(&format!("  {:<25.25}", printable(&class.label)), numbers);
        }
        for failure in &self.failures {
            let what = format!("{}: {}", failure.file, failure.error);
            line("\nfailed", printable(&what).into_owned());
        }
        text
    }
}

fn confidence_bins(evaluation: &Evaluation) -> Vec<ConfidenceBin> {
    let bins = evaluation.bins.iter().enumerate();
    let bin = |(i, bin): (usize, &ScoreTally)| ConfidenceBin {
        from: i as f64 / BINS as f64,
        to: (i + 1) as f64 / BINS as f64,
        images: bin.images,
        accuracy: (bin.images > 0).then(|| bin.accuracy()),
        mean_confidence: (bin.images > 0).then(|| bin.share(bin.confidence)),
    };
    bins.map(bin).collect()
}

/// Returns the scores of the classes of which there were images, the worst first.
fn class_scores(
    evaluation: &Evaluation,
    labels: &Labels,
    name: &dyn Fn(usize) -> String,
) -> Vec<ClassScore> {
    let seen = evaluation
        .classes
        .iter()
        .enumerate()
        .filter(|(_, tally)| tally.images > 0);
    let mut scores: Vec<ClassScore> = seen
        .map(|(index, tally)| ClassScore {
            index,
            wnid: labels.get(index).and_then(|label| label.wnid.clone()),
            label: name(index),
            images: tally.images,
            top1: tally.accuracy(),
            top5: tally.share(tally.top5 as f64),
        })
        .collect();
    scores.sort_by(|a, b| {
        a.top1
            .total_cmp(&b.top1)
            .then(a.top5.total_cmp(&b.top5))
            .then(a.index.cmp(&b.index))
    });
    scores
}
