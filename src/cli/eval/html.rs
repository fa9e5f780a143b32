//! An evaluation as one HTML page with its plots in it: nothing is loaded from anywhere. Draws; counts nothing.

use std::fmt::Write;

use super::report::Report;

const STYLE: &str = "
:root{color-scheme:light dark;--text:#1d1a1f;--soft:#655e68;--line:#e2dcd3;--ground:#faf8f5;--raised:#fff;--bar:#bb3755;--other:#3b528b}
@media(prefers-color-scheme:dark){:root{--text:#f2eef4;--soft:#aca3b1;--line:#37323e;--ground:#131116;--raised:#1d1a22;--bar:#f1711e;--other:#8fa8ff}}
body{margin:0 auto;max-width:66rem;padding:2rem 1.25rem;background:var(--ground);color:var(--text);font:1rem/1.5 system-ui,sans-serif}
h1{letter-spacing:-.02em}.soft{color:var(--soft)}.wrap{overflow-x:auto}
.tiles,.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr))}.plots{grid-template-columns:repeat(auto-fit,minmax(19rem,1fr))}
.tiles>div,figure{background:var(--raised);border:1px solid var(--line);border-radius:14px;padding:1rem;margin:0}
.tiles b{display:block;font-size:1.7rem;letter-spacing:-.02em}svg{width:100%;height:auto;font:11px system-ui,sans-serif;fill:var(--soft)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}";

/// Width and height of a plot's area, and the space left and below for its axes.
const SIDE: f64 = 260.0;
const MARGIN: f64 = 36.0;

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("Evaluation of {}", escape(&report.model));
    let sha256 = report
        .sha256
        .as_deref()
        .map_or_else(String::new, |digest| format!("SHA-256 {digest}"));
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
    let tiles = tiles
        .map(|(name, value)| format!("<div><b>{value}</b><span class=soft>{name}</span></div>"));
    let parts = [
        format!(
            "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>"
        ),
        format!(
            "<h1>{title}</h1><p class=soft>{sha256}</p><div class=tiles>{}</div>",
            tiles.concat()
        ),
        format!(
            "<h2>Is confidence deserved?</h2><div class=plots>{}{}{}</div>",
            reliability(report),
            histogram(report),
            spread(report)
        ),
        confusions(report),
        classes(report),
        failures(report),
    ];
    for part in parts {
        // A text takes whatever is written to it.
        let _ = writeln!(page, "{part}");
    }
    page
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A figure with axes from 0 to 1 across, and to `top` upward.
fn figure(caption: &str, top: &str, drawn: &str) -> String {
    let (width, height) = (SIDE + 2.0 * MARGIN, SIDE + MARGIN + 14.0);
    let bottom = SIDE + 10.0;
    let right = MARGIN + SIDE;
    format!(
        "<figure><svg viewBox=\"0 0 {width} {height}\" role=img aria-label=\"{caption}\"><g stroke=\"var(--line)\"><path fill=none d=\"M{MARGIN} 10V{bottom}H{right}\"/></g>\
         <text x={MARGIN} y={} text-anchor=middle>0</text><text x={right} y={} text-anchor=middle>1</text><text x={} y=16 text-anchor=end>{top}</text>{drawn}</svg>\
         <figcaption class=soft>{caption}</figcaption></figure>",
        bottom + 16.0,
        bottom + 16.0,
        MARGIN - 6.0,
    )
}

/// A bar over a part of the axis, with a text that shows when it is pointed at.
fn bar(from: f64, to: f64, height: f64, colour: &str, title: &str) -> String {
    let (x, width) = (MARGIN + from * SIDE, (to - from) * SIDE - 1.5);
    let y = 10.0 + SIDE * (1.0 - height);
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=2 fill=\"var({colour})\"><title>{title}</title></rect>",
        SIDE * height
    )
}

