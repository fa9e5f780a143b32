//! What the command line names: files, folders, URLs and standard input.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use walkdir::WalkDir;

use crate::service::Source;

/// Files with these endings are taken from a folder; a file that is named itself is tried whatever it is called.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// One thing to classify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    File(PathBuf, String),
    Url(String),
    Stdin,
    /// Could not even be listed; the text says why.
    Unreadable(String, String),
}

/// Folders to their files, in the order of their names; all else stays as it is.
pub(super) fn expand(named: &[String]) -> Vec<Input> {
    named.iter().flat_map(|name| expand_one(name)).collect()
}

fn expand_one(name: &str) -> Vec<Input> {
    let path = Path::new(name);
    if name == "-" {
        vec![Input::Stdin]
    } else if is_url(name) {
        vec![Input::Url(name.to_owned())]
    } else if path.is_dir() {
        let found = images_below(path);
        if found.is_empty() {
            let reason = format!(
                "there are no images in this folder (names ending in {})",
                ENDINGS.join(", ")
            );
            return vec![Input::Unreadable(name.to_owned(), reason)];
        }
        found
    } else {
        vec![Input::File(path.to_owned(), name.to_owned())]
    }
}

fn is_url(name: &str) -> bool {
    let start = name.get(..8).unwrap_or(name).to_ascii_lowercase();
    ["http://", "https://", "data:"]
        .iter()
        .any(|scheme| start.starts_with(scheme))
}

fn images_below(folder: &Path) -> Vec<Input> {
    WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(|entry| match entry {
            Ok(entry) => {
                let ending = entry
                    .path()
                    .extension()
                    .map(|e| e.to_string_lossy().to_ascii_lowercase());
                let is_image =
                    ending.is_some_and(|e| ENDINGS.contains(&e.as_str())) && entry.path().is_file();
                is_image.then(|| {
                    Input::File(entry.path().to_owned(), entry.path().display().to_string())
                })
            }
            Err(error) => {
                let name = error.path().unwrap_or(folder).display().to_string();
                Some(Input::Unreadable(name, error.to_string()))
            }
        })
        .collect()
}

impl Input {
    /// What results call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::Url(name) | Self::Unreadable(name, _) => name,
            Self::Stdin => "-",
        }
    }

    /// Its bytes, or the URL for the service to fetch. `limit` bounds a file as it bounds a fetch.
    pub(super) async fn read(self, limit: u64) -> Result<Source, String> {
        match self {
            Self::Url(url) => Ok(Source::Url(url)),
            Self::Unreadable(_, reason) => Err(reason),
            Self::Stdin => read_up_to(tokio::io::stdin(), limit).await,
            Self::File(path, _) => {
                let file = tokio::fs::File::open(&path)
                    .await
                    .map_err(|e| e.to_string())?;
                read_up_to(file, limit).await
            }
        }
    }
}

async fn read_up_to(from: impl tokio::io::AsyncRead + Unpin, limit: u64) -> Result<Source, String> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .await
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!(
            "larger than {limit} bytes; --fetch-max-bytes allows more"
        ));
    }
    Ok(Source::Bytes(Bytes::from(bytes)))
}
