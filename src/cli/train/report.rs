//! What people need in order to decide whether a head is good enough, as a table or as JSON.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::output::{self, printable};
use imgclass_heads::{Evaluation, Head, NetworkId, Recipe};

/// The most lines of a list in the table for people.
const SHOWN: usize = 10;

/// An image that could not be read, and why.
#[derive(Debug, Serialize)]
pub(super) struct LeftOut {
    pub(super) file: String,
    pub(super) error: String,
}

/// Everything that a report shows. The names of the fields are those of its JSON.
#[derive(Debug, Serialize)]
pub(super) struct TrainReport {
    /// The head's file.
    pub(super) head: String,
    /// Its size.
    pub(super) bytes: usize,
    pub(super) network: NetworkId,
    pub(super) recipe: Recipe,
    pub(super) evaluation: Evaluation,
    pub(super) left_out: Vec<LeftOut>,
}

impl TrainReport {
    pub(super) fn new(path: &Path, bytes: usize, head: &Head, left_out: Vec<LeftOut>) -> Self {
        Self {
            head: path.display().to_string(),
            bytes,
            network: head.network.clone(),
            recipe: head.recipe.clone(),
            evaluation: head.evaluation.clone(),
            left_out,
        }
    }

    pub(super) fn json(&self) -> Result<String, Failure> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        Ok(output::printable_json(json))
    }

    /// Returns the most important figures: the name, the figure and what belongs to it.
    pub(super) fn figures(&self) -> Vec<(&'static str, String, String)> {
        let e = &self.evaluation;
        let none = String::new;
        let mut figures = vec![
            ("images", e.pictures.to_string(), none()),
            ("classes", e.classes.to_string(), none()),
            (
                "accuracy",
                percent(e.accuracy),
                interval(e.accuracy_interval),
            ),
        ];
        if e.classes > 5 {
            figures.push((
                "one of the first five",
                percent(e.top5),
                interval(e.top5_interval),
            ));
        }
        figures.push(("mean over classes", percent(e.balanced_accuracy), none()));
        figures.push((
            "calibration error",
            percent(e.expected_calibration_error),
            none(),
        ));
        if let Some(unknown) = e.unknown {
            figures.push((
                "other classes",
                format!("AUROC {:.3}", unknown.auroc),
                format!(
                    "({} pass where 95 % of the known do)",
                    percent(unknown.false_positive_rate)
                ),
            ));
        }
        figures
    }

    /// Formats the summary for people.
    pub(super) fn table(&self) -> String {
        let e = &self.evaluation;
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "{}: {} classes, {} KB\n\nOn images that were held out ({} folds):",
            printable(&self.head),
            e.classes,
            self.bytes.div_ceil(1000),
            e.folds
        );
        for (name, value, detail) in self.figures() {
            let _ = writeln!(
                text,
                "  {}",
                format!("{name:<24}{value} {detail}").trim_end()
            );
        }
        let _ = writeln!(text, "\n{:<32}images   recall  precision", "class");
        let mut classes: Vec<_> = e.class_scores.iter().collect();
        classes.sort_by(|a, b| a.recall.total_cmp(&b.recall));
        for class in classes.iter().take(2 * SHOWN) {
            let precision = class.precision.map_or_else(|| "-".to_owned(), percent);
            let label: String = printable(&class.label).chars().take(29).collect();
            let _ = writeln!(
                text,
                "  {label:<30}{:>6}  {:>7}  {precision:>9}",
                class.pictures,
                percent(class.recall)
            );
        }
        if classes.len() > 2 * SHOWN {
            let _ = writeln!(text, "  and {} better ones", classes.len() - 2 * SHOWN);
        }
        let confused = e.confusions.iter().map(|c| {
            format!(
                "{} x  {} taken for {}",
                c.pictures,
                printable(&c.label),
                printable(&c.taken_for)
            )
        });
        list(&mut text, "Most confused", confused);
        let suspects = e.suspects.iter().map(|s| {
            format!(
                "{}: is it {} ({}) instead of {} ({})?",
                printable(&s.name),
                printable(&s.looks_like),
                percent(s.probability),
                printable(&s.label),
                percent(s.probability_of_label)
            )
        });
        list(&mut text, "Perhaps mislabelled", suspects);
        let doubles = e.near_duplicates.iter().map(|d| {
            format!(
                "{} ({}) and {} ({})",
                printable(&d.first),
                printable(&d.first_label),
                printable(&d.second),
                printable(&d.second_label)
            )
        });
        list(&mut text, "Nearly the same image in two classes", doubles);
        let curve = e.curve.iter().map(|point| {
            format!(
                "{:>6.1} images of a class: {}",
                point.pictures_per_class,
                percent(point.accuracy)
            )
        });
        list(&mut text, "Accuracy by the number of images", curve);
        list(
            &mut text,
            "Notes",
            e.notes.iter().map(|note| printable(note).into_owned()),
        );
        let left_out = self.left_out.iter().map(|left_out| {
            format!(
                "{}: {}",
                printable(&left_out.file),
                printable(&left_out.error)
            )
        });
        list(&mut text, "Left out", left_out);
        text
    }
}

/// Writes a list under a heading, or nothing if it is empty.
fn list(text: &mut String, heading: &str, lines: impl ExactSizeIterator<Item = String>) {
    let count = lines.len();
    if count == 0 {
        return;
    }
    let _ = writeln!(text, "\n{heading}");
    for line in lines.take(SHOWN) {
        let _ = writeln!(text, "  {line}");
    }
    if count > SHOWN {
        let _ = writeln!(
            text,
            "  and {} more (--report FILE.html or FILE.json has them)",
            count - SHOWN
        );
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("(95 %: {} to {})", percent(low), percent(high))
}
