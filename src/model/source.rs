//! Where the weights come from: a formula, a local file or the hub. It decides and finds; it loads nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ModelError;
use super::hub::{self, CheckpointFiles, HubConfig, ProgressFn};

/// The checkpoint that is used where none is named.
pub const DEFAULT_MODEL: &str = "timm/resnet50.tv2_in1k";

/// The branch, tag or commit that is used where none is named.
pub const DEFAULT_REVISION: &str = "main";

/// This file is taken before the hub when it is there and no model was named.
pub const LOCAL_WEIGHTS: &str = "weights/resnet50.safetensors";

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsChoice {
    /// Untrained weights by a formula, from this seed.
    Random(u64),
    /// A safetensors file.
    File(PathBuf),
    /// A repository of the hub, at a revision.
    Hub {
        /// `owner/name`.
        model: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl WeightsChoice {
    /// The rule of precedence: `--weights`, then a `--model` that was named, then [`LOCAL_WEIGHTS`] below `folder`, then the default
    /// model on the hub.
    pub fn resolve(
        weights: Option<&str>,
        model: Option<&str>,
        revision: Option<&str>,
        folder: &Path,
    ) -> Self {
        let local = folder.join(LOCAL_WEIGHTS);
        match (weights, model) {
            (Some("random"), _) => Self::Random(0),
            (Some(file), _) => Self::File(PathBuf::from(file)),
            (None, None) if revision.is_none() && local.is_file() => Self::File(local),
            (None, model) => Self::Hub {
                model: model.unwrap_or(DEFAULT_MODEL).to_owned(),
                revision: revision.unwrap_or(DEFAULT_REVISION).to_owned(),
            },
        }
    }
}

/// Weights that are there to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsSource {
    /// The formula with this seed.
    Random(u64),
    /// Files on this machine.
    Files {
        /// The safetensors file.
        weights: PathBuf,
        /// timm's `config.json`, where there is one.
        config: Option<PathBuf>,
        /// What to call the model: `owner/name` on the hub, else the file's name.
        model: String,
        /// The hub's commit, where it came from there.
        revision: Option<String>,
        /// The SHA-256 that the hub declared, where the cache has kept it.
        declared_sha256: Option<String>,
    },
}

impl WeightsSource {
    /// Finds the files, fetching them from the hub if they must be.
    pub async fn find(
        choice: &WeightsChoice,
        hub: &HubConfig,
        progress: Option<Arc<ProgressFn>>,
    ) -> Result<Self, ModelError> {
        Ok(match choice {
            WeightsChoice::Random(seed) => Self::Random(*seed),
            WeightsChoice::File(weights) => Self::local(weights),
            WeightsChoice::Hub { model, revision } => Self::cached(
                model.clone(),
                hub::fetch(hub, model, revision, progress).await?,
            ),
        })
    }

    /// A checkpoint of the hub whose files are on this machine.
    pub fn cached(model: String, files: CheckpointFiles) -> Self {
        Self::Files {
            weights: files.weights,
            config: files.config,
            model,
            revision: Some(files.revision),
            declared_sha256: files.sha256,
        }
    }

    /// A local file, with the `config.json` beside it if there is one.
    pub fn local(weights: &Path) -> Self {
        let config = weights.with_file_name("config.json");
        Self::Files {
            weights: weights.to_owned(),
            config: config.is_file().then_some(config),
            // Not its path: strangers see this name.
            model: weights
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            revision: None,
            declared_sha256: None,
        }
    }
}
