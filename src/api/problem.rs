//! Errors as people and programs get them: problem details (RFC 9457), and the one map from our errors to statuses.

use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object};

use super::middleware::{current_request_id, note_problem};
use crate::service::{ExplainError, NotReady, ServiceError};
use imgclass_checkpoint::ClassError;
use imgclass_engine::{EngineError, Refusal};
use imgclass_fetch::FetchError;
use imgclass_image::ImageError;
use imgclass_network::NetworkError;

/// A problem document (RFC 9457).
#[derive(Debug, Clone, Object)]
#[oai(example)]
pub(super) struct Problem {
    /// A URI for this kind of problem.
    #[oai(rename = "type")]
    kind: String,
    /// The kind of problem in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time, and what to do.
    detail: String,
    /// A URI for this occurrence; holds the request id, which our log knows.
    instance: String,
    /// The kind of problem for programs: never changes.
    code: String,
}

impl poem_openapi::types::Example for Problem {
    fn example() -> Self {
        let (code, title) = ("invalid-request", "The request is invalid");
        let detail = "image_url: missing field";
        let problem = *Self::of(StatusCode::UNPROCESSABLE_ENTITY, code, title, detail);
        problem.with_instance("3f2a9c0d5e6b7a81")
    }
}

impl Problem {
    fn of(
        status: StatusCode,
        code: &'static str,
        title: &str,
        detail: impl Into<String>,
    ) -> Box<Self> {
        note_problem(code);
        Self {
            kind: format!("urn:imgclass:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: String::new(),
            code: code.to_owned(),
        }
        .with_instance(&current_request_id())
        .into()
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    fn with_instance(mut self, request_id: &str) -> Self {
        self.instance = format!("urn:imgclass:request:{request_id}");
        self
    }
}

/// A problem as a body; boxed, because it travels through every `Result` of a handler.
type Document = Json<Box<Problem>>;

/// Every way in which a request can fail.
#[derive(Debug, Clone, ApiResponse)]
pub(super) enum Failure {
    /// The body is not JSON.
    #[oai(status = 400, content_type = "application/problem+json")]
    BadRequest(Document),
    /// Keys are asked for, and the request has none or a wrong one.
    #[oai(status = 401, content_type = "application/problem+json")]
    Unauthorized(
        Document,
        /// How to send a key.
        #[oai(header = "WWW-Authenticate")]
        String,
    ),
    /// There is no such route.
    #[oai(status = 404, content_type = "application/problem+json")]
    NotFound(Document),
    /// The route knows other methods.
    #[oai(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(Document),
    /// The client took too long to send its body.
    #[oai(status = 408, content_type = "application/problem+json")]
    RequestTimeout(Document),
    /// The body, the fetched image or its pixels exceed a limit.
    #[oai(status = 413, content_type = "application/problem+json")]
    TooLarge(Document),
    /// The bytes are not an image that we decode.
    #[oai(status = 415, content_type = "application/problem+json")]
    UnsupportedImage(Document),
    /// The body is JSON but not what is asked for, the URL cannot be used, or the image is damaged.
    #[oai(status = 422, content_type = "application/problem+json")]
    Unprocessable(Document),
    /// More requests than this key or address may make: try again after the given time.
    #[oai(status = 429, content_type = "application/problem+json")]
    RateLimited(
        Document,
        /// Seconds to wait.
        #[oai(header = "Retry-After")]
        u32,
    ),
    /// Our fault; the log knows more under the request id.
    #[oai(status = 500, content_type = "application/problem+json")]
    Internal(Document),
    /// Overloaded, still loading or shutting down: try again after the given time.
    #[oai(status = 503, content_type = "application/problem+json")]
    Unavailable(
        Document,
        /// Seconds to wait.
        #[oai(header = "Retry-After")]
        u32,
    ),
    /// The deadline passed.
    #[oai(status = 504, content_type = "application/problem+json")]
    DeadlinePassed(Document),
}

/// Seconds after which a refused request may find a place: a queue of the default size is worked off in a few of these.
const RETRY_AFTER: u32 = 1;

/// Seconds after which a starting service may be ready, or a load balancer has left a stopping one.
const RETRY_AFTER_RESTART: u32 = 5;

impl Failure {
    pub(super) fn malformed_json(detail: String) -> Self {
        Self::BadRequest(Json(Problem::of(
            StatusCode::BAD_REQUEST,
            "malformed-json",
            "The body is not JSON",
            detail,
        )))
    }

    pub(super) fn invalid_request(detail: String) -> Self {
        Self::Unprocessable(Json(Problem::of(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-request",
            "The request is invalid",
            detail,
        )))
    }

    pub(super) fn unauthorized() -> Self {
        let problem = Problem::of(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A key is needed",
            "send a key as \"Authorization: Bearer KEY\" or \"X-API-Key: KEY\"",
        );
        Self::Unauthorized(Json(problem), "Bearer".to_owned())
    }

    pub(super) fn rate_limited(wait: std::time::Duration) -> Self {
        let problem = Problem::of(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limited",
            "Too many requests",
            "this key or address makes more requests than it may; try again after the time in Retry-After",
        );
        // Rounded up: who comes back a moment early is refused again.
        Self::RateLimited(Json(problem), wait.as_secs_f64().ceil().max(1.0) as u32)
    }

    pub(super) fn payload_too_large(limit: usize) -> Self {
        let detail = format!(
            "the request's body is larger than {limit} bytes; send a smaller image, or its URL"
        );
        Self::too_large("payload-too-large", "The request is too large", detail)
    }

    /// Malformed by a protocol's own rules.
    pub(super) fn bad_request(detail: String) -> Self {
        Self::BadRequest(Json(Problem::of(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request is malformed",
            detail,
        )))
    }

    pub(super) fn no_model(detail: String) -> Self {
        Self::NotFound(Json(Problem::of(
            StatusCode::NOT_FOUND,
            "not-found",
            "There is no such model",
            detail,
        )))
    }

    pub(super) fn malformed_form(detail: String) -> Self {
        Self::BadRequest(Json(Problem::of(
            StatusCode::BAD_REQUEST,
            "malformed-form",
            "The form cannot be read",
            detail,
        )))
    }

    pub(super) fn body_timeout(limit: std::time::Duration) -> Self {
        Self::RequestTimeout(Json(Problem::of(
            StatusCode::REQUEST_TIMEOUT,
            "request-timeout",
            "The request came too slowly",
            format!("the body was not complete after {} s", limit.as_secs_f64()),
        )))
    }

    pub(super) fn broken_body() -> Self {
        let detail = "the body ended before it was complete".to_owned();
        Self::BadRequest(Json(Problem::of(
            StatusCode::BAD_REQUEST,
            "incomplete-body",
            "The body is incomplete",
            detail,
        )))
    }

    pub(super) fn no_room_for_bodies() -> Self {
        Self::unavailable(
            "overloaded",
            "Overloaded",
            "too much is being received at the moment; try again after the time in Retry-After",
            RETRY_AFTER,
        )
    }

    pub(super) fn loading() -> Self {
        Self::unavailable(
            "not-ready",
            "The model is loading",
            "the model is not loaded yet",
            RETRY_AFTER_RESTART,
        )
    }

    /// A failure about an image; where it is the request's own text that is wrong, `field` says which.
    pub(super) fn in_field(error: ServiceError, field: &str) -> Self {
        match error {
            ServiceError::Fetch(error @ FetchError::InvalidDataUrl(_)) => {
                Self::invalid_request(format!("{field}: {}", error.public_message()))
            }
            other => other.into(),
        }
    }

    /// Seconds to wait before another try, where that helps.
    pub(super) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Unavailable(_, seconds) | Self::RateLimited(_, seconds) => Some(*seconds),
            _ => None,
        }
    }

