//! Why the service does not answer, does not start, or is not ready.

use std::time::Duration;

use imgclass_decode::DecodeError;
use imgclass_engine::{EngineError, EngineStartError, Refusal};
use imgclass_fetch::{FetchError, SetupError};
use imgclass_image::PreprocessingError;
use thiserror::Error;

/// Why an image has no answer.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The request was not admitted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The URL did not lead to the bytes of an image.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The bytes are not an image that can be decoded within the limits.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The request's deadline passed. Holds the time that it had.
    #[error("the deadline of {0:?} passed")]
    DeadlinePassed(Duration),
    /// The engine did not run the image.
    #[error(transparent)]
    Engine(EngineError),
    /// The network's numbers for an image are not finite.
    #[error(
        "the network's numbers for this {} are not finite{}",
        if *prepared { "input" } else { "image" },
        if *prepared {
            ": its values are too large"
        } else {
            ": the weights are damaged, or too large for the type that is computed in (--dtype)"
        }
    )]
    NotFinite {
        /// Whether the request had prepared the input itself, so that its values are to blame.
        prepared: bool,
    },
}

/// Why the service cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The client that fetches images cannot be set up.
    #[error(transparent)]
    Fetch(#[from] SetupError),
    /// The checkpoint's preprocessing cannot be carried out.
    #[error("the checkpoint's preprocessing cannot be carried out: {0}")]
    Preprocessing(#[from] PreprocessingError),
    /// The workers that decode cannot start.
    #[error(transparent)]
    Decoders(#[from] imgclass_decode::StartError),
    /// The engine cannot start, or the model failed on the images of its warm-up.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
}

/// Why requests would not be served at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotReady {
    /// [`Service::drain`](super::Service::drain) was called.
    #[error("the service is shutting down")]
    Draining,
    /// The thread of a worker has ended.
    #[error("a worker of the model has ended")]
    WorkerGone,
    /// A batch has been running for much longer than batches usually do.
    #[error("a worker of the model has been stuck in one batch for {0:?}")]
    WorkerStuck(Duration),
    /// The device recently had too little memory for a single image.
    #[error("the model's device is out of memory")]
    OutOfDeviceMemory,
    /// The device has failed for good.
    #[error("the model's device is lost; the service must be restarted")]
    DeviceLost,
}
