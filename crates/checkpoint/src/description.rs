//! Reads what a checkpoint says about itself: network, preprocessing, number of classes and labels,
//! in timm's form or in transformers'.

mod preprocessor;
mod timm;
mod transformers;

pub(super) use timm::ImgclassFields;

use std::path::{Path, PathBuf};

use imgclass_image::Preprocessing;
use serde::de::DeserializeOwned;

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::labels::Label;

/// The largest configuration that is read, in bytes. No configuration in use has a tenth of it; a
/// larger file is something else.
const MAX_BYTES: u64 = 4 << 20;

/// What a checkpoint's configuration says. The default is that of a checkpoint without one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Description {
    /// The network, if it is named.
    pub architecture: Option<Architecture>,
    /// How images are prepared.
    pub preprocessing: Preprocessing,
    /// The number of classes, if it is given, and the field that gives it.
    pub classes: Option<(usize, &'static str)>,
    /// The names of the classes, if they are given.
    pub labels: Option<Vec<Label>>,
}

impl Description {
    /// Reads a `config.json`, and the `preprocessor_config.json` that belongs to one in
    /// transformers' form. Without the latter, preprocessing is torchvision's, with a warning in
    /// the log.
    ///
    /// # Errors
    /// [`CheckpointError::Config`], which names the file and the field.
    pub fn read(config: &Path, preprocessor: Option<&Path>) -> Result<Self, CheckpointError> {
        let (text, path) = (read_text(config)?, config.to_owned());
        let invalid = |path: &PathBuf| {
            let path = path.clone();
            |reason| CheckpointError::Config { path, reason }
        };
        let object: serde_json::Map<String, serde_json::Value> =
            parse(&text).map_err(invalid(&path))?;
        if object.contains_key("pretrained_cfg") || object.contains_key("architecture") {
            return timm::parse(&text).map_err(invalid(&path));
        }
        if !object.contains_key("model_type") {
            return Err(invalid(&path)(
                "it has neither timm's `pretrained_cfg` nor transformers' `model_type`, so it does not \
                 say how images are prepared"
                    .to_owned(),
            ));
        }
        let mut description = transformers::parse(&text).map_err(invalid(&path))?;
        match preprocessor {
            Some(path) => {
                let path = path.to_owned();
                description.preprocessing =
                    preprocessor::parse(&read_text(&path)?).map_err(invalid(&path))?;
            }
            None => tracing::warn!(
                config = %path.display(),
                "there is no preprocessor_config.json beside it: images are prepared as torchvision \
                 does"
            ),
        }
        Ok(description)
    }
}

/// Reads a configuration of bounded size.
fn read_text(path: &Path) -> Result<String, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Config {
        path: path.to_owned(),
        reason,
    };
    let size = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?;
    if size.len() > MAX_BYTES {
        return Err(invalid(format!(
            "it has {} bytes; no configuration has more than {MAX_BYTES}",
            size.len()
        )));
    }
    std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))
}

/// Parses JSON, with the field's name in every error.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value =
        serde_path_to_error::deserialize(&mut json).map_err(|e| match e.path().to_string() {
            path if path == "." => e.into_inner().to_string(),
            path => format!("`{path}`: {}", e.into_inner()),
        })?;
    json.end().map_err(|e| e.to_string())?;
    Ok(value)
}

/// Checks that an optional field, if it is there, has the only value that we carry out.
fn check_only<T: PartialEq + std::fmt::Debug>(
    found: Option<T>,
    expected: T,
    field: &str,
) -> Result<(), String> {
    match found {
        Some(value) if value != expected => Err(format!(
            "`{field}` is {value:?}, but only {expected:?} is supported"
        )),
        _ => Ok(()),
    }
}
