//! Cross-origin requests of browsers (the Fetch standard's CORS protocol): which origins' pages may read our answers. Nobody is refused
//! here: without our headers it is the browser that keeps an answer from a page.

use poem::http::{HeaderValue, Method, StatusCode, header};
use poem::{Request, Response};

use crate::config::AllowedOrigin;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");

/// Beside what every page may send.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, inference-header-content-length, traceparent, x-api-key, x-request-id",
);

/// Beside what every page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "inference-header-content-length, retry-after, server-timing, x-model, x-request-id",
);

/// Seconds that a browser may remember what it was told: the shortest of the browsers' own bounds is 600 (WebKit).
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The allow-list.
#[derive(Debug, Clone, Default)]
pub(super) struct Cors {
    origins: Vec<AllowedOrigin>,
}

impl Cors {
    pub(super) fn new(origins: Vec<AllowedOrigin>) -> Self {
        Self { origins }
    }

    /// Who may read the answer: the request's origin, where it is allowed, or `*`. Credentials of browsers are never asked for.
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

    /// The answer to a browser that asks before it sends, from an allowed origin.
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

    /// Lets pages of `origin` read the answer.
    pub(super) fn open(&self, response: &mut Response, origin: Option<HeaderValue>) {
        let headers = response.headers_mut();
        if !self.origins.is_empty() && !self.origins.iter().any(AllowedOrigin::is_any) {
            // Caches must not give one origin's answer to another.
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}
