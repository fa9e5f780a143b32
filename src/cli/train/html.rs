//! Presents a training as one HTML page, which needs no other file.
//!
//! `maud` escapes every text that is put into the page: labels and file names come from outside.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::report::{TrainReport, percent};

/// The style sheet of the page, which is that of `eval`.
const STYLE: &str = include_str!("../eval/report.css");

/// The most rows of a table: a page of 10,000 would be slow to open and read by nobody.
const SHOWN: usize = 200;

/// Builds the whole page.
pub(super) fn page(report: &TrainReport) -> String {
    let title = format!("Training of {}", report.head);
    let e = &report.evaluation;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p .soft {
                    "On images that were held out, in " (e.folds) " folds. Network: " (report.network.name)
                    ", C = " (format!("{:.4}", report.recipe.c))
                    ", temperature " (format!("{:.2}", report.recipe.temperature)) "."
                }
                div .tiles {
                    @for (name, value, detail) in report.figures() {
                        div { b { (value) } span .soft { (name) " " (detail) } }
                    }
                }
                @for note in &e.notes { p { (note) } }
                (table(
                    "Classes, the worst first",
                    &["class", "images", "recall", "95 % interval", "precision"],
                    classes(report),
                ))
                (more_than_shown(e.class_scores.len(), "classes"))
                (table("Most confused", &["class", "taken for", "images"], e.confusions.iter().map(|c| {
                    vec![c.label.clone(), c.taken_for.clone(), c.pictures.to_string()]
                }).collect()))
                (table(
                    "Perhaps mislabelled",
                    &["image", "class", "looks like", "probability", "of its class"],
                    e.suspects.iter().map(|s| vec![
                        s.name.clone(),
                        s.label.clone(),
                        s.looks_like.clone(),
                        percent(s.probability),
                        percent(s.probability_of_label),
                    ]).collect(),
                ))
                (table(
                    "Nearly the same image in two classes",
                    &["image", "class", "other image", "its class", "similarity"],
                    e.near_duplicates.iter().map(|d| vec![
                        d.first.clone(),
                        d.first_label.clone(),
                        d.second.clone(),
                        d.second_label.clone(),
                        format!("{:.3}", d.similarity),
                    ]).collect(),
                ))
                (table(
                    "Accuracy by the number of images",
                    &["images of a class", "accuracy"],
                    e.curve.iter().map(|point| vec![
                        format!("{:.1}", point.pictures_per_class),
                        percent(point.accuracy),
                    ]).collect(),
                ))
                (table("Values of C", &["C", "log loss", "accuracy"], e.tried.iter().map(|tried| {
                    vec![format!("{:.3e}", tried.c), format!("{:.4}", tried.log_loss), percent(tried.accuracy)]
                }).collect()))
                (table("Left out", &["image", "why"], report.left_out.iter().take(SHOWN).map(|left_out| {
                    vec![left_out.file.clone(), left_out.error.clone()]
                }).collect()))
                (more_than_shown(report.left_out.len(), "images"))
            }
        }
    };
    page.into_string() + "\n"
}

fn classes(report: &TrainReport) -> Vec<Vec<String>> {
    let mut classes: Vec<_> = report.evaluation.class_scores.iter().collect();
    classes.sort_by(|a, b| a.recall.total_cmp(&b.recall));
    let row = |class: &&imgclass_heads::ClassScore| {
        let [low, high] = class.recall_interval;
        vec![
            class.label.clone(),
            class.pictures.to_string(),
            percent(class.recall),
            format!("{} to {}", percent(low), percent(high)),
            class.precision.map_or_else(|| "-".to_owned(), percent),
        ]
    };
    classes.iter().take(SHOWN).map(row).collect()
}

/// Says how many rows a table does not show.
fn more_than_shown(rows: usize, of: &str) -> Markup {
    html! {
        @if rows > SHOWN {
            p .soft {
                "The other " (rows - SHOWN) " " (of) " are in the JSON (" code { "--report FILE.json" } ")."
            }
        }
    }
}

/// Draws a table under a heading, or nothing if it has no rows.
fn table(heading: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Markup {
    html! {
        @if !rows.is_empty() {
            h2 { (heading) }
            div .wide {
                table {
                    thead { tr { @for column in columns { th { (column) } } } }
                    tbody {
                        @for row in rows {
                            tr { @for cell in row { td { (cell) } } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::LeftOut;
    use super::*;

    #[test]
    fn a_page_of_ten_thousand_classes_shows_the_worst_and_says_how_many_there_are_more() {
        let class = |i: usize| imgclass_heads::ClassScore {
            label: format!("class {i}"),
            pictures: 2,
            recall: i as f64 / 10_000.0,
            recall_interval: [0.0, 1.0],
            precision: None,
        };
        let page = page(&TrainReport {
            head: "a.head".to_owned(),
            bytes: 1,
            network: Default::default(),
            recipe: Default::default(),
            evaluation: imgclass_heads::Evaluation {
                class_scores: (0..10_000).rev().map(class).collect(),
                ..Default::default()
            },
            left_out: Vec::new(),
        });
        assert!(page.contains("<td>class 199</td>") && !page.contains("<td>class 200</td>"));
        assert!(page.contains("The other 9800 classes are in the JSON"));
        assert!(page.len() < 100_000, "{}", page.len());
    }

    #[test]
    fn names_from_outside_are_shown_as_text() {
        let hostile = "<script>alert(1)</script>".to_owned();
        let page = page(&TrainReport {
            head: hostile.clone(),
            bytes: 1,
            network: Default::default(),
            recipe: Default::default(),
            evaluation: imgclass_heads::Evaluation {
                notes: vec![hostile.clone()],
                ..Default::default()
            },
            left_out: vec![LeftOut {
                file: hostile.clone(),
                error: hostile,
            }],
        });
        assert!(!page.contains("<script"), "{page}");
        // The title and the heading, a note, and a file with its error.
        assert_eq!(page.matches("&lt;script&gt;").count(), 5, "{page}");
    }
}
