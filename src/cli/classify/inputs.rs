//! What the command line names: files, folders, patterns, lists, URLs and standard input. Found one after the other as they are asked for, so
//! that an archive of any size takes no memory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use walkdir::WalkDir;

use crate::service::Source;

/// Files with these endings are taken from a folder; a file that is named itself is tried whatever it is called.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// One thing to classify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Input {
    File(PathBuf, String),
    Url(String),
    Stdin,
    /// Could not even be listed; the text says why.
    Unreadable(String, String),
}

/// Inputs as they are found.
type Found = Box<dyn Iterator<Item = Input>>;

/// Every input that the command line names, in its order: those of a folder by their names, those of a list line by line.
pub(in crate::cli) fn expand(
    named: &[String],
    lists: &[String],
) -> impl Iterator<Item = Input> + use<> {
    let (named, lists) = (named.to_vec(), lists.to_vec());
    let named = named.into_iter().flat_map(|name| match name.as_str() {
        "-" => one(Input::Stdin),
        _ => expand_one(&name),
    });
    let listed = lists.into_iter().flat_map(|list| expand_list(&list));
    named.chain(listed)
}

fn one(input: Input) -> Found {
    Box::new(std::iter::once(input))
}

fn expand_one(name: &str) -> Found {
    let path = Path::new(name);
    if is_url(name) {
        one(Input::Url(name.to_owned()))
    } else if path.is_dir() {
        images_below(path)
    } else if !path.exists() && name.contains(['*', '?', '[']) {
        matches(name)
    } else {
        one(Input::File(path.to_owned(), name.to_owned()))
    }
}

/// What a pattern matches, in the order of the names; folders among it are searched.
fn matches(pattern: &str) -> Found {
    let unreadable = |reason: String| one(Input::Unreadable(pattern.to_owned(), reason));
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
                        Ok(found) if found.is_dir() => images_below(&path),
                        // A pipe that nobody writes to would keep the run waiting for ever.
                        Ok(found) if !found.is_file() => {
                            one(Input::Unreadable(name, "no regular file".to_owned()))
                        }
                        // What cannot even be looked at says why when it is opened.
                        _ => one(Input::File(path, name)),
                    }
                }
                Err(error) => one(Input::Unreadable(
                    error.path().display().to_string(),
                    error.to_string(),
                )),
            }))
        }
    }
}

/// The lines of a file, or of standard input for `-`; each names what an argument may, but for `-`. Empty lines say nothing.
fn expand_list(list: &str) -> Found {
    let lines: Box<dyn BufRead> = if list == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        match File::open(list) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => return one(Input::Unreadable(list.to_owned(), error.to_string())),
        }
    };
    let list = list.to_owned();
    let line = move |line: io::Result<String>| match line {
        Ok(line) if line.trim().is_empty() => Box::new(std::iter::empty()),
        Ok(line) => expand_one(&line),
        Err(error) => one(Input::Unreadable(list.clone(), error.to_string())),
    };
    Box::new(lines.lines().flat_map(line))
}

fn is_url(name: &str) -> bool {
    let start = name.get(..8).unwrap_or(name).to_ascii_lowercase();
    ["http://", "https://", "data:"]
        .iter()
        .any(|scheme| start.starts_with(scheme))
}

fn images_below(folder: &Path) -> Found {
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
        return one(Input::Unreadable(folder.display().to_string(), reason));
    }
    Box::new(found)
}

impl Input {
    /// What results call it.
    pub(in crate::cli) fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::Url(name) | Self::Unreadable(name, _) => name,
            Self::Stdin => "-",
        }
    }

    /// Its bytes, or the URL for the service to fetch. `limit` bounds a file as it bounds a fetch.
    pub(in crate::cli) async fn read(self, limit: u64) -> Result<Source, String> {
        match self {
            Self::Url(url) => Ok(Source::Url(url)),
            Self::Unreadable(_, reason) => Err(reason),
            Self::Stdin => {
                let mut bytes = Vec::new();
                let mut stdin = tokio::io::stdin().take(limit.saturating_add(1));
                let read = stdin.read_to_end(&mut bytes).await;
                read.map_err(|e| e.to_string())?;
                within(limit, bytes)
            }
            // All of it at once: tokio's files go to another thread and back for every piece, which cost a hundredth of the throughput.
            Self::File(path, _) => {
                let reading = tokio::task::spawn_blocking(move || read_file(&path, limit));
                let bytes = reading.await.map_err(|e| e.to_string())?;
                within(limit, bytes.map_err(|e| e.to_string())?)
            }
        }
    }
}

/// The file's first bytes, one more than `limit` at most.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let most = limit.saturating_add(1);
    let expected = file.metadata()?.len().min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn within(limit: u64, bytes: Vec<u8>) -> Result<Source, String> {
    if bytes.len() as u64 > limit {
        return Err(format!(
            "larger than {limit} bytes; --fetch-max-bytes allows more"
        ));
    }
    Ok(Source::Bytes(Bytes::from(bytes)))
}

/// One machine's part of the inputs: those whose name's digest falls to it, whatever the others see. `2/5` is the second of five.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) number: u64,
    pub(super) of: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| {
            Some(Self {
                number: number.parse().ok()?,
                of: of.parse().ok()?,
            })
        });
        let valid =
            parsed.filter(|shard| (1..=shard.of).contains(&shard.number) && shard.of <= 1_000_000);
        valid.ok_or_else(|| "expected a part and the number of parts, such as 1/4".to_owned())
    }
}

impl Shard {
    pub(super) fn takes(self, name: &str) -> bool {
        digest(name) % u128::from(self.of) == u128::from(self.number - 1)
    }
}

/// 128 bits of a name's SHA-256: no two names of any archive share them, on any machine they are the same.
fn digest(name: &str) -> u128 {
    let hash = Sha256::digest(name.as_bytes());
    hash.iter()
        .take(16)
        .fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

/// Names, at 16 bytes each.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<u128>);

impl Names {
    pub(super) fn insert(&mut self, name: &str) {
        self.0.insert(digest(name));
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&digest(name))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_falls_to_exactly_one_shard() {
        for of in [1, 2, 7] {
            for i in 0..100 {
                let name = format!("archive/{i}.jpg");
                let takers = (1..=of).filter(|&number| Shard { number, of }.takes(&name));
                assert_eq!(takers.count(), 1, "{name} of {of}");
            }
        }
    }

    #[test]
    fn a_shard_is_a_part_and_a_number_of_parts() {
        assert_eq!("2/5".parse(), Ok(Shard { number: 2, of: 5 }));
        for wrong in ["", "2", "0/5", "6/5", "a/b", "1/0", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
