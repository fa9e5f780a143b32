//! What surrounds every request: its id, its span, its line in the log, its place in the metrics,
//! and the rendering of failures.
//!
//! The layers below return failures as values. This layer turns them into responses, which carry
//! the failure in their extensions, and then tells the log and the metrics what the response says.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Body as _;
use poem::http::{HeaderValue, Method, StatusCode, header};
use poem::{Body, Endpoint, IntoResponse, Middleware, PathPattern, Request, Response};
use poem_openapi::error::ParseParamError;
use tokio::sync::Semaphore;
use tracing::Instrument;
use tracing::field::Empty;

use super::context::{AnswerMemory, BodyMemory, LacksSlash, RefusedHead, RequestId, SharedAnswer};
use super::cors::Cors;
use super::inference;
use super::problem::{Failure, RETRY_AFTER};
use super::trace;
use crate::metrics::Metrics;

/// The most characters of an id that a client chooses.
const MAX_REQUEST_ID: usize = 128;

/// The route of requests that match none. Their paths are never used as labels, because strangers
/// choose them.
const UNMATCHED: &str = "unmatched";

/// The longest answer that may leave whatever else waits to leave: those of probes, and refusals.
const SMALL_ANSWER: u64 = 1024;

/// The middleware around all routes.
pub(super) struct RequestContext {
    metrics: Option<Arc<Metrics>>,
    cors: Cors,
    answer_memory: Arc<Semaphore>,
}

impl RequestContext {
    /// Makes a middleware that counts into `metrics`, if there are any, and lets the pages of the
    /// origins of `cors` read every answer, errors too. Answers hold shares of `answer_memory`, of
    /// which a permit stands for a KiB, until they have left.
    pub(super) fn new(
        metrics: Option<Arc<Metrics>>,
        cors: Cors,
        answer_memory: Arc<Semaphore>,
    ) -> Self {
        Self {
            metrics,
            cors,
            answer_memory,
        }
    }
}

impl<E: Endpoint> Middleware<E> for RequestContext {
    type Output = ContextEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        ContextEndpoint {
            inner,
            metrics: self.metrics.clone(),
            cors: self.cors.clone(),
            answer_memory: self.answer_memory.clone(),
        }
    }
}

pub(super) struct ContextEndpoint<E> {
    inner: E,
    metrics: Option<Arc<Metrics>>,
    cors: Cors,
    answer_memory: Arc<Semaphore>,
}

/// What is remembered of a request while it is worked on.
struct Asked {
    start: Instant,
    id: RequestId,
    method: Method,
    path: String,
    /// The origin whose pages may read the answer.
    origin: Option<HeaderValue>,
}

impl<E: Endpoint> Endpoint for ContextEndpoint<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let asked = Asked {
            start: Instant::now(),
            id: request_id(&request),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            origin: self.cors.origin(&request),
        };
        let id = asked.id.as_str();
        let span = tracing::info_span!("request", id, trace_id = Empty, otel.kind = Empty);
        trace::begin(&span, request.headers());

        request.set_data(asked.id.clone());
        let body_memory = BodyMemory::default();
        request.set_data(body_memory.clone());

        let answering = async {
            // In here, so that its end is logged within the request's span too.
            let mut leaving = Leaving(self.metrics.as_deref());
            let answer = AssertUnwindSafe(self.answer(request)).catch_unwind().await;
            leaving.has_its_answer();
            drop(body_memory);

            let (response, pattern) = self.finish(answer, &asked);
            let route = pattern
                .as_ref()
                .map_or(UNMATCHED, |p| template(&p.0, &asked.path));
            self.tell(&asked, route, &response);
            response
        };
        Ok(answering.instrument(span).await)
    }
}

impl<E: Endpoint> ContextEndpoint<E> {
    async fn answer(&self, request: Request) -> poem::Result<Response> {
        if let Some(refused) = request.data::<RefusedHead>() {
            return Err(bad_head(*refused).into());
        }
        if let Some(LacksSlash(path)) = request.data::<LacksSlash>() {
            let location = path.clone();
            let response = Response::builder().status(StatusCode::PERMANENT_REDIRECT);
            return Ok(response.header(header::LOCATION, location).finish());
        }
        match self.cors.preflight(&request) {
            Some(response) => Ok(response),
            None => Ok(self.inner.call(request).await?.into_response()),
        }
    }

    /// Turns any outcome into a response with the headers that all responses have. Returns the
    /// router's pattern that the request has matched too.
    fn finish(
        &self,
        answer: std::thread::Result<poem::Result<Response>>,
        asked: &Asked,
    ) -> (Response, Option<PathPattern>) {
        let (response, pattern) = match answer {
            Ok(Ok(response)) => {
                let pattern = response.data::<PathPattern>().cloned();
                (response, pattern)
            }
            Ok(Err(error)) => {
                let pattern = error.data::<PathPattern>().cloned();
                (error_response(error, asked), pattern)
            }
            Err(_panic) => {
                let failure = Failure::internal_because("a handler panicked");
                (framework_response(failure, asked), None)
            }
        };
        let mut response = self.hold(response, asked);
        self.cors.open(&mut response, asked.origin.clone());
        if let Ok(value) = HeaderValue::from_str(asked.id.as_str()) {
            response.headers_mut().insert("x-request-id", value);
        }
        (response, pattern)
    }

