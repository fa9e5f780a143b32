//! Results as a folder of Parquet files, as pandas, DuckDB and Spark read them. A part has its name only once it is whole on the disk: an end at
//! any moment leaves whole parts and at most one that will be thrown away.

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

use super::inputs::{Names, Shard};
use super::output::{Outcome, Row};

/// Images in one part: with embeddings 8 MB of memory, and what a crash costs at most.
const PART_ROWS: usize = 1024;

const ENDING: &str = ".parquet";
const UNFINISHED: &str = ".parquet.unfinished";

const FILE: &str = "required binary file (STRING);";

const SCHEMA: &str = "
    optional binary error (STRING);
    optional group predictions (LIST) { repeated group list { required group element {
        required int32 index; optional binary wnid (STRING); required binary label (STRING); required float probability; } } }";

const EMBEDDING: &str =
    "optional group embedding (LIST) { repeated group list { required float element; } }";

fn failed(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

/// Writes rows into parts.
pub(super) struct Parts {
    folder: PathBuf,
    prefix: String,
    next: usize,
    embeddings: bool,
    rows: Vec<(String, Result<Row, String>)>,
}

impl Parts {
    /// Continues a folder, which is made where it is not there. Machines with different shards may share it.
    pub(super) fn open(folder: &Path, shard: Option<Shard>, embeddings: bool) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let prefix = shard.map_or_else(
            || "part-".to_owned(),
            |Shard { number, of }| format!("part-{number}of{of}-"),
        );
        let mut next = 0;
        for path in listed(folder, &prefix)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(UNFINISHED) {
                fs::remove_file(&path)?;
            } else if let Some(number) = number(&name, &prefix) {
                next = next.max(number + 1);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            prefix,
            next,
            embeddings,
            rows: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, file: &str, outcome: Outcome<'_>) -> io::Result<()> {
        let outcome = outcome.cloned().map_err(str::to_owned);
        self.rows.push((file.to_owned(), outcome));
        match self.rows.len() {
            PART_ROWS.. => self.write(),
            _ => Ok(()),
        }
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let path = |ending| {
            self.folder
                .join(format!("{}{:06}{ending}", self.prefix, self.next))
        };
        let (unfinished, whole) = (path(UNFINISHED), path(ENDING));
        let file = File::create(&unfinished)?;
        write_part(&file, &self.rows, self.embeddings).map_err(failed)?;
        file.sync_all()?;
        fs::rename(unfinished, whole)?;
        self.next += 1;
        self.rows.clear();
        Ok(())
    }
}

/// Files of a folder whose names begin with `prefix`.
fn listed(folder: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
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

fn number(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?
        .strip_suffix(ENDING)?
        .parse()
        .ok()
}

/// Adds the files that the whole parts of a folder speak of.
pub(super) fn finished(folder: &Path, names: &mut Names) -> io::Result<()> {
    for path in listed(folder, "part-")? {
        if !path.to_string_lossy().ends_with(ENDING) {
            continue;
        }
        let unreadable = |error: ParquetError| {
            io::Error::other(format!("{} cannot be read: {error}", path.display()))
        };
        let reader = SerializedFileReader::new(File::open(&path)?).map_err(unreadable)?;
        let only_file = parse_message_type(&format!("message row {{ {FILE} }}")).map_err(failed)?;
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

/// A column under construction: values, and how deep each entry is defined and repeated.
struct Column<T> {
    values: Vec<T>,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

impl<T> Column<T> {
    fn of<'a, I: IntoIterator<Item = Option<T>>>(
        rows: &'a [(String, Result<Row, String>)],
        full: i16,
        list: impl Fn(&'a Row) -> Option<I>,
    ) -> Self {
        let mut column = Self {
            values: Vec::new(),
            defined: Vec::new(),
            repeated: Vec::new(),
        };
        for (_, row) in rows {
            match row.as_ref().ok().and_then(&list) {
                None => column.entry(None, 0, 0),
                Some(items) => {
                    let before = column.defined.len();
                    for (i, item) in items.into_iter().enumerate() {
                        // An element that may be absent is one level less deep where it is.
                        let depth = if item.is_some() { full } else { full - 1 };
                        column.entry(item, depth, i16::from(i > 0));
                    }
                    if column.defined.len() == before {
                        column.entry(None, 1, 0);
                    }
                }
            }
        }
        column
    }

    fn entry(&mut self, value: Option<T>, defined: i16, repeated: i16) {
        self.values.extend(value);
        self.defined.push(defined);
        self.repeated.push(repeated);
    }

    fn write<D: DataType<T = T>>(
        &self,
        writer: &mut ColumnWriterImpl<'_, D>,
    ) -> Result<(), ParquetError> {
        writer.write_batch(&self.values, Some(&self.defined), Some(&self.repeated))?;
        Ok(())
    }
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text)
}

fn write_part(
    file: &File,
    rows: &[(String, Result<Row, String>)],
    embeddings: bool,
) -> Result<(), ParquetError> {
    let embedding = if embeddings { EMBEDDING } else { "" };
    let schema = parse_message_type(&format!("message row {{ {FILE} {SCHEMA} {embedding} }}"))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties.build()))?;
    let mut group = writer.next_row_group()?;
    while let Some(mut column) = group.next_column()? {
        write_column(column.untyped(), rows)?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

/// Fills the column that is next by the schema.
fn write_column(
    writer: &mut ColumnWriter<'_>,
    rows: &[(String, Result<Row, String>)],
) -> Result<(), ParquetError> {
    let path = match &writer {
        ColumnWriter::ByteArrayColumnWriter(w) => w.get_descriptor().path().string(),
        ColumnWriter::Int32ColumnWriter(w) => w.get_descriptor().path().string(),
        ColumnWriter::FloatColumnWriter(w) => w.get_descriptor().path().string(),
        _ => String::new(),
    };
    let predictions = |row: &Row| Some(row.predictions.clone());
    match (writer, path.as_str()) {
        (ColumnWriter::ByteArrayColumnWriter(w), "file") => {
            let names: Vec<ByteArray> = rows.iter().map(|(file, _)| text(file)).collect();
            w.write_batch(&names, None, None)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), "error") => {
            let errors = rows.iter().filter_map(|(_, row)| row.as_ref().err());
            let errors: Vec<ByteArray> = errors.map(|error| text(error)).collect();
            let defined: Vec<i16> = rows
                .iter()
                .map(|(_, row)| i16::from(row.is_err()))
                .collect();
            w.write_batch(&errors, Some(&defined), None)?;
        }
        (ColumnWriter::Int32ColumnWriter(w), _) => {
            let list = |row: &Row| {
                predictions(row).map(|all| all.into_iter().map(|p| i32::try_from(p.index).ok()))
            };
            let column = Column::of(rows, 2, list);
            column.write(w)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), "predictions.list.element.wnid") => {
            let list = |row: &Row| {
                predictions(row).map(|all| all.into_iter().map(|p| p.wnid.as_deref().map(text)))
            };
            let column = Column::of(rows, 3, list);
            column.write(w)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(w), _) => {
            let list = |row: &Row| {
                predictions(row).map(|all| all.into_iter().map(|p| Some(text(&p.label))))
            };
            let column = Column::of(rows, 2, list);
            column.write(w)?;
        }
        (ColumnWriter::FloatColumnWriter(w), "embedding.list.element") => {
            let column = Column::of(rows, 2, |row: &Row| {
                row.embedding.clone().map(|all| all.into_iter().map(Some))
            });
            column.write(w)?;
        }
        (ColumnWriter::FloatColumnWriter(w), _) => {
            let list = |row: &Row| {
                predictions(row).map(|all| all.into_iter().map(|p| Some(p.probability)))
            };
            let column = Column::of(rows, 2, list);
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
