//! Request bodies as JSON: read within their limits, parsed with the field's name in every error. The body decides, not its
//! `Content-Type`: `curl -d` works as it is.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::{Body, Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::middleware::hold_until_answered;
use super::problem::Failure;
use super::state::ApiState;

/// A JSON body.
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

/// The whole body, if it is within its limits; a body that announces more is refused before it is read. Its share of the memory for
/// bodies is held until the request is answered.
pub(super) async fn read(request: &Request, body: &mut RequestBody) -> Result<Bytes, Failure> {
    let state = request.data::<ApiState>().ok_or_else(Failure::loading)?;
    let limits = state.limits();
    let announced = request
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.payload_limit) {
        return Err(Failure::payload_too_large(limits.payload_limit));
    }
    // Taken twice would be a fault of ours.
    let body = body.take().map_err(|_| Failure::internal())?;
    let collecting = collect(body, announced.unwrap_or(0), state);
    match tokio::time::timeout(limits.body_timeout, collecting).await {
        Ok(bytes) => bytes,
        Err(_) => Err(Failure::body_timeout(limits.body_timeout)),
    }
}

/// Reads what comes, whatever was announced; memory is reserved for what was announced at once, and beyond that as it comes.
async fn collect(body: Body, announced: usize, state: &ApiState) -> Result<Bytes, Failure> {
    let limit = state.limits().payload_limit;
    let mut reserved = announced;
    hold_until_answered(state.reserve_body(announced)?);
    let mut bytes = BytesMut::with_capacity(announced);
    let mut chunks = pin!(body.into_bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Failure::broken_body())?;
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(Failure::payload_too_large(limit));
        }
        if length > reserved {
            // By doubling, as the buffer grows.
            let more = length.max(2 * reserved).min(limit) - reserved;
            hold_until_answered(state.reserve_body(more)?);
            reserved += more;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Failure::malformed_json(error.to_string()))?;
    if !value.is_object() {
        return Err(Failure::invalid_request(
            "expected a JSON object".to_owned(),
        ));
    }
    typed(value)
}

/// A JSON value as what is asked for; errors name the field.
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