    /// Takes memory for an answer until it has left. An answer for which there is none becomes 503.
    fn hold(&self, mut response: Response, asked: &Asked) -> Response {
        if response.data::<SharedAnswer>().is_some() {
            return response;
        }
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        let length = body.size_hint().lower();
        response.set_body(Body::from(body));
        if length <= SMALL_ANSWER {
            return response;
        }
        let permits = u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX);
        let memory = self.answer_memory.clone();
        match memory.try_acquire_many_owned(permits) {
            Ok(share) => response.set_data(AnswerMemory::new(share)),
            Err(_) => {
                let failure = Failure::unavailable(
                    "overloaded",
                    "Overloaded",
                    "too many answers wait to be read; try again after the time in Retry-After",
                    RETRY_AFTER,
                );
                response = framework_response(failure, asked);
            }
        }
        response
    }

    /// Tells the trace, the metrics and the log about a response.
    fn tell(&self, asked: &Asked, route: &str, response: &Response) {
        let (took, status) = (asked.start.elapsed(), response.status());
        let failure = response.data::<Failure>();
        let problem = failure.map(Failure::code);
        let method = method_label(&asked.method);
        trace::end(method, route, status);
        if let Some(metrics) = &self.metrics {
            metrics.request_answered(method, route, status.as_u16(), took);
            if let Some(reason) = problem.filter(|_| is_rejection(status)) {
                metrics.request_rejected(reason);
            }
        }
        if let Some(failure) = failure {
            failure.log();
        }
        let (method, path) = (&asked.method, &asked.path);
        let (status, ms) = (status.as_u16(), took.as_secs_f64() * 1e3);
        tracing::info!(%method, path, status, problem, ms, "answered");
    }
}

/// Counts a request whose future is dropped before its answer, which is what the server does when
/// the client leaves.
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

/// Returns the route as the specification names it. `pattern` is the router's; a request that
/// matched nothing in the specification has matched the root of the specification's routes.
fn template<'a>(pattern: &'a str, path: &str) -> &'a str {
    match pattern {
        "" | "/" if path != "/" => UNMATCHED,
        "/classify_image" => "/classify_image/",
        other => other,
    }
}

/// Returns the method as a label. Methods that HTTP does not define become `other`, because
/// strangers choose them.
fn method_label(method: &Method) -> &'static str {
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

/// Says whether a status means that a limit or a missing key stood in the way, and not what was
/// asked.
fn is_rejection(status: StatusCode) -> bool {
    [401, 408, 413, 429, 503, 504].contains(&status.as_u16())
}

/// Turns the error of a route into a response.
fn error_response(error: poem::Error, asked: &Asked) -> Response {
    // Already rendered: by the inference protocols, whose errors have another form.
    if error.is_from_response() {
        return error.into_response();
    }
    // One of our failures.
    if let Some(failure) = error.data::<Failure>() {
        return failure.clone().into_response(&asked.id);
    }
    // An option that the framework could not read.
    if let Some(error) = error.downcast_ref::<ParseParamError>() {
        let detail = format!("{}: {}", error.name, error.reason);
        return Failure::invalid_request(detail).into_response(&asked.id);
    }
    // Whatever else the framework refuses by itself.
    let failure = if error.status().is_server_error() {
        Failure::internal_because(&error)
    } else {
        Failure::of_framework(error.status(), asked.method.as_str(), &asked.path)
    };
    framework_response(failure, asked)
}

fn bad_head(refused: RefusedHead) -> Failure {
    let malformed = |detail| {
        let (code, title) = ("bad-request", "The request is malformed");
        Failure::new(StatusCode::BAD_REQUEST, code, title, detail)
    };
    match refused {
        RefusedHead::NoHost => malformed("the request has no Host header, which HTTP/1.1 asks for"),
        RefusedHead::SeveralHosts => malformed("the request has more than one Host header"),
        RefusedHead::MalformedHost => {
            malformed("the Host header must be a host name or address, and perhaps a port")
        }
        RefusedHead::TooManyFields(limit) => Failure::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too-many-headers",
            "The request has too many headers",
            format!("the request has more than {limit} header fields; send fewer"),
        ),
    }
}

/// Renders a failure that no route knows about, in the form that belongs to the path.
fn framework_response(failure: Failure, asked: &Asked) -> Response {
    if inference::owns(&asked.path) {
        inference::respond(failure)
    } else {
        failure.into_response(&asked.id)
    }
}

/// Returns the id that the client has chosen if a log and a header can carry it, else one of ours.
fn request_id(request: &Request) -> RequestId {
    let id = request
        .header("x-request-id")
        .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()))
        .filter(|id| {
            id.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
        })
        .map_or_else(fresh_id, str::to_owned);
    RequestId::new(&id)
}

/// Returns 16 hexadecimal digits that are unlikely to be met again: the hash of a counter, under
/// keys that this process has drawn at random.
fn fresh_id() -> String {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!(
        "{:016x}",
        KEYS.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
    )
}
