//! Writes results as a folder of Parquet files, which pandas, DuckDB and Spark read as one table.
//!
//! A part gets its final name only when all of it is on the disk. If the process ends at any
//! moment, it leaves whole parts, and at most one unfinished file that the next run deletes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::{ColumnWriter, ColumnWriterImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RowAccessor;
use parquet::schema::parser::parse_message_type;

use super::results::{ExtraColumns, ImageResult};
use super::selection::{NameSet, Shard};
use crate::service::Prediction;

/// The number of images in one part.
///
/// A part is kept in memory until it is written: 8 MB with embeddings. It is also what a crash
/// costs at most.
const PART_ROWS: usize = 1024;

/// The ending of a whole part.
const ENDING: &str = ".parquet";

/// The ending of a part that is being written.
const UNFINISHED: &str = ".parquet.unfinished";

/// The schema's column for the name of the image, which every row has.
const FILE_COLUMN: &str = "required binary file (STRING);";

/// The schema's columns for the outcome. A row has either an error or predictions.
const OUTCOME_COLUMNS: &str = "
    optional binary error (STRING);
    optional group predictions (LIST) {
        repeated group list {
            required group element {
                required int32 index;
                optional binary wnid (STRING);
                required binary label (STRING);
                required float probability;
            }
        }
    }";

/// The schema's column for how well an image fits the classes of a head, where one classifies.
const KNOWN_COLUMN: &str = "optional float known;";

/// The schema's column for the pooled features, if they were asked for.
const EMBEDDING_COLUMN: &str =
    "optional group embedding (LIST) { repeated group list { required float element; } }";

/// An image's name, and its result or the reason why there is none.
type Row = (String, Result<ImageResult, String>);

/// Collects rows, and writes a part whenever there are [`PART_ROWS`] of them.
pub(super) struct PartWriter {
    folder: PathBuf,
    /// What the names of this run's parts begin with.
    prefix: String,
    /// The number of the next part.
    next: usize,
    extra: ExtraColumns,
    rows: Vec<Row>,
}

impl PartWriter {
    /// Opens a folder, which is created if it does not exist, and continues the parts in it.
    ///
    /// Machines with different shards may share a folder: each has a prefix of its own.
    pub(super) fn open(
        folder: &Path,
        shard: Option<Shard>,
        extra: ExtraColumns,
    ) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let prefix = shard.map_or_else(
            || "part-".to_owned(),
            |Shard { part, parts }| format!("part-{part}of{parts}-"),
        );
        let mut next = 0;
        for path in list_files(folder, &prefix)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(UNFINISHED) {
                fs::remove_file(&path)?;
            } else if let Some(number) = part_number(&name, &prefix) {
                next = next.max(number + 1);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            prefix,
            next,
            extra,
            rows: Vec::new(),
        })
    }

    /// Adds a row, and writes a part if it is full.
    pub(super) fn push(
        &mut self,
        file: &str,
        result: &Result<ImageResult, String>,
    ) -> io::Result<()> {
        self.rows.push((file.to_owned(), result.clone()));
        if self.rows.len() >= PART_ROWS {
            self.write_part()?;
        }
        Ok(())
    }

    /// Writes the last rows as a part of their own.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.write_part()
    }

    fn write_part(&mut self) -> io::Result<()> {
        let name = format!("{}{:06}", self.prefix, self.next);
        // The temporary file is deleted if anything below fails. Its name is not random, so that
        // the next run finds what a crash has left; and it is created by `File::create`, because
        // `tempfile` would let only this user read it.
        let unfinished = tempfile::Builder::new()
            .prefix(&name)
            .suffix(UNFINISHED)
            .rand_bytes(0)
            .make_in(&self.folder, |path| File::create(path))?;
        write_rows(unfinished.as_file(), &self.rows, self.extra).map_err(io_error)?;
        unfinished.as_file().sync_all()?;
        unfinished.persist(self.folder.join(format!("{name}{ENDING}")))?;
        self.next += 1;
        self.rows.clear();
        Ok(())
    }
}

