//! Failures as plain values, and the problem documents (RFC 9457) that clients get for them.
//!
//! A [`Failure`] is written down where something goes wrong, like the row of a table: status, code,
//! title, the text for the client, and the line for the log. To make one has no effect. It travels
//! up as the error of a handler until the middleware renders it, writes its log line and counts it.

use std::borrow::Cow;

use poem::http::{HeaderName, HeaderValue, StatusCode, header};
use poem::{IntoResponse, Response};
use poem_openapi::payload::Json;
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Object};

use super::context::RequestId;

/// The media type of problem documents.
const PROBLEM_JSON: &str = "application/problem+json";

/// Seconds after which a refused request may find a place: the service works a queue of the default
/// size off in a few of these.
pub(super) const RETRY_AFTER: u32 = 1;

/// Seconds after which a starting service may be ready, or a load balancer has left a stopping one.
pub(super) const RETRY_AFTER_RESTART: u32 = 5;

/// The longest text about one failure, in bytes.
///
/// Such texts repeat what the client has sent, for example the name of a field, which may be as long
/// as the body.
const MAX_DETAIL: usize = 1000;

/// The longest part of such a text that repeats a name which the client has chosen, in bytes.
const MAX_NAME: usize = 200;

/// Cuts a name that a client has chosen off at [`MAX_NAME`].
pub(super) fn clip<'a>(name: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    clip_at(name.into(), MAX_NAME)
}

fn clip_at(text: Cow<'_, str>, length: usize) -> Cow<'_, str> {
    if text.len() <= length {
        return text;
    }
    let end = text.floor_char_boundary(length);
    Cow::Owned(format!("{}... ({} bytes)", &text[..end], text.len()))
}

/// One way in which a request has failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
    retry_after: Option<u32>,
    // Boxed because few failures have one, and a failure is moved often.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    log: Option<LogLine>,
}

/// What the log says about a failure, beside the line that every request has.
#[derive(Debug, Clone)]
enum LogLine {
    /// The client, or the server that it named, is the cause.
    Info(String),
    /// We are the cause.
    Error(String),
}

impl Failure {
    /// Makes a failure.
    ///
    /// `code` names the kind of failure for programs and is the reason by which refusals are
    /// counted; it never changes. `title` says the same for people. `detail` says what was wrong
    /// this time and what to do; the client reads it, so it must hold nothing that the client may
    /// not know.
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            title,
            detail: clip_at(detail.into(), MAX_DETAIL),
            retry_after: None,
            header: None,
            log: None,
        }
    }

    /// Tells the client to try again after so many seconds.
    pub(super) fn retry_after(self, seconds: u32) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// Adds a header that the status asks for.
    pub(super) fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self {
            header: Some(Box::new((name, value))),
            ..self
        }
    }

    /// Puts `text` into the log, for what the client or another server has caused.
    pub(super) fn logged_as_info(self, text: impl ToString) -> Self {
        Self {
            log: Some(LogLine::Info(text.to_string())),
            ..self
        }
    }

    /// The body is not JSON.
    pub(super) fn malformed_json(detail: impl Into<Cow<'static, str>>) -> Self {
        let (code, title) = ("malformed-json", "The body is not JSON");
        Self::new(StatusCode::BAD_REQUEST, code, title, detail)
    }

    /// The request is well-formed, but not what the route asks for.
    pub(super) fn invalid_request(detail: impl Into<Cow<'static, str>>) -> Self {
        let (code, title) = ("invalid-request", "The request is invalid");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, title, detail)
    }

    /// The request, its image or the image's pixels exceed a limit.
    pub(super) fn too_large(
        code: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, title, detail)
    }

    /// The service cannot serve the request at the moment.
    pub(super) fn unavailable(
        code: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
        retry_after: u32,
    ) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, title, detail).retry_after(retry_after)
    }

    /// Something failed on our side, and the log has its reason already.
    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "something failed on our side; the log knows it under this request's id",
        )
    }

    /// Something failed on our side. `reason` goes into the log, and the client does not see it.
    pub(super) fn internal_because(reason: impl ToString) -> Self {
        Self {
            log: Some(LogLine::Error(reason.to_string())),
            ..Self::internal()
        }
    }

    /// An error of the HTTP framework, by its status: an unknown route, a wrong method, and
    /// whatever else it finds.
    pub(super) fn of_framework(status: StatusCode, method: &str, path: &str) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(
                status,
                "not-found",
                "There is no such route",
                format!("there is no route {path}; see /docs"),
            ),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(
                status,
                "method-not-allowed",
                "The route knows other methods",
                format!("{path} does not take {method}; see /docs"),
            )
            // RFC 9110 asks for this header in every answer with this status.
            .with_header(
                header::ALLOW,
                HeaderValue::from_static(allowed_methods(path)),
            ),
            other if other.is_client_error() => Self::new(
                StatusCode::BAD_REQUEST,
                "bad-request",
                other.canonical_reason().unwrap_or("Bad request"),
                "see /docs for what is asked for",
            ),
            _ => Self::internal(),
        }
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Writes the failure's line into the log, if it has one.
    pub(super) fn log(&self) {
        match &self.log {
            None => {}
            Some(LogLine::Info(text)) => tracing::info!("{text}"),
            Some(LogLine::Error(text)) => tracing::error!("{text}"),
        }
    }

    /// Returns the problem document of this failure of the request `id`.
    pub(super) fn problem(&self, id: &RequestId) -> Problem {
        Problem {
            kind: format!("urn:imgclass:problem:{}", self.code),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone().into_owned(),
            instance: format!("urn:imgclass:request:{id}"),
            code: self.code.to_owned(),
        }
    }

    /// Returns the response of the request `id`, with a problem document as its body. The failure
    /// goes along in its extensions.
    pub(super) fn into_response(self, id: &RequestId) -> Response {
        let mut response = Json(self.problem(id)).into_response();
        let content_type = HeaderValue::from_static(PROBLEM_JSON);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 asks for this header in every answer with this status.
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        self.mark(&mut response);
        response.set_data(self);
        response
    }

    /// Gives `response` the failure's status and `Retry-After` header.
    pub(super) fn mark(&self, response: &mut Response) {
        response.set_status(self.status);
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some((name, value)) = self.header.as_deref() {
            response.headers_mut().insert(name, value.clone());
        }
    }
}

