//! What surrounds every request: its id, its line in the log, its place in the metrics, and problem documents for whatever the framework
//! refuses by itself.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures_util::FutureExt;
use poem::http::{HeaderValue, Method, StatusCode};
use poem::{Endpoint, IntoResponse, Middleware, PathPattern, Request, Response};
use poem_openapi::error::ParseParamError;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;
use tracing::field::Empty;

use super::cors::Cors;
use super::inference;
use super::problem::Failure;
use super::trace;
use crate::metrics::Metrics;

tokio::task_local! {
    /// The request that this task serves.
    static CURRENT: Current;
}

/// What the layers under this one ask and tell about the request that is being served.
struct Current {
    id: String,
    /// The code of the last problem document that was made.
    problem: Cell<Option<&'static str>>,
    /// What is given back when the request has its answer.
    held: RefCell<Vec<OwnedSemaphorePermit>>,
}

/// The id of the request that is being served; empty outside of one.
pub(super) fn current_request_id() -> String {
    CURRENT
        .try_with(|current| current.id.clone())
        .unwrap_or_default()
}

/// Remembers the kind of problem for the log and the metrics.
pub(super) fn note_problem(code: &'static str) {
    // Outside of a request, as for the specification's examples, there is nobody to tell.
    let _ = CURRENT.try_with(|current| current.problem.set(Some(code)));
}

/// Keeps `share` until the request has its answer or its client has left.
pub(super) fn hold_until_answered(share: OwnedSemaphorePermit) {
    // Outside of a request it is given back at once.
    let _ = CURRENT.try_with(|current| current.held.borrow_mut().push(share));
}

/// The longest id that a client may choose.
const MAX_REQUEST_ID: usize = 128;

/// The route of requests that match none: what was asked for is a stranger's text.
const UNMATCHED: &str = "unmatched";

/// Gives every request its context.
pub(super) struct RequestContext {
    metrics: Option<Arc<Metrics>>,
    cors: Cors,
}

impl RequestContext {
    /// Counts into `metrics`, if there are any, and opens every answer, errors too, to the origins of `cors`.
    pub(super) fn new(metrics: Option<Arc<Metrics>>, cors: Cors) -> Self {
        Self { metrics, cors }
    }
}

impl<E: Endpoint> Middleware<E> for RequestContext {
    type Output = ContextEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        ContextEndpoint {
            inner,
            metrics: self.metrics.clone(),
            cors: self.cors.clone(),
        }
    }
}

pub(super) struct ContextEndpoint<E> {
    inner: E,
    metrics: Option<Arc<Metrics>>,
    cors: Cors,
}

/// What is remembered of a request while it is worked on.
struct Asked {
    start: Instant,
    id: String,
    method: Method,
    path: String,
    /// Whose pages may read the answer.
    origin: Option<HeaderValue>,
}

impl<E: Endpoint> Endpoint for ContextEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let asked = Asked {
            start: Instant::now(),
            id: request_id(&request),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            origin: self.cors.origin(&request),
        };
        let id = &asked.id;
        let span = tracing::info_span!("request", id, trace_id = Empty, otel.kind = Empty);
        trace::begin(&span, &request);
        let current = Current {
            id: id.clone(),
            problem: Cell::new(None),
            held: RefCell::default(),
        };
        let answering = async {
            // In here, so that its end is told within the request's span too.
            let mut leaving = Leaving(self.metrics.as_deref());
            let answer = AssertUnwindSafe(self.answer(request)).catch_unwind().await;
            leaving.has_its_answer();
            self.finish(answer, &asked)
        };
        Ok(CURRENT.scope(current, answering.instrument(span)).await)
    }
}

impl<E: Endpoint> ContextEndpoint<E> {
    async fn answer(&self, request: Request) -> poem::Result<Response> {
        match self.cors.preflight(&request) {
            Some(response) => Ok(response),
            None => Ok(self.inner.call(request).await?.into_response()),
        }
    }

    /// Any outcome as a response with the headers that all have; counted, and told to the log and to the trace.
    fn finish(
        &self,
        answer: std::thread::Result<poem::Result<Response>>,
        asked: &Asked,
    ) -> Response {
        let (method, path) = (asked.method.as_str(), &asked.path);
        let (mut response, route) = match answer {
            Ok(Ok(response)) => {
                let route = response.data::<PathPattern>().cloned();
                (response, route)
            }
            Ok(Err(error)) => {
                let route = error.data::<PathPattern>().cloned();
                (response_of(error, method, path), route)
            }
            Err(_panic) => {
                tracing::error!("a handler panicked");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                (failure(status, method, path), None)
            }
        };
        self.cors.open(&mut response, asked.origin.clone());
        if let Ok(value) = HeaderValue::from_str(&asked.id) {
            response.headers_mut().insert("x-request-id", value);
        }
        let route = route.as_ref().map_or(UNMATCHED, |r| template(&r.0, path));
        self.tell(asked, route, response.status());
        response
    }

    fn tell(&self, asked: &Asked, route: &str, status: StatusCode) {
        let problem = CURRENT.with(|current| current.problem.get());
        let problem = problem.filter(|_| !status.is_success());
        let (took, known) = (asked.start.elapsed(), known(&asked.method));
        trace::end(known, route, status);
        if let Some(metrics) = &self.metrics {
            metrics.request_answered(known, route, status.as_u16(), took);
            if let Some(reason) = problem.filter(|_| is_rejection(status)) {
                metrics.request_rejected(reason);
            }
        }
        let (method, path) = (&asked.method, &asked.path);
        let (status, ms) = (status.as_u16(), took.as_secs_f64() * 1e3);
        tracing::info!(%method, path, status, problem, ms, "answered");
    }
}

/// Counts a request whose future is dropped before its answer: the server does that when the client leaves.
struct Leaving<'a>(Option<&'a Metrics>);

impl Leaving<'_> {
    fn has_its_answer(&mut self) {
        self.0 = None;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.request_abandoned();
            tracing::info!("the client left before its answer");
        }
    }
}

/// The route as the specification names it. Where nothing in the specification matched, its root did.
fn template<'a>(pattern: &'a str, path: &str) -> &'a str {
    match pattern {
        "" | "/" if path != "/" => UNMATCHED,
        "/classify_image" => "/classify_image/",
        other => other,
    }
}

/// The method as a label: extensions are a stranger's text.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Whether a status says that a limit or a missing key stood in the way, and not what was asked.
fn is_rejection(status: StatusCode) -> bool {
    [401, 408, 413, 429, 503, 504].contains(&status.as_u16())
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
