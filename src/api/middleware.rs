//! What surrounds every request: its id, its line in the log, and problem documents for whatever the framework refuses by itself.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::FutureExt;
use poem::http::{HeaderValue, StatusCode};
use poem::{Endpoint, IntoResponse, Middleware, Request, Response};
use poem_openapi::error::ParseParamError;
use tracing::Instrument;

use super::inference;
use super::problem::Failure;

tokio::task_local! {
    /// The id of the request that this task serves.
    static REQUEST_ID: String;
}

/// The id of the request that is being served; empty outside of one.
pub(super) fn current_request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// The longest id that a client may choose.
const MAX_REQUEST_ID: usize = 128;

/// Gives every request its context.
pub(super) struct RequestContext;

impl<E: Endpoint> Middleware<E> for RequestContext {
    type Output = ContextEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        ContextEndpoint { inner }
    }
}

pub(super) struct ContextEndpoint<E> {
    inner: E,
}

impl<E: Endpoint> Endpoint for ContextEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let start = Instant::now();
        let id = request_id(&request);
        let method = request.method().to_string();
        let path = request.uri().path().to_owned();
        let span = tracing::info_span!("request", id);

        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let answering = async {
            let mut response = match answer.await {
                Ok(Ok(response)) => response.into_response(),
                Ok(Err(error)) => response_of(error, &method, &path),
                Err(_panic) => {
                    tracing::error!("a handler panicked");
                    failure(StatusCode::INTERNAL_SERVER_ERROR, &method, &path)
                }
            };
            if let Ok(value) = HeaderValue::from_str(&id) {
                response.headers_mut().insert("x-request-id", value);
            }
            let status = response.status().as_u16();
            let ms = start.elapsed().as_secs_f64() * 1e3;
            tracing::info!(method, path, status, ms, "answered");
            response
        };
        Ok(REQUEST_ID
            .scope(id.clone(), answering.instrument(span))
            .await)
    }
}

/// The framework's errors as problem documents; ours are that already.
fn response_of(error: poem::Error, method: &str, path: &str) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    if error.status().is_server_error() {
        tracing::error!("{error}");
    }
    if let Some(error) = error.downcast_ref::<ParseParamError>() {
        let detail = format!("{}: {}", error.name, error.reason);
        return poem::Error::from(Failure::invalid_request(detail)).into_response();
    }
    failure(error.status(), method, path)
}

fn failure(status: StatusCode, method: &str, path: &str) -> Response {
    if inference::owns(path) {
        return inference::framework_error(status, method, path);
    }
    poem::Error::from(Failure::of_framework(status, method, path)).into_response()
}

/// The client's id if it is one that a log and a header can carry, else one of ours.
fn request_id(request: &Request) -> String {
    request
        .header("x-request-id")
        .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()))
        .filter(|id| {
            id.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
        })
        .map_or_else(fresh_id, str::to_owned)
}

/// 16 hexadecimal digits, unlikely to meet again: a counter under a hash whose keys are this process's own.
fn fresh_id() -> String {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!(
        "{:016x}",
        KEYS.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
    )
}
