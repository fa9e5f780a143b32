//! Reads request bodies within their limits and parses them as JSON.
//!
//! Every parse error names the field that it is about. The `Content-Type` of a JSON body does not
//! matter, so that plain `curl -d`, which calls its body a form, works.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::http::StatusCode;
use poem::{Body, Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::context::BodyMemory;
use super::problem::{Failure, RETRY_AFTER};
use super::state::{ApiState, state_of};

/// Extracts a JSON body from a request.
pub(super) struct JsonBody<T>(pub(super) T);

impl<'a, T: Type + DeserializeOwned> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: Json::<T>::CONTENT_TYPE,
                schema: T::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = read(request, body).await?;
        Ok(Self(parse(&bytes)?))
    }
}

/// Reads a request's whole body. Its share of the memory for bodies is held until the request is
/// answered.
///
/// # Errors
/// A [`Failure`] where the body is larger than the limit (before it is read, if its length was
/// announced), comes too slowly, breaks off, or where the memory for bodies is used up.
pub(super) async fn read(request: &Request, body: &mut RequestBody) -> Result<Bytes, Failure> {
    let state = state_of(request)?;
    let limits = state.limits();
    let announced = request
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.payload_limit) {
        return Err(payload_too_large(limits.payload_limit));
    }
    let missing = || Failure::internal_because("the request has no share of the memory for bodies");
    let memory = request.data::<BodyMemory>().ok_or_else(missing)?;
    let body = body.take().map_err(Failure::internal_because)?;
    let collecting = collect(body, announced.unwrap_or(0), state, memory);
    let collected = tokio::time::timeout(limits.body_timeout, collecting).await;
    collected.unwrap_or_else(|_| {
        Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "request-timeout",
            "The request came too slowly",
            format!(
                "the body was not complete after {} s",
                limits.body_timeout.as_secs_f64()
            ),
        ))
    })
}

/// Reads what comes, however many bytes were announced. Memory for the announced bytes is reserved
/// at once, and memory for further ones as they come.
async fn collect(
    body: Body,
    announced: usize,
    state: &ApiState,
    memory: &BodyMemory,
) -> Result<Bytes, Failure> {
    let limit = state.limits().payload_limit;
    let reserve = |bytes: usize| -> Result<(), Failure> {
        memory.hold(state.reserve_body(bytes).ok_or_else(no_room)?);
        Ok(())
    };
    let mut reserved = announced;
    reserve(announced)?;
    let mut bytes = BytesMut::with_capacity(announced);
    let mut chunks = pin!(body.into_bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| broken_off())?;
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(payload_too_large(limit));
        }
        if length > reserved {
            // Doubled each time, as the buffer itself grows.
            let more = length.max(2 * reserved).min(limit) - reserved;
            reserve(more)?;
            reserved += more;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn payload_too_large(limit: usize) -> Failure {
    Failure::too_large(
        "payload-too-large",
        "The request is too large",
        format!(
            "the request's body is larger than {limit} bytes; send a smaller image, or its URL"
        ),
    )
}

fn no_room() -> Failure {
    Failure::unavailable(
        "overloaded",
        "Overloaded",
        "too much is being received at the moment; try again after the time in Retry-After",
        RETRY_AFTER,
    )
}

fn broken_off() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "incomplete-body",
        "The body is incomplete",
        "the body ended before it was complete",
    )
}

/// Parses a JSON object.
///
/// # Errors
/// A [`Failure`] where the bytes are not JSON, not an object, or where a field is wrong.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| malformed_json(error.to_string()))?;
    if !value.is_object() {
        return Err(Failure::invalid_request("expected a JSON object"));
    }
    typed(value)
}

fn malformed_json(detail: String) -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "malformed-json",
        "The body is not JSON",
        detail,
    )
}

/// Converts a JSON value to `T`.
///
/// # Errors
/// A [`Failure`] that names the field that is wrong.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        Failure::invalid_request(match path.as_str() {
            "." => reason.to_string(),
            field => format!("{field}: {reason}"),
        })
    })
}
