//! Pictures of the user's, on which ranges are measured instead of generated ones.

use std::fs;
use std::path::{Path, PathBuf};

use imgclass_image::{Limits, Preprocessing, Preprocessor, decode};

use crate::error::NetworkError;
use crate::input::Input;

/// The most pictures that are taken. The ranges of more hardly differ.
const MOST: usize = 64;

/// What a picture may take while it is decoded.
const LIMITS: Limits = Limits {
    max_pixels: 100_000_000,
    max_side: 1 << 16,
    max_decoded_bytes: 1 << 30,
};

/// Reads pictures of a folder and prepares them as the network's images are. Of more than
/// [`MOST`] files it takes as many, evenly spread over the sorted names. Files that are no pictures
/// are left out.
///
/// # Errors
/// The folder cannot be read, or holds no picture.
pub(crate) fn read(
    folder: &Path,
    preprocessing: &Preprocessing,
) -> Result<Vec<Input>, NetworkError> {
    let fault = |reason: String| NetworkError::CalibrationFolder {
        folder: folder.to_owned(),
        reason,
    };
    let preprocessor =
        Preprocessor::new(preprocessing.clone()).map_err(|error| fault(error.to_string()))?;
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| fault(error.to_string()))?;
    files.retain(|path| path.is_file());
    files.sort();
    let taken = files.len().min(MOST);
    let mut pictures = Vec::with_capacity(taken);
    for index in 0..taken {
        let path = &files[index * files.len() / taken];
        let picture = fs::read(path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| decode(&bytes, &LIMITS).map_err(|error| error.to_string()));
        match picture {
            Ok(picture) => pictures.push(Input::Pixels(preprocessor.pixels(&picture))),
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "left out of the calibration");
            }
        }
    }
    if pictures.is_empty() {
        return Err(fault("it holds no picture".to_owned()));
    }
    Ok(pictures)
}
