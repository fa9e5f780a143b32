//! Pictures whose classes are known: folders named after classes, or a table. Reads names; opens no picture.

use std::path::Path;

use super::super::Failure;
use crate::cli::classify::inputs::{self, Input};
use crate::service::Service;

/// A picture and its class, or why the class is unknown.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) input: Input,
    pub(super) class: Result<usize, String>,
}

/// Columns of a table that may say the class, the most telling first.
const CLASS_COLUMNS: [&str; 5] = ["class", "class_index", "wnid", "index", "label"];

pub(super) fn read(
    labelled: &Path,
    root: Option<&Path>,
    service: &Service,
) -> Result<Vec<Case>, Failure> {
    let cases = if labelled.is_dir() {
        folders(labelled, service)?
    } else {
        let folder = labelled.parent().unwrap_or(Path::new("."));
        table(labelled, root.unwrap_or(folder), service)?
    };
    match cases.is_empty() {
        true => Err(format!("{}: there are no labelled images", labelled.display()).into()),
        false => Ok(cases),
    }
}

fn folders(root: &Path, service: &Service) -> Result<Vec<Case>, Failure> {
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

fn table(path: &Path, root: &Path, service: &Service) -> Result<Vec<Case>, Failure> {
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
