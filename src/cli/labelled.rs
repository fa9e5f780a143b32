//! Finds images whose classes are known: in folders that are named after classes, or in a table.
//!
//! The images themselves are read later, one after the other.

use std::path::Path;

use super::Failure;
use super::inputs::{self, Input};

/// An image and the name of its class, as its folder or its table has it.
#[derive(Debug)]
pub(super) struct Labelled {
    pub(super) input: Input,
    pub(super) label: String,
}

/// The columns of a table that may name the class. The first that the table has is used.
const CLASS_COLUMNS: [&str; 5] = ["class", "class_index", "wnid", "index", "label"];

/// Finds the images in `labelled`, a folder or a table.
///
/// `root` is where a table's relative file names start; without it, in the table's folder.
///
/// # Errors
///
/// Returns an error if a folder or the table cannot be read, or if there are no images.
pub(super) fn read(labelled: &Path, root: Option<&Path>) -> Result<Vec<Labelled>, Failure> {
    let found = if labelled.is_dir() {
        read_folders(labelled)?
    } else {
        let folder = labelled.parent().unwrap_or(Path::new("."));
        read_table(labelled, root.unwrap_or(folder))?
    };
    if found.is_empty() {
        return Err(format!("{}: there are no labelled images", labelled.display()).into());
    }
    Ok(found)
}

/// Finds the images in folders that are named after their class. Folders whose names begin with a
/// dot are left out.
fn read_folders(root: &Path) -> Result<Vec<Labelled>, Failure> {
    let unreadable = |error| format!("{}: {error}", root.display());
    let mut folders = Vec::new();
    for entry in root.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.starts_with('.') {
            folders.push((path, name));
        }
    }
    folders.sort();
    let images = folders.into_iter().flat_map(|(folder, label)| {
        let inputs = inputs::expand(&[folder.display().to_string()], &[]);
        inputs.map(move |input| Labelled {
            input,
            label: label.clone(),
        })
    });
    Ok(images.collect())
}

/// Finds the images that the lines of a table name. A `.csv` has commas and quotation marks; any
/// other table has tabs and none.
fn read_table(path: &Path, root: &Path) -> Result<Vec<Labelled>, Failure> {
    let wrong = |reason: String| format!("{}: {reason}", path.display());
    let is_csv = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let reader = csv::ReaderBuilder::new()
        .delimiter(if is_csv { b',' } else { b'\t' })
        .quoting(is_csv)
        .from_path(path);
    let mut reader = reader.map_err(|error| wrong(error.to_string()))?;
    let heading = reader
        .headers()
        .map_err(|error| wrong(error.to_string()))?
        .clone();
    let column = |name: &str| {
        heading
            .iter()
            .position(|column| column.trim_start_matches('\u{feff}') == name)
    };
    let (Some(file), Some(class)) = (
        column("file"),
        CLASS_COLUMNS.iter().find_map(|name| column(name)),
    ) else {
        return Err(wrong(format!(
            "the first line must name a column `file` and one of {}",
            CLASS_COLUMNS.join(", ")
        ))
        .into());
    };
    let mut found = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let name = record.get(file).unwrap_or_default().to_owned();
        found.push(Labelled {
            input: Input::File(root.join(&name), name),
            label: record.get(class).unwrap_or_default().to_owned(),
        });
    }
    Ok(found)
}