fn reliability(report: &Report) -> String {
    let bars = report.calibration.iter().filter_map(|bin| {
        let title = format!(
            "{} images, confidence {}, right {}",
            bin.images,
            percent(bin.mean_confidence?),
            percent(bin.accuracy?)
        );
        Some(bar(bin.from, bin.to, bin.accuracy?, "--bar", &title))
    });
    let diagonal = format!(
        "<path d=\"M{MARGIN} {}L{} 10\" stroke=\"var(--soft)\" stroke-dasharray=\"4 4\"/>",
        SIDE + 10.0,
        MARGIN + SIDE
    );
    figure(
        "How often it is right, by its confidence; on the dashed line confidence is deserved",
        "1",
        &(bars.collect::<String>() + &diagonal),
    )
}

fn histogram(report: &Report) -> String {
    let most = report
        .calibration
        .iter()
        .map(|bin| bin.images)
        .max()
        .unwrap_or(0)
        .max(1);
    let bars = report.calibration.iter().map(|bin| {
        let height = bin.images as f64 / most as f64;
        bar(
            bin.from,
            bin.to,
            height,
            "--other",
            &format!("{} images", bin.images),
        )
    });
    figure(
        "How many images, by confidence",
        &most.to_string(),
        &bars.collect::<String>(),
    )
}

/// Ten bars: how many classes have which accuracy.
fn spread(report: &Report) -> String {
    let mut counts = [0usize; 10];
    for class in &report.classes {
        // A conversion to an integer saturates at 0.
        let bin = ((class.top1 * 10.0) as usize).min(9);
        if let Some(count) = counts.get_mut(bin) {
            *count += 1;
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let bars = counts.iter().enumerate().map(|(i, count)| {
        let from = i as f64 / 10.0;
        bar(
            from,
            from + 0.1,
            *count as f64 / most as f64,
            "--other",
            &format!("{count} classes"),
        )
    });
    figure(
        "How many classes, by how often they are recognised",
        &most.to_string(),
        &bars.collect::<String>(),
    )
}

fn table(
    heading: &str,
    columns: &[(&str, bool)],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let class = |number: bool| if number { " class=n" } else { "" };
    let head: String = columns
        .iter()
        .map(|(name, number)| format!("<th{}>{name}", class(*number)))
        .collect();
    let row = |cells: Vec<String>| {
        let cells = cells.iter().zip(columns);
        let cells: String = cells
            .map(|(cell, (_, number))| format!("<td{}>{}", class(*number), escape(cell)))
            .collect();
        format!("<tr>{cells}")
    };
    format!(
        "<h2>{heading}</h2><div class=wrap><table><tr>{head}{}</table></div>",
        rows.map(row).collect::<String>()
    )
}

fn confusions(report: &Report) -> String {
    let rows = report.confusions.iter().map(|pair| {
        vec![
            pair.label.clone(),
            pair.taken_for_label.clone(),
            pair.images.to_string(),
        ]
    });
    table(
        "What is taken for what",
        &[("class", false), ("taken for", false), ("images", true)],
        rows,
    )
}

fn classes(report: &Report) -> String {
    let rows = report.classes.iter().map(|class| {
        vec![
            class.label.clone(),
            class.wnid.clone().unwrap_or_default(),
            class.index.to_string(),
            class.images.to_string(),
            percent(class.top1),
            percent(class.top5),
        ]
    });
    let columns = [
        ("class", false),
        ("WordNet id", false),
        ("index", true),
        ("images", true),
        ("top-1", true),
        ("top-5", true),
    ];
    table("Classes, the worst first", &columns, rows)
}

fn failures(report: &Report) -> String {
    if report.failures.is_empty() {
        return String::new();
    }
    let rows = report
        .failures
        .iter()
        .map(|failure| vec![failure.file.clone(), failure.error.clone()]);
    table(
        "Images that could not be judged",
        &[("file", false), ("why", false)],
        rows,
    )
}
