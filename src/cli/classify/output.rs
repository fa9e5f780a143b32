//! Results as a table for people, or as JSON lines, CSV or Parquet for programs. Writes and counts nothing else.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::parquet::Parts;
use crate::service::Prediction;

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people
    Table,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a heading; one line a class
    Csv,
    /// A folder of Parquet files, one row an image; needs --output
    Parquet,
}

/// What is known of one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) predictions: Vec<Prediction>,
    /// The pooled features, where they were asked for.
    pub(super) embedding: Option<Vec<f32>>,
    /// One per class, by index, where they were asked for.
    pub(super) logits: Option<Vec<f32>>,
}

/// A line of JSON; the names are those of the documents.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Good {
        file: &'a str,
        predictions: Vec<Entry<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        embedding: Option<&'a [f32]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        logits: Option<&'a [f32]>,
    },
    Bad {
        file: &'a str,
        error: &'a str,
    },
}

#[derive(Serialize)]
struct Entry<'a> {
    index: usize,
    wnid: Option<&'a str>,
    label: &'a str,
    probability: f32,
}

impl<'a> From<&'a Prediction> for Entry<'a> {
    fn from(p: &'a Prediction) -> Self {
        Self {
            index: p.index,
            wnid: p.wnid.as_deref(),
            label: &p.label,
            probability: p.probability,
        }
    }
}

/// A result, or the reason why there is none.
pub(super) type Outcome<'a> = Result<&'a Row, &'a str>;

/// Writes results one by one. What a program reads is written whole, one image at a time, so that an end at any moment leaves no image half
/// written but the last.
pub(super) enum Writer {
    Table { out: Box<dyn Write>, bars: bool },
    Jsonl(Box<dyn Write>),
    Csv(Box<dyn Write>),
    Parquet(Box<Parts>),
}

/// CSV's columns. `rank` counts from 1; a failed file has one line with only `file` and `error`.
pub(super) const COLUMNS: [&str; 7] = [
    "file",
    "rank",
    "index",
    "wnid",
    "label",
    "probability",
    "error",
];

impl Writer {
    pub(super) fn write(&mut self, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
        match self {
            Self::Table { out, bars } => table(out, file, outcome, *bars),
            Self::Jsonl(out) => jsonl(out, file, outcome),
            Self::Csv(out) => {
                let mut rows = csv::Writer::from_writer(Vec::new());
                csv_rows(&mut rows, file, outcome)?;
                out.write_all(&rows.into_inner().map_err(io::Error::other)?)?;
                out.flush()
            }
            Self::Parquet(parts) => parts.push(file, outcome),
        }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Table { mut out, .. } | Self::Jsonl(mut out) | Self::Csv(mut out) => out.flush(),
            Self::Parquet(mut parts) => parts.finish(),
        }
    }
}

/// CSV's first line.
pub(super) fn csv_heading() -> io::Result<Vec<u8>> {
    let mut heading = csv::Writer::from_writer(Vec::new());
    heading.write_record(COLUMNS).map_err(csv_error)?;
    heading.into_inner().map_err(io::Error::other)
}

/// Cells of a bar that stands for all of it.
const BAR_CELLS: usize = 24;

/// A share from 0 to 1 as a bar of eighths of a cell.
fn bar(share: f32) -> String {
    const EIGHTHS: [char; 8] = [
        ' ', '\u{258f}', '\u{258e}', '\u{258d}', '\u{258c}', '\u{258b}', '\u{258a}', '\u{2589}',
    ];
    let eighths = (share.clamp(0.0, 1.0) * (BAR_CELLS * 8) as f32).round() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let mut bar = "\u{2588}".repeat(full);
    if full < BAR_CELLS {
        bar.push(EIGHTHS[rest]);
        bar.push_str(&" ".repeat(BAR_CELLS - full - 1));
    }
    bar
}

fn table(out: &mut impl Write, file: &str, outcome: Outcome<'_>, bars: bool) -> io::Result<()> {
    // A name from a disk may hold anything, a terminal obeys escape sequences.
    let file: String = file
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    writeln!(out, "{file}")?;
    match outcome {
        Ok(row) => {
            for p in &row.predictions {
                let wnid = p.wnid.as_deref().unwrap_or("-");
                let bar = if bars {
                    format!("{}  ", bar(p.probability))
                } else {
                    String::new()
                };
                writeln!(
                    out,
                    "  {:>7.2} %  {bar}{:<9}  {:>3}  {}",
                    p.probability * 100.0,
                    wnid,
                    p.index,
                    p.label
                )?;
            }
            Ok(())
        }
        Err(error) => writeln!(out, "  error: {error}"),
    }
}

fn jsonl(out: &mut impl Write, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
    let line = match outcome {
        Ok(row) => Line::Good {
            file,
            predictions: row.predictions.iter().map(Entry::from).collect(),
            embedding: row.embedding.as_deref(),
            logits: row.logits.as_deref(),
        },
        Err(error) => Line::Bad { file, error },
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    out.write_all(&bytes)?;
    out.flush()
}

fn csv_rows(out: &mut csv::Writer<impl Write>, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
    match outcome {
        Ok(row) => {
            for (rank, p) in row.predictions.iter().enumerate() {
                let numbers = [
                    (rank + 1).to_string(),
                    p.index.to_string(),
                    p.probability.to_string(),
                ];
                let [rank, index, probability] = &numbers;
                let wnid = p.wnid.as_deref().unwrap_or_default();
                out.write_record([file, rank, index, wnid, &p.label, probability, ""])
                    .map_err(csv_error)?;
            }
        }
        Err(error) => out
            .write_record([file, "", "", "", "", "", error])
            .map_err(csv_error)?,
    }
    out.flush()
}

pub(super) fn csv_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_one_width_and_a_length_by_their_share() {
        for (share, full) in [(0.0, 0), (0.5, 12), (1.0, 24), (2.0, 24), (f32::NAN, 0)] {
            let bar = bar(share);
            assert_eq!(bar.chars().count(), BAR_CELLS, "{share}");
            assert_eq!(
                bar.chars().filter(|c| *c == '\u{2588}').count(),
                full,
                "{share}"
            );
        }
        assert_eq!(bar(1.0 / 48.0).chars().next(), Some('\u{258c}'));
    }
}