    /// The document alone: for answers that carry an error for each of their images.
    pub(super) fn into_problem(self) -> Problem {
        let Json(problem) = match self {
            Self::BadRequest(document)
            | Self::NotFound(document)
            | Self::MethodNotAllowed(document)
            | Self::RequestTimeout(document)
            | Self::TooLarge(document)
            | Self::UnsupportedImage(document)
            | Self::Unprocessable(document)
            | Self::Internal(document)
            | Self::Unauthorized(document, _)
            | Self::RateLimited(document, _)
            | Self::Unavailable(document, _)
            | Self::DeadlinePassed(document) => document,
        };
        *problem
    }

    fn too_large(code: &'static str, title: &str, detail: String) -> Self {
        Self::TooLarge(Json(Problem::of(
            StatusCode::PAYLOAD_TOO_LARGE,
            code,
            title,
            detail,
        )))
    }

    fn unprocessable(code: &'static str, title: &str, detail: String) -> Self {
        Self::Unprocessable(Json(Problem::of(
            StatusCode::UNPROCESSABLE_ENTITY,
            code,
            title,
            detail,
        )))
    }

    fn unavailable(code: &'static str, title: &str, detail: &str, retry_after: u32) -> Self {
        Self::Unavailable(
            Json(Problem::of(
                StatusCode::SERVICE_UNAVAILABLE,
                code,
                title,
                detail,
            )),
            retry_after,
        )
    }

