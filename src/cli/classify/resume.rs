//! Continues the output of an earlier run: reads which images it has finished, and cuts off what it
//! left half written.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::parquet::{self, PartWriter};
use super::results::{ExtraColumns, ResultFormat, ResultWriter, csv_columns, csv_error};
use super::selection::{NameSet, Shard};
use crate::cli::output::unguard_cell;

/// An output that is ready for results.
pub(super) struct OpenOutput {
    pub(super) writer: ResultWriter,
    /// The names of the inputs that an earlier run has finished.
    pub(super) finished: NameSet,
}

/// Opens the file or folder that `--output` names.
///
/// # Errors
///
/// Returns an error if the output exists and `resume` is not set, or if it was not written in this
/// format by `classify`.
pub(super) fn open(
    path: &Path,
    format: ResultFormat,
    resume: bool,
    shard: Option<Shard>,
    extra: ExtraColumns,
) -> io::Result<OpenOutput> {
    if format == ResultFormat::Parquet {
        open_parquet(path, resume, shard, extra)
    } else {
        open_file(path, format, resume, extra)
    }
}

fn open_parquet(
    folder: &Path,
    resume: bool,
    shard: Option<Shard>,
    extra: ExtraColumns,
) -> io::Result<OpenOutput> {
    let mut finished = NameSet::default();
    if resume && folder.exists() {
        parquet::read_finished(folder, &mut finished)?;
    } else if folder.exists() && folder.read_dir()?.next().is_some() {
        return Err(exists_already());
    }
    let parts = PartWriter::open(folder, shard, extra)?;
    Ok(OpenOutput {
        writer: ResultWriter::Parquet(Box::new(parts)),
        finished,
    })
}

fn open_file(
    path: &Path,
    format: ResultFormat,
    resume: bool,
    extra: ExtraColumns,
) -> io::Result<OpenOutput> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let mut finished = NameSet::default();
    if file.metadata()?.len() > 0 {
        if !resume {
            return Err(exists_already());
        }
        let whole = if format == ResultFormat::Csv {
            read_finished_csv(&mut file, extra.known, &mut finished)?
        } else {
            read_finished_jsonl(&mut file, &mut finished)?
        };
        file.set_len(whole)?;
        file.seek(SeekFrom::Start(whole))?;
    }
    let is_new = file.stream_position()? == 0;
    Ok(OpenOutput {
        writer: ResultWriter::new(format, Box::new(file), false, is_new, extra)?,
        finished,
    })
}

fn exists_already() -> io::Error {
    let text = "it is there already; --resume continues it, or name another";
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

fn not_ours(position: u64, reason: &str) -> io::Error {
    io::Error::other(format!(
        "it was not written by `classify` in this format: at byte {position}: {reason}"
    ))
}

/// The part of a JSON line that says which image it is about.
#[derive(Deserialize)]
struct NamedLine {
    file: String,
}

/// Reads the names in JSON lines, and returns how many bytes at the start are whole.
///
/// Every whole line is a finished image. A last line without a line end is cut off.
fn read_finished_jsonl(file: &mut File, finished: &mut NameSet) -> io::Result<u64> {
    let mut lines = BufReader::new(file);
    let (mut whole, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let length = lines.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(whole);
        }
        let named: NamedLine =
            serde_json::from_slice(&line).map_err(|error| not_ours(whole, &error.to_string()))?;
        finished.insert(&named.file);
        whole += length as u64;
    }
}

/// Reads the names in CSV, and returns how many bytes at the start are kept.
///
/// The lines of one image belong together. Nothing tells whether the last image has all of its
/// lines, so it is always done again. If the last line is cut off, its image's name may be cut off
/// too, and look like another image; then the image before it is done again as well.
fn read_finished_csv(file: &mut File, known: bool, finished: &mut NameSet) -> io::Result<u64> {
    let columns = csv_columns(known);
    file.rewind()?;
    let mut ends_with_line_end = false;
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(WatchEnd {
            inner: BufReader::new(file),
            ends_with_line_end: &mut ends_with_line_end,
        });
    let heading = reader.headers().map_err(csv_error)?.clone();
    if heading.iter().ne(columns.iter().copied()) {
        let expected = columns.join(",");
        return Err(not_ours(
            0,
            &format!("its first line has other columns, expected {expected}"),
        ));
    }
    // The last images, at most two, whose fate is open: their names, and the byte where each
    // begins.
    let mut open: Vec<(String, u64)> = Vec::new();
    let mut record = csv::StringRecord::new();
    let mut cut_off = false;
    loop {
        let start = reader.position().byte();
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            // A name that is cut off within a character is not UTF-8 any more.
            Err(error) if matches!(error.kind(), csv::ErrorKind::Utf8 { .. }) => {
                cut_off = true;
                open.push((String::new(), start));
                break;
            }
            Err(error) => return Err(csv_error(error)),
        }
        cut_off = record.len() != columns.len();
        let name = unguard_cell(record.get(0).unwrap_or_default());
        if open.last().is_none_or(|(last, _)| last != name) {
            open.push((name.to_owned(), start));
            if open.len() > 2 {
                finished.insert(&open.remove(0).0);
            }
        }
    }
    let end = reader.position().byte();
    drop(reader);
    cut_off |= !ends_with_line_end;
    if open.len() == 2 && !cut_off {
        finished.insert(&open.remove(0).0);
    }
    Ok(open.first().map_or(end, |(_, start)| *start))
}

/// A reader that notes whether the last byte that was read ends a line.
struct WatchEnd<'a, R> {
    inner: R,
    ends_with_line_end: &'a mut bool,
}

impl<R: io::Read> io::Read for WatchEnd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(last) = buffer[..read].last() {
            *self.ends_with_line_end = *last == b'\n';
        }
        Ok(read)
    }
}
