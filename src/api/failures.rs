//! The one map from the errors of the layers below to HTTP: which status and code each of them has,
//! what the client may read, and what only the log says.

use poem::http::StatusCode;

use super::problem::{Failure, RETRY_AFTER, RETRY_AFTER_RESTART};
use crate::service::{ExplainError, NotReady, ServiceError};
use imgclass_checkpoint::ClassError;
use imgclass_decode::DecodeError;
use imgclass_engine::{EngineError, Refusal};
use imgclass_fetch::FetchError;
use imgclass_image::ImageError;
use imgclass_network::NetworkError;

impl Failure {
    /// Converts an error about an image. Where the text of the request itself is wrong, as in a
    /// malformed data URL, the client is told that it stands in `field`.
    pub(super) fn in_field(error: ServiceError, field: &str) -> Self {
        match error {
            ServiceError::Fetch(error @ FetchError::InvalidDataUrl(_)) => {
                Self::invalid_request(format!("{field}: {}", error.public_message()))
            }
            other => other.into(),
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Refused(refusal) => refusal.into(),
            ServiceError::Fetch(error) => error.into(),
            ServiceError::Decode(error) => error.into(),
            ServiceError::Engine(error) => error.into(),
            ServiceError::DeadlinePassed(limit) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "deadline-passed",
                "The deadline passed",
                format!(
                    "there was no answer within {} s; try again later",
                    limit.as_secs_f64()
                ),
            ),
            ServiceError::NotFinite { prepared: true } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "input-out-of-range",
                "The input is out of range",
                error.to_string(),
            ),
            ServiceError::NotFinite { prepared: false } => Self::internal_because(error),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(_) => Self::unavailable(
                "overloaded",
                "Overloaded",
                "all places are taken; try again after the time in Retry-After",
                RETRY_AFTER,
            ),
            Refusal::Draining => Self::unavailable(
                "shutting-down",
                "Shutting down",
                "the service is shutting down; try another instance",
                RETRY_AFTER_RESTART,
            ),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let detail = error.public_message();
        match error {
            FetchError::Unusable(_) | FetchError::Answer(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "image-unavailable",
                "The image URL could not be used",
                detail,
            )
            .logged_as_info(error),
            FetchError::TooLarge { .. } => {
                Self::too_large("image-too-large", "The image is too large", detail)
            }
            FetchError::InvalidDataUrl(_) => Self::invalid_request(detail),
            FetchError::MemoryFull | FetchError::Busy { .. } => {
                Self::unavailable("overloaded", "Overloaded", detail, RETRY_AFTER)
            }
        }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        let detail = error.to_string();
        match error {
            DecodeError::Image(error) => error.into(),
            // The workers' keeper has logged which input it was.
            DecodeError::Overran(_) | DecodeError::OutOfMemory | DecodeError::Killed => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "image-too-costly",
                "The image is too costly to decode",
                detail,
            ),
            DecodeError::Crashed => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-image",
                "The image is damaged",
                detail,
            ),
            DecodeError::NoWorker(_) => Self::internal_because(error),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let detail = error.to_string();
        match error {
            ImageError::Unsupported { .. } => Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-image",
                "Not an image that we decode",
                detail,
            ),
            ImageError::TooLarge { .. } | ImageError::TooMuchMemory { .. } => {
                Self::too_large("image-too-large", "The image is too large", detail)
            }
            ImageError::Malformed { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-image",
                "The image is damaged",
                detail,
            ),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Stopped => Refusal::Draining.into(),
            EngineError::Model(model) => match **model {
                // The worker has logged what the device said.
                NetworkError::OutOfDeviceMemory { .. } => NotReady::OutOfDeviceMemory.into(),
                NetworkError::DeviceLost { .. } => NotReady::DeviceLost.into(),
                _ => Self::internal_because(error),
            },
            EngineError::DeadlinePassed | EngineError::WorkerPanicked => {
                Self::internal_because(error)
            }
        }
    }
}

impl From<NotReady> for Failure {
    fn from(reason: NotReady) -> Self {
        match reason {
            NotReady::Draining => Refusal::Draining.into(),
            NotReady::WorkerGone | NotReady::WorkerStuck(_) => Self::unavailable(
                "not-ready",
                "Not ready",
                reason.to_string(),
                RETRY_AFTER_RESTART,
            ),
            NotReady::OutOfDeviceMemory => Self::unavailable(
                "device-out-of-memory",
                "Out of device memory",
                "the model's device has no memory at the moment; try again after the time in \
                 Retry-After",
                RETRY_AFTER_RESTART,
            ),
            NotReady::DeviceLost => Self::unavailable(
                "device-lost",
                "Device lost",
                "the model's device has failed, and this instance must be restarted; try another one",
                RETRY_AFTER_RESTART,
            ),
        }
    }
}

impl From<ClassError> for Failure {
    fn from(error: ClassError) -> Self {
        Self::invalid_request(format!("class: {error}"))
    }
}

impl From<ExplainError> for Failure {
    fn from(error: ExplainError) -> Self {
        Self::internal_because(error)
    }
}
