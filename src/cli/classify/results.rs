//! Writes results as a table for people, or as JSON lines, CSV or Parquet for programs.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::parquet::PartWriter;
use crate::cli::output::{guard_cell, printable, printable_json};
use crate::service::Prediction;

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ResultFormat {
    /// Aligned columns for people
    Table,
    /// One JSON object for each image, one per line
    Jsonl,
    /// Comma-separated values with a heading, and one line for each class
    Csv,
    /// A folder of Parquet files, with one row for each image; needs --output
    Parquet,
}

/// What was found out about one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageResult {
    /// The most probable classes, the most probable first.
    pub(super) predictions: Vec<Prediction>,
    /// How well the image fits a head's classes; absent for the checkpoint's own classes.
    pub(super) known: Option<f32>,
    /// The pooled features, if they were asked for.
    pub(super) embedding: Option<Vec<f32>>,
    /// The logits by class index, if they were asked for.
    pub(super) logits: Option<Vec<f32>>,
}

/// What a table has beside the classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ExtraColumns {
    /// The pooled features, in Parquet.
    pub(super) embeddings: bool,
    /// How well the image fits the classes of a head, in Parquet and CSV.
    pub(super) known: bool,
}

/// Writes results one by one.
///
/// The formats for programs are written one whole image at a time. If the process ends at any
/// moment, only the last image can be half written.
pub(super) enum ResultWriter {
    Table {
        out: Box<dyn Write>,
        /// Whether to draw a bar for each probability.
        bars: bool,
    },
    Jsonl(Box<dyn Write>),
    Csv {
        out: Box<dyn Write>,
        /// Whether there is the column [`KNOWN_COLUMN`].
        known: bool,
    },
    Parquet(Box<PartWriter>),
}

impl ResultWriter {
    /// Creates a writer to standard output, which draws bars if that is a terminal.
    pub(super) fn to_stdout(format: ResultFormat, extra: ExtraColumns) -> io::Result<Self> {
        let bars = io::stdout().is_terminal();
        Self::new(format, Box::new(io::stdout()), bars, true, extra)
    }

    /// Creates a writer of every format but Parquet.
    ///
    /// `is_new` says that nothing has been written to `out` yet, so that CSV needs its heading.
    pub(super) fn new(
        format: ResultFormat,
        mut out: Box<dyn Write>,
        bars: bool,
        is_new: bool,
        extra: ExtraColumns,
    ) -> io::Result<Self> {
        Ok(match format {
            ResultFormat::Table => Self::Table {
                out: Box::new(BufWriter::new(out)),
                bars,
            },
            ResultFormat::Jsonl => Self::Jsonl(out),
            ResultFormat::Csv => {
                let known = extra.known;
                if is_new {
                    write_csv(&mut out, [csv_columns(known)])?;
                }
                Self::Csv { out, known }
            }
            ResultFormat::Parquet => {
                return Err(io::Error::other("Parquet is written to a folder"));
            }
        })
    }

    /// Writes the result of one image, or the reason why there is none.
    pub(super) fn write(
        &mut self,
        file: &str,
        result: &Result<ImageResult, String>,
    ) -> io::Result<()> {
        match self {
            Self::Table { out, bars } => write_table(out, file, result, *bars),
            Self::Jsonl(out) => write_json_line(out, file, result),
            Self::Csv { out, known } => write_csv_rows(out, file, result, *known),
            Self::Parquet(parts) => parts.push(file, result),
        }
    }

    /// Writes what is still held back.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Table { mut out, .. } => out.flush(),
            Self::Jsonl(mut out) | Self::Csv { mut out, .. } => out.flush(),
            Self::Parquet(mut parts) => parts.finish(),
        }
    }
}

/// The width of a bar for the probability 1, in cells of a terminal.
const BAR_CELLS: usize = 24;

