//! Finds images whose classes are known: in folders named after classes, or in a table.
//!
//! The images themselves are read later, one after the other.

use std::path::Path;

use crate::cli::Failure;
use crate::cli::inputs::{self, Input};
use crate::service::Service;

/// An image and its class.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) input: Input,
    /// The index of the class, or the reason why it is not known.
    pub(super) class: Result<usize, String>,
}

/// The columns of a table that may name the class. The first that the table has is used.
const CLASS_COLUMNS: [&str; 5] = ["class", "class_index", "wnid", "index", "label"];

/// Finds the images in `labelled`, a folder or a table.
///
/// `root` is where a table's relative file names start; without it, in the table's folder.
///
/// # Errors
///
/// Returns an error if a folder or the table cannot be read, if a folder's name is not a class, or
/// if there are no images.
pub(super) fn read(
    labelled: &Path,
    root: Option<&Path>,
    service: &Service,
) -> Result<Vec<Case>, Failure> {
    let cases = if labelled.is_dir() {
        read_folders(labelled, service)?
    } else {
        let folder = labelled.parent().unwrap_or(Path::new("."));
        read_table(labelled, root.unwrap_or(folder), service)?
    };
    if cases.is_empty() {
        return Err(format!("{}: there are no labelled images", labelled.display()).into());
    }
    Ok(cases)
}

/// Finds the images in folders that are named after their class.
fn read_folders(root: &Path, service: &Service) -> Result<Vec<Case>, Failure> {
    let unreadable = |error| format!("{}: {error}", root.display());
    let mut folders = Vec::new();
    for entry in root.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    let mut cases = Vec::new();
    for folder in folders {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let class = service
            .class(&name)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let inputs = inputs::expand(&[folder.display().to_string()], &[]);
        cases.extend(inputs.map(|input| Case {
            input,
            class: Ok(class),
        }));
    }
    Ok(cases)
}

/// Finds the images that the lines of a table name.
fn read_table(path: &Path, root: &Path, service: &Service) -> Result<Vec<Case>, Failure> {
    let wrong = |reason: String| format!("{}: {reason}", path.display());
    let reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .from_path(path);
    let mut reader = reader.map_err(|error| wrong(error.to_string()))?;
    let heading = reader
        .headers()
        .map_err(|error| wrong(error.to_string()))?
        .clone();
    let column = |name: &str| heading.iter().position(|column| column == name);
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
    let mut cases = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let name = record.get(file).unwrap_or_default().to_owned();
        let class = service.class(record.get(class).unwrap_or_default());
        cases.push(Case {
            input: Input::File(root.join(&name), name),
            class: class.map_err(|error| error.to_string()),
        });
    }
    Ok(cases)
}
