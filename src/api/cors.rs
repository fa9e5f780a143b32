//! Says which origins' pages may read our answers (the CORS protocol of the Fetch standard).
//!
//! The server refuses nobody for the origin: without these headers it is the browser that keeps an
//! answer from a page.

use poem::http::{HeaderValue, Method, StatusCode, header};
use poem::{Request, Response};

use crate::config::AllowedOrigin;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");

/// The headers that pages may send, beside those that every page may.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, inference-header-content-length, traceparent, x-api-key, x-request-id",
);

/// The headers that pages may read, beside those that every page may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "inference-header-content-length, retry-after, server-timing, x-model, x-request-id",
);

/// How many seconds a browser may remember the answer to a preflight. 600 is WebKit's bound, the
/// shortest of the browsers'.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origins whose pages may read our answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Cors {
    origins: Vec<AllowedOrigin>,
}

impl Cors {
    pub(super) fn new(origins: Vec<AllowedOrigin>) -> Self {
        Self { origins }
    }

    /// Returns the value of `Access-Control-Allow-Origin` for the answer to a request: its origin,
    /// or `*` where every origin is allowed; `None` where the origin is not allowed. Cookies and
    /// other credentials of browsers are never asked for, so `*` is safe.
    pub(super) fn origin(&self, request: &Request) -> Option<HeaderValue> {
        let origin = request.headers().get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        let allowed = self.origins.iter().find(|allowed| allowed.matches(text))?;
        Some(if allowed.is_any() {
            HeaderValue::from_static("*")
        } else {
            origin.clone()
        })
    }

    /// Returns the answer to a preflight request from an allowed origin; `None` for every other
    /// request.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.method() == Method::OPTIONS
            && request
                .headers()
                .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        (asks && self.origin(request).is_some()).then(|| {
            Response::builder()
                .status(StatusCode::NO_CONTENT)
                .header(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS)
                .header(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS)
                .header(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE)
                .finish()
        })
    }

    /// Lets pages of `origin`, which [`Cors::origin`] has returned, read the answer.
    pub(super) fn open(&self, response: &mut Response, origin: Option<HeaderValue>) {
        let headers = response.headers_mut();
        if !self.origins.is_empty() && !self.origins.iter().any(AllowedOrigin::is_any) {
            // Caches must not give the answer for one origin to another.
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}
