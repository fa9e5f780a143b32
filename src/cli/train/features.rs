//! Keeps the features of images in a file beside the head, so that a training that was interrupted,
//! or that gets new images, need not run the network again on images that it has seen.
//!
//! The file begins with a line of JSON that says whose features these are. A record for each image
//! follows: the SHA-256 of its bytes, one byte that says whether mirrored features follow, and the
//! features as little-endian `f32`. Features belong to an image's bytes, so images may be renamed,
//! moved to another class, added and removed. A last record that was cut off is dropped.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::Failure;
use imgclass_heads::NetworkId;

/// The SHA-256 of an image's bytes.
pub(super) type ImageDigest = [u8; 32];

/// The features of one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PictureFeatures {
    pub(super) plain: Vec<f32>,
    /// Those of the mirrored image, where they were asked for.
    pub(super) mirrored: Option<Vec<f32>>,
}

/// The features of an earlier run.
pub(super) type Known = HashMap<ImageDigest, PictureFeatures>;

/// The first line of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Heading {
    imgclass_features: u32,
    network: NetworkId,
}

/// The most bytes of the first line.
const HEADING_BYTES: u64 = 64 * 1024;

/// The most features of an image.
const MAX_FEATURES: usize = 1 << 16;

/// The file while a training runs.
pub(super) struct FeatureFile {
    path: PathBuf,
    file: File,
    known: Known,
    written: std::collections::HashSet<(ImageDigest, bool)>,
}

impl FeatureFile {
    /// Opens the file that belongs to a head's file. With `resume` its features are read.
    ///
    /// # Errors
    /// The file is there and `resume` is not set, it belongs to another network, or it cannot be
    /// read or written.
    pub(super) fn open(head: &Path, network: &NetworkId, resume: bool) -> Result<Self, Failure> {
        let mut path = head.as_os_str().to_owned();
        path.push(".features");
        let path = PathBuf::from(path);
        let wrong = |reason: String| format!("{}: {reason}", path.display());
        let io = |error: std::io::Error| wrong(error.to_string());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let mut known = Known::new();
        if file.metadata().map_err(io)?.len() == 0 {
            let heading = Heading {
                imgclass_features: 1,
                network: network.clone(),
            };
            writeln!(file, "{}", serde_json::to_string(&heading)?).map_err(io)?;
        } else if !resume {
            return Err(wrong(
                "an earlier run left its features there: --resume uses them, or remove the file"
                    .to_owned(),
            )
            .into());
        } else {
            let whole = read(&mut file, network, &mut known).map_err(wrong)?;
            file.set_len(whole).map_err(io)?;
            file.seek(SeekFrom::Start(whole)).map_err(io)?;
        }
        let written = known
            .iter()
            .map(|(digest, f)| (*digest, f.mirrored.is_some()))
            .collect();
        Ok(Self {
            path,
            file,
            known,
            written,
        })
    }

    /// Takes the features of the earlier run.
    pub(super) fn known(&mut self) -> Known {
        std::mem::take(&mut self.known)
    }

    /// Writes the features of an image, if the file does not have them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn add(
        &mut self,
        digest: ImageDigest,
        features: &PictureFeatures,
    ) -> Result<(), Failure> {
        if !self.written.insert((digest, features.mirrored.is_some())) {
            return Ok(());
        }
        let mut record = digest.to_vec();
        record.push(u8::from(features.mirrored.is_some()));
        record.extend(u32::try_from(features.plain.len())?.to_le_bytes());
        let mirrored = features.mirrored.iter().flatten();
        record.extend(
            features
                .plain
                .iter()
                .chain(mirrored)
                .flat_map(|x| x.to_le_bytes()),
        );
        let written = self.file.write_all(&record);
        written.map_err(|error| format!("{}: {error}", self.path.display()).into())
    }

    /// Ends the run. The file stays if `keep` is set.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn finish(self, keep: bool) -> Result<(), Failure> {
        if keep {
            return Ok(());
        }
        fs::remove_file(&self.path)
            .map_err(|error| format!("{}: {error}", self.path.display()).into())
    }
}

/// Reads the records of a file, and returns how many bytes at its start are whole.
fn read(file: &mut File, network: &NetworkId, known: &mut Known) -> Result<u64, String> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let read = (&mut reader)
        .take(HEADING_BYTES)
        .read_until(b'\n', &mut line);
    read.map_err(|error| error.to_string())?;
    let heading: Heading = serde_json::from_slice(&line)
        .map_err(|_| "it was not written by `imgclass train`: remove it".to_owned())?;
    if heading.imgclass_features != 1 || heading.network != *network {
        return Err(format!(
            "it holds the features of another network ({}): remove it, or train with those weights",
            heading.network.name
        ));
    }
    let mut whole = line.len() as u64;
    let mut start = [0; 37];
    while reader.read_exact(&mut start).is_ok() {
        let mut digest = [0; 32];
        digest.copy_from_slice(&start[..32]);
        let forms = if start[32] == 0 { 1 } else { 2 };
        let count = u32::from_le_bytes([start[33], start[34], start[35], start[36]]) as usize;
        if count > MAX_FEATURES || start[32] > 1 {
            return Err(format!("it is damaged at byte {whole}: remove it"));
        }
        let mut bytes = vec![0; 4 * count * forms];
        if reader.read_exact(&mut bytes).is_err() {
            break;
        }
        let numbers = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        let mut plain: Vec<f32> = numbers.collect();
        let mirrored = (forms == 2).then(|| plain.split_off(count));
        // An image whose mirrored features came later has two records.
        known.insert(digest, PictureFeatures { plain, mirrored });
        whole += (start.len() + bytes.len()) as u64;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str) -> NetworkId {
        NetworkId {
            name: name.to_owned(),
            ..NetworkId::default()
        }
    }

    fn features(x: f32, mirrored: bool) -> PictureFeatures {
        PictureFeatures {
            plain: vec![x, 2.0],
            mirrored: mirrored.then(|| vec![2.0, x]),
        }
    }

    #[test]
    fn features_are_read_again_without_a_record_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let head = folder.path().join("a.head");
        let mut file = FeatureFile::open(&head, &network("a"), false).unwrap();
        for (i, mirrored) in [(1u8, false), (2, true), (3, false)] {
            file.add([i; 32], &features(f32::from(i), mirrored))
                .unwrap();
        }
        drop(file);
        let path = folder.path().join("a.head.features");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();

        let refused = FeatureFile::open(&head, &network("a"), false)
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("--resume"), "{refused}");
        let other = FeatureFile::open(&head, &network("b"), true)
            .err()
            .unwrap()
            .to_string();
        assert!(other.contains("another network (a)"), "{other}");

        let mut file = FeatureFile::open(&head, &network("a"), true).unwrap();
        let known = file.known();
        assert_eq!(known.len(), 2);
        assert_eq!(known[&[1; 32]], features(1.0, false));
        assert_eq!(known[&[2; 32]], features(2.0, true));
        file.add([3; 32], &features(3.0, false)).unwrap();
        file.finish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        FeatureFile::open(&head, &network("a"), true)
            .unwrap()
            .finish(false)
            .unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let head = folder.path().join("a.head");
        let path = folder.path().join("a.head.features");
        fs::write(&path, b"my notes").unwrap();
        let refused = FeatureFile::open(&head, &network("a"), true)
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.contains("not written by `imgclass train`"),
            "{refused}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"my notes");
    }
}
