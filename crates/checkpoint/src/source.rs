//! Decides where the weights come from (a formula, a local file or the hub) and finds their files.
//! It does not read them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::hub::{self, HubConfig, ProgressFn};

/// The checkpoint on the hub that is used where none is named.
pub const DEFAULT_MODEL: &str = "timm/resnet50.tv2_in1k";

/// The branch, tag or commit that is used where none is named.
pub const DEFAULT_REVISION: &str = "main";

/// The local weights file, below the working folder. It comes before the hub if it is there and no
/// model was named.
pub const LOCAL_WEIGHTS: &str = "weights/resnet50.safetensors";

/// The weights that the operator asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightsChoice {
    /// Untrained weights of this network, by a formula.
    Random(Architecture),
    /// A safetensors file.
    File(PathBuf),
    /// A checkpoint in a repository of the hub.
    Hub {
        /// `owner/name`.
        model: String,
        /// The branch, tag or commit.
        revision: String,
        /// The name of the weights file, where the operator named one.
        file: Option<String>,
    },
}

impl WeightsChoice {
    /// Applies the rule of precedence: `--weights`, then a `--model` that was named, then
    /// [`LOCAL_WEIGHTS`] below `folder`, then the default model on the hub. `file` names one of the
    /// model's files.
    pub fn resolve(
        weights: Option<&NamedWeights>,
        model: Option<&str>,
        revision: Option<&str>,
        file: Option<&str>,
        folder: &Path,
    ) -> Self {
        let local = folder.join(LOCAL_WEIGHTS);
        match (weights, model) {
            (Some(NamedWeights::Random(architecture)), _) => Self::Random(*architecture),
            (Some(NamedWeights::File(file)), _) => Self::File(file.clone()),
            (None, None) if revision.is_none() && file.is_none() && local.is_file() => {
                Self::File(local)
            }
            (None, model) => Self::Hub {
                model: model.unwrap_or(DEFAULT_MODEL).to_owned(),
                revision: revision.unwrap_or(DEFAULT_REVISION).to_owned(),
                file: file.map(str::to_owned),
            },
        }
    }
}

/// The value of `--weights`.
#[derive(Debug, Clone, PartialEq)]
pub enum NamedWeights {
    /// `random`, or `random:resnet18` for another network than ResNet-50.
    Random(Architecture),
    /// Anything else, which is the path of a file.
    File(PathBuf),
}

impl FromStr for NamedWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text
            .strip_prefix("random")
            .map(|rest| rest.strip_prefix(':').ok_or(rest))
        {
            Some(Err("")) => Ok(Self::Random(Architecture::RESNET50)),
            Some(Ok(name)) => Architecture::named(name).map(Self::Random).ok_or_else(|| {
                let names = Architecture::names();
                format!("there are no random weights for `{name}`; use one of {names}")
            }),
            _ => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

/// Weights that can be loaded without calling the hub.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightsSource {
    /// Weights by the formula of [`formula`](crate::formula).
    Random {
        /// The formula's seed.
        seed: u64,
        /// The network that it makes weights for.
        architecture: Architecture,
    },
    /// Files on this machine.
    Files(WeightsFiles),
}

/// The files of a checkpoint on this machine, and what is known about them before they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsFiles {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The checkpoint's `config.json`, where there is one.
    pub config: Option<PathBuf>,
    /// transformers' `preprocessor_config.json`, where there is one.
    pub preprocessor: Option<PathBuf>,
    /// The name of the model: `owner/name` on the hub, else the file's name.
    pub model: String,
    /// The hub's commit, for a checkpoint from there.
    pub revision: Option<String>,
    /// The SHA-256 that the hub declared, in lower-case hexadecimal, if the cache has recorded it.
    pub declared_sha256: Option<String>,
}

impl WeightsSource {
    /// Finds the files of a choice. Those on the hub are fetched if the cache does not have them.
    ///
    /// # Errors
    /// [`CheckpointError::Hub`]. A local file need not exist yet: opening it tells.
    pub async fn find(
        choice: &WeightsChoice,
        hub: &HubConfig,
        progress: Option<Arc<ProgressFn>>,
    ) -> Result<Self, CheckpointError> {
        Ok(match choice {
            WeightsChoice::Random(architecture) => Self::random(*architecture),
            WeightsChoice::File(weights) => Self::local(weights),
            WeightsChoice::Hub {
                model,
                revision,
                file,
            } => Self::Files(hub::fetch(hub, model, revision, file.as_deref(), progress).await?),
        })
    }

    /// Returns untrained weights of a network, with seed 0.
    pub fn random(architecture: Architecture) -> Self {
        Self::Random {
            seed: 0,
            architecture,
        }
    }

    /// Returns a local file, with the `config.json` and the `preprocessor_config.json` beside it if
    /// they are there.
    pub fn local(weights: &Path) -> Self {
        let beside = |name| Some(weights.with_file_name(name)).filter(|path| path.is_file());
        Self::Files(WeightsFiles {
            weights: weights.to_owned(),
            config: beside(hub::CONFIG_FILE),
            preprocessor: beside(hub::PREPROCESSOR_FILE),
            // Not its path: strangers see this name.
            model: weights
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            revision: None,
            declared_sha256: None,
        })
    }
}
