//! Protocols that others' clients speak: the Open Inference Protocol and TensorFlow Serving's REST interface. Their routes, their form of
//! errors, and what they share; the work is the service's.

mod oip;
mod tensor;
mod tfs;

use bytes::Bytes;
use poem::http::{StatusCode, header};
use poem::web::Json;
use poem::{FromRequest, IntoResponse, Request, RequestBody, Response, Route, get, post};
use serde_json::json;

use super::body::read;
use super::problem::Failure;
use super::state::ApiState;
use crate::service::{Answer, Ask, Service, Source};

/// The one version of the model that there is.
const VERSION: &str = "1";

/// All routes of both protocols, added to others.
pub(super) fn routes(route: Route) -> Route {
    route
        .at("/v2", get(oip::server))
        .at("/v2/health/live", get(oip::live))
        .at("/v2/health/ready", get(oip::ready))
        .at("/v2/models/:model", get(oip::model))
        .at("/v2/models/:model/ready", get(oip::model_ready))
        .at("/v2/models/:model/infer", post(oip::infer))
        .at("/v2/models/:model/versions/:version", get(oip::model))
        .at(
            "/v2/models/:model/versions/:version/ready",
            get(oip::model_ready),
        )
        .at(
            "/v2/models/:model/versions/:version/infer",
            post(oip::infer),
        )
        .at("/v1/models/:model", get(tfs::status).post(tfs::predict))
        .at(
            "/v1/models/:model/versions/:version",
            get(tfs::status).post(tfs::predict),
        )
        .at("/v1/models/:model/metadata", get(tfs::metadata))
}

/// Whether a path belongs to these protocols, whose errors have a form of their own.
pub(super) fn owns(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/") || path.starts_with("/v1/models/")
}

/// An error in these protocols' form: `{"error": "..."}`.
#[derive(Debug)]
pub(super) struct ProtocolError {
    failure: Failure,
    /// The image that failed, counted from 0, where it was one.
    image: Option<usize>,
}

impl From<Failure> for ProtocolError {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            image: None,
        }
    }
}

impl From<ProtocolError> for poem::Error {
    fn from(ProtocolError { failure, image }: ProtocolError) -> Self {
        let retry_after = failure.retry_after();
        let problem = failure.into_problem();
        let status = StatusCode::from_u16(problem.status());
        let place = image.map_or_else(String::new, |image| format!("image {image}: "));
        let text = format!("{place}{}", problem.detail());
        let mut response = Json(json!({"error": text})).into_response();
        response.set_status(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        Self::from_response(response)
    }
}

type Result<T> = std::result::Result<T, ProtocolError>;

/// Malformed in the protocol's eyes; `detail` says what and where.
fn invalid(detail: impl Into<String>) -> ProtocolError {
    Failure::bad_request(detail.into()).into()
}

/// The request's bytes, within the limits.
pub(super) struct Body(Bytes);

impl<'a> FromRequest<'a> for Body {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> poem::Result<Self> {
        let bytes = read(request, body).await.map_err(ProtocolError::from)?;
        Ok(Self(bytes))
    }
}

/// The path's model and version must be ours, else 404. `action` is what TensorFlow Serving's paths have behind a colon.
fn known(state: &ApiState, request: &Request, action: &str) -> Result<()> {
    let of = |name| request.raw_path_param(name);
    let ours = |text: &str, expected| {
        text.strip_suffix(action)
            .is_some_and(|text| text == expected)
    };
    let no_such = |what: String| Err(Failure::no_model(what).into());
    let model = of("model").unwrap_or_default();
    match of("version") {
        None if ours(model, state.model_name()) => Ok(()),
        Some(version) if model == state.model_name() => match ours(version, VERSION) {
            true => Ok(()),
            false => no_such(format!("the model has version {VERSION}{action} alone")),
        },
        _ => no_such(format!(
            "there is no model {model}; this service has {}{action}",
            state.model_name()
        )),
    }
}

/// The answers to all images, or the first failure: these protocols have no place for errors of single images.
async fn answer_all(service: &Service, sources: Vec<Source>, ask: Ask) -> Result<Vec<Answer>> {
    let answers = service.answer(sources, ask).await.map_err(Failure::from)?;
    let answers = answers.into_iter().enumerate();
    let answers = answers.map(|(position, answer)| {
        answer.map_err(|error| ProtocolError {
            failure: Failure::in_field(error, "url"),
            image: Some(position),
        })
    });
    answers.collect()
}

/// A wrong method, an unknown path below a known one: the framework's errors in these protocols' form.
pub(super) fn framework_error(status: StatusCode, method: &str, path: &str) -> Response {
    let error = ProtocolError::from(Failure::of_framework(status, method, path));
    poem::Error::from(error).into_response()
}