fn write_table(
    out: &mut impl Write,
    file: &str,
    result: &Result<ImageResult, String>,
    bars: bool,
) -> io::Result<()> {
    // A terminal obeys escape sequences, and names of files and classes may contain some.
    writeln!(out, "{}", printable(file))?;
    match result {
        Ok(result) => {
            for prediction in &result.predictions {
                let bar = if bars {
                    format!("{}  ", bar(prediction.probability))
                } else {
                    String::new()
                };
                writeln!(
                    out,
                    "  {:>7.2} %  {bar}{:<9}  {:>3}  {}",
                    prediction.probability * 100.0,
                    prediction.wnid.as_deref().unwrap_or("-"),
                    prediction.index,
                    printable(&prediction.label)
                )?;
            }
            if let Some(known) = result.known {
                let share = known * 100.0;
                writeln!(
                    out,
                    "  fits better than {share:.0} % of the images of the head"
                )?;
            }
        }
        Err(error) => writeln!(out, "  error: {}", printable(error))?,
    }
    out.flush()
}

/// Draws a share from 0 to 1 as a bar, in steps of an eighth of a cell.
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

/// A line of JSON. The names of its fields are part of the interface.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonLine<'a> {
    Good {
        file: &'a str,
        predictions: Vec<JsonPrediction<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        known: Option<f32>,
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
struct JsonPrediction<'a> {
    index: usize,
    wnid: Option<&'a str>,
    label: &'a str,
    probability: f32,
}

impl<'a> From<&'a Prediction> for JsonPrediction<'a> {
    fn from(prediction: &'a Prediction) -> Self {
        Self {
            index: prediction.index,
            wnid: prediction.wnid.as_deref(),
            label: &prediction.label,
            probability: prediction.probability,
        }
    }
}

fn write_json_line(
    out: &mut impl Write,
    file: &str,
    result: &Result<ImageResult, String>,
) -> io::Result<()> {
    let line = match result {
        Ok(result) => JsonLine::Good {
            file,
            predictions: result.predictions.iter().map(Into::into).collect(),
            known: result.known,
            embedding: result.embedding.as_deref(),
            logits: result.logits.as_deref(),
        },
        Err(error) => JsonLine::Bad { file, error },
    };
    let text = printable_json(serde_json::to_string(&line)? + "\n");
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The columns of CSV.
///
/// `rank` counts from 1. A file that failed has one line, with only `file` and `error`.
const COLUMNS: [&str; 7] = [
    "file",
    "rank",
    "index",
    "wnid",
    "label",
    "probability",
    "error",
];

/// The column that follows the others where a head classifies.
const KNOWN_COLUMN: &str = "known";

/// Returns the columns of CSV, with or without [`KNOWN_COLUMN`].
pub(super) fn csv_columns(known: bool) -> Vec<&'static str> {
    let extra = known.then_some(KNOWN_COLUMN);
    COLUMNS.into_iter().chain(extra).collect()
}

fn write_csv_rows(
    out: &mut impl Write,
    file: &str,
    result: &Result<ImageResult, String>,
    known: bool,
) -> io::Result<()> {
    let file = printable(file);
    let file = guard_cell(&file);
    match result {
        Ok(result) => {
            let fit = result.known.map(|known| known.to_string());
            let rows = result.predictions.iter().enumerate();
            let rows = rows.map(|(i, prediction)| {
                let mut row = vec![
                    file.clone().into_owned(),
                    (i + 1).to_string(),
                    prediction.index.to_string(),
                    prediction.wnid.clone().unwrap_or_default(),
                    guard_cell(&printable(&prediction.label)).into_owned(),
                    prediction.probability.to_string(),
                    String::new(),
                ];
                row.extend(known.then(|| fit.clone().unwrap_or_default()));
                row
            });
            write_csv(out, rows)
        }
        Err(error) => {
            let error = printable(error);
            let error = guard_cell(&error);
            let mut row = vec![&*file, "", "", "", "", "", &*error];
            row.extend(known.then_some(""));
            write_csv(out, [row])
        }
    }
}

/// Writes rows of CSV in one piece.
fn write_csv<T: AsRef<[u8]>>(
    out: &mut impl Write,
    rows: impl IntoIterator<Item = Vec<T>>,
) -> io::Result<()> {
    let mut text = csv::Writer::from_writer(Vec::new());
    for row in rows {
        text.write_record(row).map_err(csv_error)?;
    }
    out.write_all(&text.into_inner().map_err(io::Error::other)?)?;
    out.flush()
}

/// Converts an error of the `csv` crate.
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
