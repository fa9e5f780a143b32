//! Presents an evaluation as one HTML page with plots.
//!
//! Style and plots are inside the page, so that it can be sent around as one file and loads
//! nothing. `maud` builds the page and escapes every text that is put into it: labels and file
//! names come from outside. The plots are SVG: a plot's area is a square of [`SIDE`] units, and
//! both of its axes go from 0 to 1.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::comparison::ComparisonReport;
use super::report::EvalReport;

/// The style sheet of the page.
const STYLE: &str = include_str!("report.css");

/// The width and height of a plot's area.
const SIDE: f64 = 260.0;

/// The x coordinate of the left end of a plot's area; left of it is the label of the vertical axis.
const LEFT: f64 = 36.0;

/// The x coordinate of the right end of a plot's area.
const RIGHT: f64 = LEFT + SIDE;

/// The y coordinate of the upper end of a plot's area; y grows downward.
const TOP: f64 = 10.0;

/// The y coordinate of the lower end of a plot's area; below it are the labels of the horizontal
/// axis.
const BOTTOM: f64 = TOP + SIDE;

/// Builds the whole page.
pub(super) fn page(report: &EvalReport) -> String {
    let title = format!("Evaluation of {}", report.model);
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
                @if let Some(digest) = &report.sha256 {
                    p .soft .digest { "SHA-256 " (digest) }
                }
                (tiles(report))
                @if let Some(comparison) = &report.comparison {
                    (compared(comparison))
                }
                h2 { "Is confidence deserved?" }
                div .plots {
                    (reliability_plot(report))
                    (confidence_plot(report))
                    (class_accuracy_plot(report))
                }
                (confusions(report))
                (classes(report))
                @if !report.failures.is_empty() {
                    (failures(report))
                }
            }
        }
    };
    page.into_string() + "\n"
}

/// The most important figures, large.
fn tiles(report: &EvalReport) -> Markup {
    let tiles = [
        ("images", report.images.to_string()),
        ("top-1", percent(report.top1)),
        ("top-5", percent(report.top5)),
        ("mean confidence", percent(report.mean_confidence)),
        (
            "expected calibration error",
            percent(report.expected_calibration_error),
        ),
    ];
    html! {
        div .tiles {
            @for (name, value) in tiles {
                div { b { (value) } span .soft { (name) } }
            }
        }
    }
}

