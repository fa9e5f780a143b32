//! What strangers send, for the targets in `fuzz/`. Built by cargo-fuzz alone.
//!
//! Each function reads its bytes as the routes do and asserts what the routes rely on. No model is
//! loaded and no image is decoded: those have targets of their own.

use std::sync::LazyLock;

use bytes::Bytes;
use clap::Parser;
use poem::endpoint::BoxEndpoint;
use poem::http::{HeaderName, HeaderValue, StatusCode, Version};
use poem::{Endpoint, EndpointExt, Request, Response};
use tokio::runtime::{Builder, Runtime};

use super::connection::refused_head;
use super::{ApiState, app, classify_image, inference, v1};
use crate::config::{AccessArgs, HttpLimits};

/// Reads a body as JSON, as every route that takes JSON does.
pub fn json(bytes: &[u8]) {
    classify_image::fuzz(bytes);
    v1::fuzz("application/json", &Bytes::copy_from_slice(bytes));
    inference::fuzz(None, bytes);
}

/// Reads a request to infer with binary tensors: a line with the length of its JSON, then its body.
pub fn tensors(bytes: &[u8]) {
    let (length, body) = first_line(bytes);
    inference::fuzz(Some(&length), body);
}

/// Reads a form or an image: a line with the `Content-Type`, then the body.
pub fn form(bytes: &[u8]) {
    let (content_type, body) = first_line(bytes);
    v1::fuzz(&content_type, &Bytes::copy_from_slice(body));
}

/// Answers a whole request: a line with method and path, a line for each header, an empty line, and
/// the body. Every answer has an id, and none is the fault of the service.
pub fn request(bytes: &[u8]) {
    for endpoint in &SERVED.endpoints {
        let Some(request) = parse(bytes) else {
            return;
        };
        let response = SERVED.runtime.block_on(endpoint.get_response(request));
        assert_ne!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.header("x-request-id").is_some());
        if response.content_type() == Some("application/problem+json") {
            let body = response.into_body().into_bytes();
            let body = SERVED.runtime.block_on(body).unwrap_or_default();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            assert!(problem["detail"].is_string() && body.len() < 64 * 1024);
        }
    }
}

fn first_line(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, rest) = end.map_or((bytes, &[][..]), |end| (&bytes[..end], &bytes[end + 1..]));
    (String::from_utf8_lossy(line).into_owned(), rest)
}

/// Makes the request that a connection would hand on; `None` where hyper would refuse it.
fn parse(bytes: &[u8]) -> Option<Request> {
    let (line, mut rest) = first_line(bytes);
    let (method, path) = line.split_once(' ')?;
    let mut request = Request::builder()
        .method(method.parse().ok()?)
        .uri(path.parse().ok()?)
        .version(Version::HTTP_11);
    while !rest.is_empty() {
        let (header, after) = first_line(rest);
        rest = after;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ")?;
        let name: HeaderName = name.parse().ok()?;
        request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    let mut request = request.body(Bytes::copy_from_slice(rest));
    if let Some(wrong) = refused_head(request.headers(), request.version()) {
        request.set_data(wrong);
    }
    Some(request)
}

/// The routes over a model that is still loading, open to everybody and by key.
struct Served {
    runtime: Runtime,
    endpoints: [BoxEndpoint<'static, Response>; 2],
}

static SERVED: LazyLock<Served> = LazyLock::new(|| Served {
    runtime: Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("{error}")),
    endpoints: [&[][..], &["--api-key", "key"]].map(|keys| {
        let arguments = [
            "fuzz",
            "--cors-allow-origin",
            "https://example.com",
            "--rate-limit",
            "1e6",
            "--trusted-proxies",
            "1",
        ];
        let parsed = Arguments::parse_from([&arguments, keys].concat());
        let access = parsed
            .access
            .load()
            .unwrap_or_else(|error| panic!("{error}"));
        let state = ApiState::loading(LIMITS)
            .with_access(access)
            .under("/vision");
        app(state).boxed()
    }),
});

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    access: AccessArgs,
}

const LIMITS: HttpLimits = HttpLimits {
    payload_limit: 64 * 1024,
    body_timeout: std::time::Duration::from_secs(10),
    max_images: 4,
};
