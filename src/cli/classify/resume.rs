//! What an earlier run has finished, read from what it wrote; what it left half written is cut off. Decides nothing about inputs.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Deserialize;

use super::inputs::{Names, Shard};
use super::output::{COLUMNS, Format, Writer, csv_error, csv_heading};
use super::parquet::{self, Parts};

/// Where results go, and what is there already.
pub(super) struct Output {
    pub(super) writer: Writer,
    pub(super) done: Names,
}

/// Opens what `--output` names: new, or to be continued.
pub(super) fn open(
    path: &Path,
    format: Format,
    resume: bool,
    shard: Option<Shard>,
    embeddings: bool,
) -> io::Result<Output> {
    let mut done = Names::default();
    let writer = match format {
        Format::Parquet => {
            if resume && path.exists() {
                parquet::finished(path, &mut done)?;
            } else if path.exists() && path.read_dir()?.next().is_some() {
                return Err(exists());
            }
            Writer::Parquet(Box::new(Parts::open(path, shard, embeddings)?))
        }
        _ => {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            if file.metadata()?.len() > 0 {
                match (resume, format) {
                    (true, Format::Csv) => keep(&mut file, csv_finished, &mut done)?,
                    (true, _) => keep(&mut file, jsonl_finished, &mut done)?,
                    (false, _) => return Err(exists()),
                }
            }
            if format == Format::Csv && file.stream_position()? == 0 {
                file.write_all(&csv_heading()?)?;
            }
            match format {
                Format::Csv => Writer::Csv(Box::new(file)),
                Format::Jsonl => Writer::Jsonl(Box::new(file)),
                _ => Writer::Table {
                    out: Box::new(io::BufWriter::new(file)),
                    bars: false,
                },
            }
        }
    };
    Ok(Output { writer, done })
}

fn exists() -> io::Error {
    let text = "it is there already; --resume continues it, or name another";
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// Cuts a file to the bytes that are whole, and stands behind them.
fn keep(
    file: &mut File,
    finished: fn(&mut File, &mut Names) -> io::Result<u64>,
    done: &mut Names,
) -> io::Result<()> {
    let whole = finished(file, done)?;
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    Ok(())
}

#[derive(Deserialize)]
struct Named {
    file: String,
}

/// Whole lines are finished images; a last one without its end is not.
fn jsonl_finished(file: &mut File, done: &mut Names) -> io::Result<u64> {
    let mut lines = BufReader::new(file);
    let (mut whole, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let length = lines.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(whole);
        }
        let named: Named =
            serde_json::from_slice(&line).map_err(|error| not_ours(whole, &error.to_string()))?;
        done.insert(&named.file);
        whole += length as u64;
    }
}

fn not_ours(at: u64, reason: &str) -> io::Error {
    io::Error::other(format!(
        "it was not written by `classify` in this format: at byte {at}: {reason}"
    ))
}

/// Lines of one file belong together, and whether the last file has all of its lines cannot be told: it is done again. Where the last line is
/// cut off, its file's name may be too, so the file before it is done again as well.
fn csv_finished(file: &mut File, done: &mut Names) -> io::Result<u64> {
    file.rewind()?;
    let mut ends_with_line = Tail::default();
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(Tee(BufReader::new(file), &mut ends_with_line));
    let heading = reader.headers().map_err(csv_error)?.clone();
    if heading.iter().ne(COLUMNS) {
        return Err(not_ours(0, "its first line has other columns"));
    }
    // The files that are not certain yet, with the byte where each begins: the last, and the one before it.
    let mut open: Vec<(String, u64)> = Vec::new();
    let mut record = csv::StringRecord::new();
    let mut cut_off = false;
    loop {
        let start = reader.position().byte();
        // A name cut off within a character is no text any more.
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) if matches!(error.kind(), csv::ErrorKind::Utf8 { .. }) => {
                cut_off = true;
                open.push((String::new(), start));
                break;
            }
            Err(error) => return Err(csv_error(error)),
        }
        cut_off = record.len() != COLUMNS.len();
        let name = record.get(0).unwrap_or_default();
        if open.last().is_none_or(|(last, _)| last != name) {
            open.push((name.to_owned(), start));
            if open.len() > 2 {
                done.insert(&open.remove(0).0);
            }
        }
    }
    let end = reader.position().byte();
    drop(reader);
    cut_off |= !ends_with_line.0;
    if open.len() == 2 && !cut_off {
        done.insert(&open.remove(0).0);
    }
    Ok(open.first().map_or(end, |(_, start)| *start))
}

/// Whether the last byte read ended a line.
#[derive(Default)]
struct Tail(bool);

/// Reads through, watching the last byte.
struct Tee<'a, R>(R, &'a mut Tail);

impl<R: io::Read> io::Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        if let Some(last) = buffer[..read].last() {
            self.1.0 = *last == b'\n';
        }
        Ok(read)
    }
}