/// How the model compares with itself in another number type.
fn compared(comparison: &ComparisonReport) -> Markup {
    html! {
        h2 { (comparison.dtype) " compared with " (comparison.compared_with) }
        table {
            @for (name, value) in comparison.lines() {
                tr { th { (name) } td { (value) } }
            }
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Plots the accuracy of each bin of confidence.
fn reliability_plot(report: &EvalReport) -> Markup {
    let bars = report.calibration.iter().filter_map(|bin| {
        let accuracy = bin.accuracy?;
        let title = format!(
            "{} images, confidence {}, right {}",
            bin.images,
            percent(bin.mean_confidence?),
            percent(accuracy)
        );
        Some(bar(bin.from, bin.to, accuracy, "--bar", &title))
    });
    let diagonal = format!("M{LEFT} {BOTTOM}L{RIGHT} {TOP}");
    let drawing = html! {
        @for bar in bars { (bar) }
        path d=(diagonal) stroke="var(--text)" stroke-width="1.5" stroke-dasharray="4 4" {}
    };
    let caption = "How often it is right, by its confidence; on the dashed line confidence is \
                   deserved";
    figure(caption, "confidence", "1", drawing)
}

/// Plots the number of images in each bin of confidence.
fn confidence_plot(report: &EvalReport) -> Markup {
    let bins = report.calibration.iter();
    let bars: Vec<_> = bins.map(|bin| (bin.from, bin.to, bin.images)).collect();
    histogram(
        "How many images, by confidence",
        "confidence",
        "images",
        &bars,
    )
}

/// Plots the number of classes in each of ten bins of accuracy.
fn class_accuracy_plot(report: &EvalReport) -> Markup {
    let mut counts = [0usize; 10];
    for class in &report.classes {
        // The conversion to an integer saturates at 0. The last bin includes its upper edge.
        let bin = ((class.top1 * 10.0) as usize).min(9);
        if let Some(count) = counts.get_mut(bin) {
            *count += 1;
        }
    }
    let bars = counts.into_iter().enumerate().map(|(i, count)| {
        let from = i as f64 / 10.0;
        (from, from + 0.1, count)
    });
    let bars: Vec<_> = bars.collect();
    histogram(
        "How many classes, by how often they are recognised",
        "top-1",
        "classes",
        &bars,
    )
}

/// Plots counts of `what` over parts of the horizontal axis, each from and to a value.
///
/// The vertical axis goes up to the highest count.
fn histogram(caption: &str, axis: &str, what: &str, counts: &[(f64, f64, usize)]) -> Markup {
    let highest = counts.iter().map(|(.., count)| *count).max();
    let highest = highest.unwrap_or(0).max(1);
    let drawing = html! {
        @for (from, to, count) in counts {
            (bar(*from, *to, *count as f64 / highest as f64, "--other", &format!("{count} {what}")))
        }
    };
    figure(caption, axis, &highest.to_string(), drawing)
}

/// Draws a figure whose horizontal axis has a name and goes from 0 to 1, and whose vertical axis
/// goes from 0 to `top`.
fn figure(caption: &str, axis: &str, top: &str, drawing: Markup) -> Markup {
    let view_box = format!("0 0 {} {}", RIGHT + 12.0, BOTTOM + 24.0);
    let axes = format!("M{LEFT} {TOP}V{BOTTOM}H{RIGHT}");
    let below = BOTTOM + 17.0;
    html! {
        figure {
            svg viewBox=(view_box) role="img" aria-label=(caption) {
                path d=(axes) fill="none" stroke="var(--line)" {}
                text x=(LEFT) y=(below) text-anchor="middle" { "0" }
                text x=(LEFT + SIDE / 2.0) y=(below) text-anchor="middle" { (axis) }
                text x=(RIGHT) y=(below) text-anchor="middle" { "1" }
                text x=(LEFT - 6.0) y=(TOP + 8.0) text-anchor="end" { (top) }
                (drawing)
            }
            figcaption .soft { (caption) }
        }
    }
}

/// Draws a bar over a part of the horizontal axis, with a text that is shown when it is pointed at.
///
/// `from`, `to` and `height` are shares of the axes. A gap of 1.5 units separates a bar from the
/// next.
fn bar(from: f64, to: f64, height: f64, colour: &str, title: &str) -> Markup {
    let x = format!("{:.1}", LEFT + from * SIDE);
    let y = format!("{:.1}", BOTTOM - SIDE * height);
    let width = format!("{:.1}", (to - from) * SIDE - 1.5);
    let height = format!("{:.1}", SIDE * height);
    html! {
        rect x=(x) y=(y) width=(width) height=(height) rx="2" fill={ "var(" (colour) ")" } {
            title { (title) }
        }
    }
}

fn confusions(report: &EvalReport) -> Markup {
    let columns = [text("class"), text("taken for"), number("images")];
    let rows = report.confusions.iter().map(|pair| {
        [
            pair.label.clone(),
            pair.taken_for_label.clone(),
            pair.images.to_string(),
        ]
    });
    table("What is taken for what", columns, rows)
}

fn classes(report: &EvalReport) -> Markup {
    let columns = [
        text("class"),
        text("WordNet id"),
        number("index"),
        number("images"),
        number("top-1"),
        number("top-5"),
    ];
    let rows = report.classes.iter().map(|class| {
        [
            class.label.clone(),
            class.wnid.clone().unwrap_or_default(),
            class.index.to_string(),
            class.images.to_string(),
            percent(class.top1),
            percent(class.top5),
        ]
    });
    table("Classes, the worst first", columns, rows)
}

fn failures(report: &EvalReport) -> Markup {
    let columns = [text("file"), text("why")];
    let rows = report
        .failures
        .iter()
        .map(|failure| [failure.file.clone(), failure.error.clone()]);
    table("Images that could not be judged", columns, rows)
}

/// A column of a table: its heading, and the class that aligns its cells.
type Column = (&'static str, Option<&'static str>);

fn text(heading: &'static str) -> Column {
    (heading, None)
}

fn number(heading: &'static str) -> Column {
    (heading, Some("number"))
}

/// Draws a table under a heading.
fn table<const N: usize>(
    heading: &str,
    columns: [Column; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Markup {
    html! {
        h2 { (heading) }
        div .wide {
            table {
                thead {
                    tr {
                        @for (name, class) in columns { th class=[class] { (name) } }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (cell, (_, class)) in row.iter().zip(columns) {
                                td class=[class] { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Confusion, FailedImage};
    use super::*;

    #[test]
    fn names_from_outside_are_shown_as_text_and_never_read_as_markup() {
        let hostile = "<script>alert(1)</script> & \"quotes\"";
        let page = page(&EvalReport {
            model: hostile.to_owned(),
            sha256: None,
            images: 1,
            top1: 0.0,
            top5: 0.0,
            mean_confidence: 0.5,
            expected_calibration_error: 0.5,
            calibration: Vec::new(),
            comparison: None,
            classes: Vec::new(),
            confusions: vec![Confusion {
                class: 0,
                label: hostile.to_owned(),
                taken_for: 1,
                taken_for_label: hostile.to_owned(),
                images: 1,
            }],
            failures: vec![FailedImage {
                file: hostile.to_owned(),
                error: hostile.to_owned(),
            }],
        });
        assert!(!page.contains("<script"), "{page}");
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;";
        // The title and the heading, two labels, and a file with its error.
        assert_eq!(page.matches(escaped).count(), 6, "{page}");
    }
}