    pub(super) fn internal() -> Self {
        Self::Internal(Json(Problem::of(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "something failed on our side; the log knows it under this request's id",
        )))
    }

    /// Our fault, and the log says what.
    fn unexpected(error: &impl std::fmt::Display) -> Self {
        tracing::error!("{error}");
        Self::internal()
    }

    /// An error of the HTTP framework, by its status: unknown routes, wrong methods, and whatever else it finds.
    pub(super) fn of_framework(status: StatusCode, method: &str, path: &str) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::NotFound(Json(Problem::of(
                status,
                "not-found",
                "There is no such route",
                format!("there is no route {path}; see /docs"),
            ))),
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed(Json(Problem::of(
                status,
                "method-not-allowed",
                "The route knows other methods",
                format!("{path} does not take {method}; see /docs"),
            ))),
            other if other.is_client_error() => {
                let title = other.canonical_reason().unwrap_or("Bad request");
                Self::BadRequest(Json(Problem::of(
                    StatusCode::BAD_REQUEST,
                    "bad-request",
                    title,
                    "see /docs for what is asked for",
                )))
            }
            _ => Self::internal(),
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Refused(refusal) => refusal.into(),
            ServiceError::Fetch(error) => error.into(),
            ServiceError::Image(error) => error.into(),
            ServiceError::DeadlinePassed(limit) => Self::DeadlinePassed(Json(Problem::of(
                StatusCode::GATEWAY_TIMEOUT,
                "deadline-passed",
                "The deadline passed",
                format!(
                    "there was no answer within {} s; try again later",
                    limit.as_secs_f64()
                ),
            ))),
            ServiceError::Engine(error) => error.into(),
            ServiceError::Internal(reason) => {
                tracing::error!("{reason}");
                Self::internal()
            }
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
                _ => Self::unexpected(&error),
            },
            EngineError::DeadlinePassed | EngineError::WorkerPanicked => Self::unexpected(&error),
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
        tracing::error!("{error}");
        Self::internal()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(_) => {
                let detail = "all places are taken; try again after the time in Retry-After";
                Self::unavailable("overloaded", "Overloaded", detail, RETRY_AFTER)
            }
            Refusal::Draining => {
                let detail = "the service is shutting down; try another instance";
                Self::unavailable(
                    "shutting-down",
                    "Shutting down",
                    detail,
                    RETRY_AFTER_RESTART,
                )
            }
        }
    }
}

impl From<NotReady> for Failure {
    fn from(reason: NotReady) -> Self {
        let text = reason.to_string();
        let (code, title, detail) = match reason {
            NotReady::Draining => return Refusal::Draining.into(),
            NotReady::WorkerGone | NotReady::WorkerStuck(_) => {
                ("not-ready", "Not ready", text.as_str())
            }
            NotReady::OutOfDeviceMemory => {
                let detail = "the model's device has no memory at the moment; try again after the time in Retry-After";
                ("device-out-of-memory", "Out of device memory", detail)
            }
            NotReady::DeviceLost => {
                let detail = "the model's device has failed, and this instance must be restarted; try another one";
                ("device-lost", "Device lost", detail)
            }
        };
        Self::unavailable(code, title, detail, RETRY_AFTER_RESTART)
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let detail = error.public_message();
        match error {
            FetchError::Unusable(_) | FetchError::Answer(_) => {
                tracing::info!("{error}");
                Self::unprocessable(
                    "image-unavailable",
                    "The image URL could not be used",
                    detail,
                )
            }
            FetchError::TooLarge { .. } => {
                Self::too_large("image-too-large", "The image is too large", detail)
            }
            FetchError::InvalidDataUrl(_) => Self::invalid_request(detail),
            FetchError::Busy { .. } => {
                Self::unavailable("overloaded", "Overloaded", &detail, RETRY_AFTER)
            }
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let detail = error.to_string();
        match error {
            ImageError::Unsupported { .. } => Self::UnsupportedImage(Json(Problem::of(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-image",
                "Not an image that we decode",
                detail,
            ))),
            ImageError::TooLarge { .. } | ImageError::TooMuchMemory { .. } => {
                Self::too_large("image-too-large", "The image is too large", detail)
            }
            ImageError::Malformed { .. } => {
                Self::unprocessable("invalid-image", "The image is damaged", detail)
            }
        }
    }
}
