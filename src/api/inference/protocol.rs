//! What the inference protocols share: their form of errors, the reading of bodies and images, and the
//! models that their paths may name.

use std::borrow::Cow;

use poem::http::StatusCode;
use poem::web::Json;
use poem::{FromRequest, IntoResponse, Request, RequestBody, Response};
use serde_json::json;

use crate::api::body::{Whole, read};
use crate::api::images::decode_base64;
use crate::api::problem::{Failure, clip};
use crate::api::state::{ApiState, NamedModel};
use crate::service::{Answer, Ask, Model, Service, Source};

/// The only version of the model.
pub(super) const VERSION: &str = "1";

/// The label of that version, by which clients of TensorFlow Serving may name it.
const LABEL: &str = "stable";

/// An error in these protocols' form: `{"error": "..."}`.
#[derive(Debug)]
pub(super) struct ProtocolError {
    failure: Failure,
    /// The index of the image that failed; `None` where it was the request.
    image: Option<u32>,
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
        let place = image.map_or_else(String::new, |image| format!("image {image}: "));
        let text = format!("{place}{}", failure.detail());
        let mut response = Json(json!({"error": text})).into_response();
        failure.mark(&mut response);
        let mut error = Self::from_response(response);
        // The framework replaces the extensions of the response by those of the error.
        error.set_data(failure);
        error
    }
}

pub(super) type Result<T> = std::result::Result<T, ProtocolError>;

/// Makes the error for a request that breaks the rules of its protocol; `detail` says what is wrong
/// and where.
pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> ProtocolError {
    let (code, title) = ("bad-request", "The request is malformed");
    Failure::new(StatusCode::BAD_REQUEST, code, title, detail).into()
}

/// Extracts a request's body, within the limits.
pub(super) struct Body(pub(super) Whole);

impl<'a> FromRequest<'a> for Body {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> poem::Result<Self> {
        let body = read(request, body).await.map_err(ProtocolError::from)?;
        Ok(Self(body))
    }
}

/// Returns the model that the path names, the checkpoint's own classes or a head, and checks its
/// version or label. `action` is what the paths of TensorFlow Serving have at their end, with its
/// colon: `":predict"`.
///
/// # Errors
/// A [`ProtocolError`] with status 404 where it is another model or version.
pub(super) fn check_model(state: &ApiState, request: &Request, action: &str) -> Result<NamedModel> {
    let of = |name| request.raw_path_param(name);
    let no_such = |detail: String| {
        let (code, title) = ("not-found", "There is no such model");
        Err(Failure::new(StatusCode::NOT_FOUND, code, title, detail).into())
    };
    let model = of("model").unwrap_or_default();
    let (version, label) = (of("version"), of("label"));
    let is_last = version.is_none() && label.is_none();
    let name = if is_last {
        model.strip_suffix(action)
    } else {
        Some(model)
    };
    let named = match name {
        // Until the model is loaded, its own name is the only one that is known.
        Some(name) if name == state.model_name() => Some(NamedModel {
            name: name.to_owned(),
            model: Model::Checkpoint,
        }),
        Some(name) => state.find_model(name)?,
        None => None,
    };
    let Some(named) = named else {
        return no_such(format!(
            "there is no model {}; this service has {}{action}",
            clip(model),
            state.model_names().join(", ")
        ));
    };
    let is_other =
        |text: Option<&str>, only| text.is_some_and(|text| text.strip_suffix(action) != Some(only));
    match (version, label) {
        (_, label) if is_other(label, LABEL) => no_such(format!(
            "the model {} has the label {LABEL}{action} alone",
            named.name
        )),
        (version, _) if is_other(version, VERSION) => {
            no_such(format!("the model has version {VERSION}{action} alone"))
        }
        _ => Ok(named),
    }
}

/// Answers for all images.
///
/// # Errors
/// The failure of the first image that failed: these protocols have no place for errors of single
/// images.
pub(super) async fn answer_all(
    service: &Service,
    sources: Vec<Source>,
    ask: Ask,
) -> Result<Vec<Answer>> {
    let answers = service.answer(sources, ask, |answer| answer).await;
    let answers = answers.map_err(Failure::from)?;
    let answers = answers.into_iter().enumerate();
    let answers = answers.map(|(position, answer)| {
        answer.map_err(|error| ProtocolError {
            failure: Failure::in_field(error, "url"),
            image: u32::try_from(position).ok(),
        })
    });
    answers.collect()
}

/// Renders a failure in these protocols' form.
pub(in crate::api) fn respond(failure: Failure) -> Response {
    poem::Error::from(ProtocolError::from(failure)).into_response()
}

/// Reads an image from a text of JSON: a URL if it has a colon, as every scheme ends with one, else
/// base64, whose alphabet has none.
pub(super) fn text_source(text: &str) -> std::result::Result<Source, String> {
    if text.contains(':') {
        Ok(Source::Url(text.to_owned()))
    } else {
        decode_base64(text)
    }
}
