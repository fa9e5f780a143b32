//! What can go wrong with a checkpoint. The texts are for operators: they name the file and the tensor.

use std::path::PathBuf;

use thiserror::Error;

use crate::hub::HubError;

/// An error of whatever supplies weights: a file, its description, its labels, the hub or a conversion.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A local weights file that cannot be read.
    #[error("the weights file {path} cannot be read: {reason}")]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// A file that is not whole or is no safetensors file.
    #[error(
        "the weights file {path} is not a whole safetensors file ({reason}); copy or download it again"
    )]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A file of the hub's cache that is not what the hub declared.
    #[error(
        "the weights file {path} has the SHA-256 {found}, but the hub declared {declared}; delete the file and fetch it again"
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// The hub's word.
        declared: String,
        /// Ours.
        found: String,
    },
    /// A tensor that is missing, misnamed, of the wrong shape or type, or holds non-finite numbers.
    #[error(
        "the weights {origin} do not fit {architecture}: tensor `{tensor}`: expected {expected}, found {found}"
    )]
    Tensor {
        /// The file, or how the weights came about.
        origin: String,
        /// The network that they were held against.
        architecture: &'static str,
        /// The tensor's name.
        tensor: String,
        /// What the network needs.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A `config.json` that cannot be used.
    #[error("the model configuration {path} cannot be used: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        reason: String,
    },
    /// Labels that cannot be used, or are not as many as there are classes.
    #[error("the labels {path} cannot be used: {reason}")]
    Labels {
        /// The file that they are in.
        path: PathBuf,
        /// What is wrong, with line or count.
        reason: String,
    },
    /// Another program's weights that cannot be turned into ours.
    #[error("{path} cannot be converted: {reason}")]
    Convert {
        /// The file that was read, or could not be written.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub had no answer that we could use.
    #[error(transparent)]
    Hub(#[from] HubError),
}