/// Returns the methods of the route that has refused another one.
fn allowed_methods(path: &str) -> &'static str {
    let path = path.trim_end_matches('/');
    match path {
        "/classify_image" | "/v1/classify" | "/v1/embeddings" | "/v1/explain" => "POST",
        "/v2/repository/index" => "POST",
        _ if path.ends_with("/infer") || path.ends_with(":predict") => "POST",
        _ => "GET, HEAD",
    }
}

/// The error of a handler on its way to the middleware, which is the one to know the request's id.
impl From<Failure> for poem::Error {
    fn from(failure: Failure) -> Self {
        let mut error = Self::from_status(failure.status);
        error.set_data(failure);
        error
    }
}

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
        let failure = Failure::invalid_request("image_url: missing field");
        failure.problem(&RequestId::new("3f2a9c0d5e6b7a81"))
    }
}

/// One row of the specification: a status that a failure may have, what it means, and the header
/// that comes with it.
type DocumentedStatus = (u16, &'static str, Option<fn() -> MetaHeader>);

/// Every status that a failure may have, in the order of the specification.
const STATUSES: [DocumentedStatus; 12] = [
    (400, "The body is not JSON.", None),
    (
        401,
        "Keys are asked for, and the request has none or a wrong one.",
        Some(|| documented_header::<String>("WWW-Authenticate", "How to send a key.")),
    ),
    (404, "There is no such route.", None),
    (405, "The route knows other methods.", None),
    (408, "The client took too long to send its body.", None),
    (
        413,
        "The body, the fetched image or its pixels exceed a limit.",
        None,
    ),
    (415, "The bytes are not an image that we decode.", None),
    (
        422,
        "The body is JSON but not what is asked for, the URL cannot be used, or the image is damaged.",
        None,
    ),
    (
        429,
        "More requests than this key or address may make: try again after the given time.",
        Some(|| documented_header::<u32>("Retry-After", "Seconds to wait.")),
    ),
    (
        500,
        "Our fault; the log knows more under the request id.",
        None,
    ),
    (
        503,
        "Overloaded, still loading or shutting down: try again after the given time.",
        Some(|| documented_header::<u32>("Retry-After", "Seconds to wait.")),
    ),
    (504, "The deadline passed.", None),
];

fn documented_header<T: Type>(name: &str, description: &str) -> MetaHeader {
    MetaHeader {
        name: name.to_uppercase(),
        description: Some(description.to_owned()),
        required: true,
        deprecated: false,
        schema: T::schema_ref(),
    }
}

/// What the specification says about failures: the same for every route.
impl ApiResponse for Failure {
    fn meta() -> MetaResponses {
        let response = |(status, description, header): DocumentedStatus| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: PROBLEM_JSON,
                schema: Problem::schema_ref(),
            }],
            headers: header.into_iter().map(|header| header()).collect(),
        };
        MetaResponses {
            responses: STATUSES.map(response).into(),
        }
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}
