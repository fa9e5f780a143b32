//! Reads what a checkpoint says about itself: network, preprocessing, number of classes and labels,
//! in timm's form or in transformers'.

mod preprocessor;
mod timm;
mod transformers;

pub(super) use timm::ImgclassFields;

use std::fmt;
use std::path::Path;

use imgclass_image::Preprocessing;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::labels::Label;

/// The largest configuration that is read, in bytes. No configuration in use has a tenth of it; a
/// larger file is something else.
const MAX_BYTES: u64 = 4 << 20;

/// What the classes of a checkpoint exclude, in transformers' words. It decides how logits become
/// probabilities, together with the number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum ProblemType {
    /// A picture belongs to one of the classes.
    #[default]
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// A picture can belong to several classes, or to none.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// The outputs were trained as numbers. transformers' pipeline for pictures treats them as it
    /// treats classes.
    #[serde(rename = "regression")]
    Regression,
}

/// How the logits of an image become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Probabilities {
    /// By softmax: the classes exclude each other, and their probabilities sum to 1.
    #[default]
    Exclusive,
    /// By the logistic function of each logit: each class has a probability of its own.
    Independent,
}

/// Shows the kind as `/v1/model` does.
impl fmt::Display for Probabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Independent => "independent",
        })
    }
}

impl ProblemType {
    /// Returns how transformers' pipeline for pictures makes probabilities of this many logits. The
    /// softmax of a single logit would be 1 for every picture.
    pub fn probabilities(self, classes: usize) -> Probabilities {
        if self == Self::MultiLabel || classes == 1 {
            Probabilities::Independent
        } else {
            Probabilities::Exclusive
        }
    }
}

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
    /// What the classes exclude.
    pub problem_type: ProblemType,
}

impl Description {
    /// Reads a `config.json`, and the `preprocessor_config.json` that belongs to one in
    /// transformers' form. Without the latter, preprocessing is torchvision's, with a warning in
    /// the log.
    ///
    /// # Errors
    /// [`CheckpointError::Config`], which names the file and the field.
    pub fn read(config: &Path, preprocessor: Option<&Path>) -> Result<Self, CheckpointError> {
        let invalid = |path: &Path| {
            let path = path.to_owned();
            |reason| CheckpointError::Config { path, reason }
        };
        let text = read_text(config)?;
        let (mut description, form) = parse_config(&text).map_err(invalid(config))?;
        match (form, preprocessor) {
            (Form::Timm, _) => {}
            (Form::Transformers, Some(path)) => {
                let text = read_text(path)?;
                description.preprocessing = preprocessor::parse(&text).map_err(invalid(path))?;
            }
            (Form::Transformers, None) => tracing::warn!(
                config = %config.display(),
                "there is no preprocessor_config.json beside it: images are prepared as torchvision \
                 does"
            ),
        }
        Ok(description)
    }
}

/// The program whose form a configuration has.
enum Form {
    Timm,
    Transformers,
}

/// Parses the text of a `config.json`. In transformers' form it leaves the preprocessing open.
fn parse_config(text: &str) -> Result<(Description, Form), String> {
    let object: serde_json::Map<String, serde_json::Value> = parse(text)?;
    if object.contains_key("pretrained_cfg") || object.contains_key("architecture") {
        Ok((timm::parse(text)?, Form::Timm))
    } else if object.contains_key("model_type") {
        Ok((transformers::parse(text)?, Form::Transformers))
    } else {
        Err(
            "it has neither timm's `pretrained_cfg` nor transformers' `model_type`, so it does not \
             say how images are prepared"
                .to_owned(),
        )
    }
}

/// Parses a text as each of the configurations.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let _ = parse_config(text);
    let _ = preprocessor::parse(text);
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