/// Lists the files of a folder whose names begin with `prefix`, sorted.
fn list_files(folder: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the number in the name of a whole part, or `None` if it is not one with this prefix.
fn part_number(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?
        .strip_suffix(ENDING)?
        .parse()
        .ok()
}

fn io_error(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

/// Adds the names of the images in the whole parts of a folder to `names`.
pub(super) fn read_finished(folder: &Path, names: &mut NameSet) -> io::Result<()> {
    for path in list_files(folder, "part-")? {
        if !path.to_string_lossy().ends_with(ENDING) {
            continue;
        }
        let unreadable = |error: ParquetError| {
            io::Error::other(format!("{} cannot be read: {error}", path.display()))
        };
        let reader = SerializedFileReader::new(File::open(&path)?).map_err(unreadable)?;
        let only_file =
            parse_message_type(&format!("message row {{ {FILE_COLUMN} }}")).map_err(io_error)?;
        for row in reader.get_row_iter(Some(only_file)).map_err(unreadable)? {
            names.insert(
                row.and_then(|row| row.get_string(0).cloned())
                    .map_err(unreadable)?
                    .as_str(),
            );
        }
    }
    Ok(())
}

/// Writes rows as one Parquet file with one row group.
fn write_rows(file: &File, rows: &[Row], extra: ExtraColumns) -> Result<(), ParquetError> {
    let known = if extra.known { KNOWN_COLUMN } else { "" };
    let embedding = if extra.embeddings {
        EMBEDDING_COLUMN
    } else {
        ""
    };
    let schema = format!("message row {{ {FILE_COLUMN} {OUTCOME_COLUMNS} {known} {embedding} }}");
    let schema = Arc::new(parse_message_type(&schema)?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build()))?;
    let mut group = writer.next_row_group()?;
    while let Some(mut column) = group.next_column()? {
        write_column(column.untyped(), rows)?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

/// Fills the next column of the schema.
fn write_column(writer: &mut ColumnWriter<'_>, rows: &[Row]) -> Result<(), ParquetError> {
    let path = match &writer {
        ColumnWriter::ByteArrayColumnWriter(w) => w.get_descriptor().path().string(),
        ColumnWriter::Int32ColumnWriter(w) => w.get_descriptor().path().string(),
        ColumnWriter::FloatColumnWriter(w) => w.get_descriptor().path().string(),
        _ => String::new(),
    };
    match (writer, path.as_str()) {
        (ColumnWriter::ByteArrayColumnWriter(w), "file") => {
            let names: Vec<ByteArray> = rows.iter().map(|(file, _)| file.as_str().into()).collect();
            w.write_batch(&names, None, None)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), "error") => {
            let errors = rows.iter().filter_map(|(_, result)| result.as_ref().err());
            let errors: Vec<ByteArray> = errors.map(|error| error.as_str().into()).collect();
            let failed = rows.iter().map(|(_, result)| result.is_err());
            let definition_levels: Vec<i16> = failed.map(i16::from).collect();
            w.write_batch(&errors, Some(&definition_levels), None)?;
        }
        (ColumnWriter::Int32ColumnWriter(w), "predictions.list.element.index") => {
            let column = ListColumn::of_predictions(rows, 2, |p| i32::try_from(p.index).ok());
            column.write(w)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), "predictions.list.element.wnid") => {
            let column =
                ListColumn::of_predictions(rows, 3, |p| p.wnid.as_deref().map(ByteArray::from));
            column.write(w)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), "predictions.list.element.label") => {
            let column = ListColumn::of_predictions(rows, 2, |p| Some(p.label.as_str().into()));
            column.write(w)?;
        }
        (ColumnWriter::FloatColumnWriter(w), "predictions.list.element.probability") => {
            let column = ListColumn::of_predictions(rows, 2, |p| Some(p.probability));
            column.write(w)?;
        }
        (ColumnWriter::FloatColumnWriter(w), "known") => {
            let known = |(_, result): &Row| result.as_ref().ok().and_then(|result| result.known);
            let values: Vec<f32> = rows.iter().filter_map(known).collect();
            let levels = rows.iter().map(|row| i16::from(known(row).is_some()));
            w.write_batch(&values, Some(&levels.collect::<Vec<_>>()), None)?;
        }
        (ColumnWriter::FloatColumnWriter(w), "embedding.list.element") => {
            let column = ListColumn::new(rows, 2, |result| {
                let features = result.embedding.as_ref()?;
                Some(features.iter().copied().map(Some))
            });
            column.write(w)?;
        }
        (_, other) => {
            return Err(ParquetError::General(format!(
                "no column is called {other}"
            )));
        }
    }
    Ok(())
}

/// A column of lists in the form in which Parquet stores it.
///
/// Parquet stores the values of all lists one after the other, without those that are absent.
/// Beside them it stores two numbers for each element:
///
/// - The definition level says how much of the element there is: 0 if the row has no list, 1 if its
///   list is empty, 2 for an element, and 3 for the value of an optional field of an element.
/// - The repetition level is 0 for the first element of a list, and 1 for the others.
///
/// <https://parquet.apache.org/docs/file-format/nestedencoding/> explains both.
struct ListColumn<T> {
    values: Vec<T>,
    definition_levels: Vec<i16>,
    repetition_levels: Vec<i16>,
}

impl<T> ListColumn<T> {
    /// Collects a field of the predictions of all rows; see [`ListColumn::new`].
    fn of_predictions<'a>(
        rows: &'a [Row],
        full_level: i16,
        field: impl Fn(&'a Prediction) -> Option<T>,
    ) -> Self {
        Self::new(rows, full_level, |result| {
            Some(result.predictions.iter().map(&field))
        })
    }

    /// Collects the lists that `list` takes from the rows. Rows that failed have no list.
    ///
    /// `full_level` is the definition level of an element whose value is there. An element without
    /// a value is one level below.
    fn new<'a, I: IntoIterator<Item = Option<T>>>(
        rows: &'a [Row],
        full_level: i16,
        list: impl Fn(&'a ImageResult) -> Option<I>,
    ) -> Self {
        let mut column = Self {
            values: Vec::new(),
            definition_levels: Vec::new(),
            repetition_levels: Vec::new(),
        };
        for (_, result) in rows {
            match result.as_ref().ok().and_then(&list) {
                None => column.push(None, 0, 0),
                Some(items) => {
                    let length_before = column.definition_levels.len();
                    for (i, item) in items.into_iter().enumerate() {
                        let level = full_level - i16::from(item.is_none());
                        column.push(item, level, i16::from(i > 0));
                    }
                    if column.definition_levels.len() == length_before {
                        column.push(None, 1, 0);
                    }
                }
            }
        }
        column
    }

    fn push(&mut self, value: Option<T>, definition_level: i16, repetition_level: i16) {
        self.values.extend(value);
        self.definition_levels.push(definition_level);
        self.repetition_levels.push(repetition_level);
    }

    fn write<D: DataType<T = T>>(
        &self,
        writer: &mut ColumnWriterImpl<'_, D>,
    ) -> Result<(), ParquetError> {
        writer.write_batch(
            &self.values,
            Some(&self.definition_levels),
            Some(&self.repetition_levels),
        )?;
        Ok(())
    }
}
