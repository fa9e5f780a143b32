//! The errors of checkpoints. Their texts are for operators: they name the file and the tensor.

use std::path::PathBuf;

use thiserror::Error;

use crate::hub::HubError;

/// An error of whatever supplies weights: a file, its description, its labels, the hub or a
/// conversion.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A local weights file cannot be read.
    #[error("the weights file {path} cannot be read: {reason}")]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// A path leads to something other than one safetensors file.
    #[error("the weights {path} cannot be loaded: {reason}")]
    NotWeights {
        /// What was asked for.
        path: PathBuf,
        /// What it is, and what to do.
        reason: String,
    },
    /// A file is not whole, or no safetensors file.
    #[error(
        "the weights file {path} is not a whole safetensors file ({reason}); copy or download it \
         again"
    )]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A file in the hub's cache is not the one that the hub declared.
    #[error(
        "the weights file {path} has the SHA-256 {found}, but the hub declared {declared}; \
         delete the file and fetch it again"
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest that the hub declared, in lower-case hexadecimal.
        declared: String,
        /// The digest of the file, in lower-case hexadecimal.
        found: String,
    },
    /// A tensor is missing, misnamed, of the wrong shape or type, or holds numbers that are not
    /// finite.
    #[error(
        "the weights {origin} do not fit {architecture}: tensor `{tensor}`: expected {expected}, \
         found {found}"
    )]
    Tensor {
        /// The file that the weights come from, or how they came about.
        origin: String,
        /// The network that they were compared with.
        architecture: &'static str,
        /// The tensor's name.
        tensor: String,
        /// What the network needs in its place.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A file of 8-bit integers cannot be used, or not for this.
    #[error("the 8-bit weights {path} cannot be used: {reason}")]
    Quantised {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A `config.json` or `preprocessor_config.json` cannot be used.
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
    /// Another program's weights cannot be converted.
    #[error("{path} cannot be converted: {reason}")]
    Convert {
        /// The file that was read, or could not be written.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub or its cache did not supply the checkpoint.
    #[error(transparent)]
    Hub(#[from] HubError),
}
