//! Results as a table for people, or as JSON lines or CSV for programs. Writes and counts nothing else.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::service::{Classified, Prediction};

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people
    Table,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a heading; one line a class
    Csv,
}

/// A line of JSON; the names are those of the documents.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Good {
        file: &'a str,
        predictions: Vec<Entry<'a>>,
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
type Outcome<'a> = Result<&'a Classified, &'a str>;

/// Writes results one by one.
pub(super) enum Writer<W: Write> {
    Table(W),
    Jsonl(W),
    Csv {
        out: Box<csv::Writer<W>>,
        headed: bool,
    },
}

/// CSV's columns. `rank` counts from 1; a failed file has one line with only `file` and `error`.
const COLUMNS: [&str; 7] = [
    "file",
    "rank",
    "index",
    "wnid",
    "label",
    "probability",
    "error",
];

impl<W: Write> Writer<W> {
    pub(super) fn new(format: Format, out: W) -> Self {
        match format {
            Format::Table => Self::Table(out),
            Format::Jsonl => Self::Jsonl(out),
            Format::Csv => Self::Csv {
                out: Box::new(csv::Writer::from_writer(out)),
                headed: false,
            },
        }
    }

    pub(super) fn write(&mut self, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
        match self {
            Self::Table(out) => table(out, file, outcome),
            Self::Jsonl(out) => jsonl(out, file, outcome),
            Self::Csv { out, headed } => {
                if !*headed {
                    out.write_record(COLUMNS).map_err(csv_error)?;
                    *headed = true;
                }
                csv_rows(out, file, outcome)
            }
        }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Table(mut out) | Self::Jsonl(mut out) => out.flush(),
            Self::Csv { mut out, .. } => out.flush(),
        }
    }
}

fn table(out: &mut impl Write, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
    // A name from a disk may hold anything, a terminal obeys escape sequences.
    let file: String = file
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    writeln!(out, "{file}")?;
    match outcome {
        Ok(classified) => {
            for p in &classified.predictions {
                let wnid = p.wnid.as_deref().unwrap_or("-");
                writeln!(
                    out,
                    "  {:>7.2} %  {:<9}  {:>3}  {}",
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
        Ok(classified) => Line::Good {
            file,
            predictions: classified.predictions.iter().map(Entry::from).collect(),
        },
        Err(error) => Line::Bad { file, error },
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn csv_rows(out: &mut csv::Writer<impl Write>, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
    match outcome {
        Ok(classified) => {
            for (rank, p) in classified.predictions.iter().enumerate() {
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

fn csv_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
