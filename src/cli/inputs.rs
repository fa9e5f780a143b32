//! Finds and reads the images that a command line names: files, folders, patterns, lists, URLs and
//! standard input.
//!
//! [`expand`] finds them one after the other as they are asked for, so an archive of any size takes
//! no memory. What cannot be found becomes an [`Input::Unreadable`], which fails like an image that
//! cannot be decoded, so that one bad name does not end a run.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use walkdir::WalkDir;

use crate::service::Source;

/// The endings of the files that are taken from a folder. A file that is named itself is read
/// whatever its ending.
const ENDINGS: [&str; 9] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif",
];

/// An image to classify, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// A file, with the name that results give it.
    File(PathBuf, String),
    /// An `http:`, `https:` or `data:` URL.
    Url(String),
    /// Standard input.
    Stdin,
    /// Something that is not there or cannot be listed: its name and the reason.
    Unreadable(String, String),
}

/// Inputs, found as the iterator is asked for them.
type Found = Box<dyn Iterator<Item = Input>>;

/// Finds every input that the command line names, in its order.
///
/// `named` are the arguments, `lists` the files that name further inputs. The files of a folder
/// come in the order of their names, those of a list line by line.
pub(super) fn expand(named: &[String], lists: &[String]) -> impl Iterator<Item = Input> + use<> {
    let (named, lists) = (named.to_vec(), lists.to_vec());
    let named = named.into_iter().flat_map(|name| match name.as_str() {
        "-" => single(Input::Stdin),
        _ => expand_name(&name),
    });
    let listed = lists.into_iter().flat_map(|list| expand_list(&list));
    named.chain(listed)
}

/// Finds what one name stands for: a URL, a folder, a pattern or a file.
fn expand_name(name: &str) -> Found {
    let path = Path::new(name);
    if is_url(name) {
        single(Input::Url(name.to_owned()))
    } else if path.is_dir() {
        expand_folder(path)
    } else if !path.exists() && name.contains(['*', '?', '[']) {
        expand_pattern(name)
    } else {
        single(Input::File(path.to_owned(), name.to_owned()))
    }
}

/// Finds the files that a pattern matches, in the order of their names. Folders that it matches are
/// searched.
fn expand_pattern(pattern: &str) -> Found {
    let unreadable = |reason: String| single(Input::Unreadable(pattern.to_owned(), reason));
    match glob::glob(pattern) {
        Err(error) => unreadable(format!("this is no pattern: {error}")),
        Ok(paths) => {
            let mut paths = paths.peekable();
            if paths.peek().is_none() {
                return unreadable("nothing matches this pattern".to_owned());
            }
            Box::new(paths.flat_map(|found| match found {
                Ok(path) => {
                    let name = path.display().to_string();
                    match path.metadata() {
                        Ok(found) if found.is_dir() => expand_folder(&path),
                        // A pipe that nobody writes to would block the run for ever.
                        Ok(found) if !found.is_file() => {
                            single(Input::Unreadable(name, "no regular file".to_owned()))
                        }
                        // If the metadata cannot be read, opening the file will say why.
                        _ => single(Input::File(path, name)),
                    }
                }
                Err(error) => single(Input::Unreadable(
                    error.path().display().to_string(),
                    error.to_string(),
                )),
            }))
        }
    }
}

/// Finds the inputs that the lines of a file name, or those of standard input if `list` is `-`.
///
/// A line may be whatever an argument may be, except `-`. Empty lines are skipped.
fn expand_list(list: &str) -> Found {
    let lines: Box<dyn BufRead> = if list == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        match File::open(list) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => return single(Input::Unreadable(list.to_owned(), error.to_string())),
        }
    };
    let list = list.to_owned();
    let line = move |line: io::Result<String>| match line {
        Ok(line) if line.trim().is_empty() => Box::new(std::iter::empty()),
        Ok(line) => expand_name(&line),
        Err(error) => single(Input::Unreadable(list.clone(), error.to_string())),
    };
    Box::new(lines.lines().flat_map(line))
}

fn is_url(name: &str) -> bool {
    let start = name.get(..8).unwrap_or(name).to_ascii_lowercase();
    ["http://", "https://", "data:"]
        .iter()
        .any(|scheme| start.starts_with(scheme))
}

/// Finds the images in a folder and in the folders below it, in the order of their names.
fn expand_folder(folder: &Path) -> Found {
    let root = folder.to_owned();
    let walk = WalkDir::new(folder).sort_by_file_name().into_iter();
    let mut found = walk
        .filter_map(move |entry| match entry {
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
                let name = error.path().unwrap_or(&root).display().to_string();
                Some(Input::Unreadable(name, error.to_string()))
            }
        })
        .peekable();
    if found.peek().is_none() {
        let reason = format!(
            "there are no images in this folder (names ending in {})",
            ENDINGS.join(", ")
        );
        return single(Input::Unreadable(folder.display().to_string(), reason));
    }
    Box::new(found)
}

fn single(input: Input) -> Found {
    Box::new(std::iter::once(input))
}

impl Input {
    /// Returns the name that results give the input.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::Url(name) | Self::Unreadable(name, _) => name,
            Self::Stdin => "-",
        }
    }

    /// Reads the bytes, or returns the URL for the service to fetch.
    ///
    /// A file or standard input may have `limit` bytes at most, as a fetched image may.
    ///
    /// # Errors
    ///
    /// Returns the reason why the input cannot be read.
    pub(super) async fn read(self, limit: u64) -> Result<Source, String> {
        match self {
            Self::Url(url) => Ok(Source::Url(url)),
            Self::Unreadable(_, reason) => Err(reason),
            Self::Stdin => {
                let mut bytes = Vec::new();
                let mut stdin = tokio::io::stdin().take(limit.saturating_add(1));
                let read = stdin.read_to_end(&mut bytes).await;
                read.map_err(|e| e.to_string())?;
                check_size(limit, bytes)
            }
            // One blocking task reads the whole file. tokio's files go to another thread and back
            // for every piece: without that, throughput was 2 % higher (docs/benchmarks.md).
            Self::File(path, _) => {
                let reading = tokio::task::spawn_blocking(move || read_file(&path, limit));
                let bytes = reading.await.map_err(|e| e.to_string())?;
                check_size(limit, bytes.map_err(|e| e.to_string())?)
            }
        }
    }
}

/// Reads a file up to one byte more than `limit`, which tells that the file is too large.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let most = limit.saturating_add(1);
    let expected = file.metadata()?.len().min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_size(limit: u64, bytes: Vec<u8>) -> Result<Source, String> {
    if bytes.len() as u64 > limit {
        return Err(format!(
            "larger than {limit} bytes; --fetch-max-bytes allows more"
        ));
    }
    Ok(Source::Bytes(Bytes::from(bytes)))
}
