//! The specifications at `/openapi.json` and `/openapi-inference.json`, and Swagger UI with the first
//! of them at `/docs`.
//!
//! All are made once and shared by all requests. Swagger UI's page has everything in it, and a
//! policy that lets it run its own scripts only and talk to its own server only: people type their
//! keys there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use poem::http::header;
use poem::web::Data;
use poem::{EndpointExt, Request, Response, ResponseBuilder, Route, get, handler};
use sha2::{Digest, Sha256};

use super::context::SharedAnswer;
use super::page::prefix;
use super::state::ApiState;

/// What starts Swagger UI. The specification stands in the page beside it; where the page is served
/// under a proxy's prefix, the routes are under the same prefix.
const START: &str = r##"
const spec = JSON.parse(document.getElementById("spec").textContent);
spec.servers = [{ url: location.pathname.replace(/\/docs\/?$/, "") || "/" }];
SwaggerUIBundle({ dom_id: "#ui", spec, filter: false, deepLinking: true });
"##;

/// The specification of the other protocols' routes.
const INFERENCE: &str = include_str!("inference/openapi.json");

/// One document, with the headers of its answers.
#[derive(Clone)]
struct Document {
    content_type: &'static str,
    policy: String,
    bytes: Bytes,
}

/// A specification, whose paths begin at the server's root.
#[derive(Clone)]
struct Specification(Document);

/// Adds the routes of the documentation to `route`. `swagger_ui` is the framework's page, of which
/// the scripts and styles are taken.
pub(super) fn routes(route: Route, specification_text: &str, swagger_ui: &str) -> Route {
    let page = page(specification_text, swagger_ui);
    let specification = |text: &str| {
        Specification(Document {
            content_type: "application/json",
            policy: "default-src 'none'; frame-ancestors 'none'".to_owned(),
            bytes: text.to_owned().into(),
        })
    };
    let main = specification(specification_text);
    let inference = specification(INFERENCE);
    route
        .at("/openapi.json", get(specified).data(main))
        .at("/openapi-inference.json", get(specified).data(inference))
        .at("/docs", get(swagger).data(page))
}

#[handler]
fn swagger(Data(page): Data<&Document>) -> Response {
    page.response()
        .extension(SharedAnswer)
        .body(page.bytes.clone())
}

/// Answers with a specification. Where a proxy serves us under a prefix, the specification says so.
#[handler]
fn specified(
    request: &Request,
    Data(state): Data<&ApiState>,
    Data(Specification(document)): Data<&Specification>,
) -> Response {
    let response = document
        .response()
        .header(header::VARY, "X-Forwarded-Prefix");
    let prefix = prefix(request, state);
    match document.bytes.strip_prefix(b"{") {
        Some(rest) if !prefix.is_empty() => {
            let servers = format!("{{\n  \"servers\": [{{ \"url\": \"{prefix}\" }}],");
            response.body([servers.as_bytes(), rest].concat())
        }
        _ => response
            .extension(SharedAnswer)
            .body(document.bytes.clone()),
    }
}

impl Document {
    fn response(&self) -> ResponseBuilder {
        Response::builder()
            .content_type(self.content_type)
            .header(header::CONTENT_SECURITY_POLICY, &self.policy)
            .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
            .header(header::REFERRER_POLICY, "no-referrer")
            .header(header::CACHE_CONTROL, "no-cache")
    }
}

/// Makes the page of Swagger UI.
fn page(specification: &str, swagger_ui: &str) -> Document {
    let style = between(swagger_ui, "<style charset=\"UTF-8\">", "</style>");
    let bundle = between(swagger_ui, "<script charset=\"UTF-8\">", "</script>");
    // In a script's element, even of data, `<` could begin its end.
    let specification = specification.replace('<', "\\u003c");
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>imgclass: interface</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>{style}</style>\n<script>{bundle}</script>\n\
         </head>\n<body>\n<div id=\"ui\"></div>\n\
         <script type=\"application/json\" id=\"spec\">{specification}</script>\n\
         <script>{START}</script>\n</body>\n</html>\n"
    );
    let hash = |script: &str| STANDARD.encode(Sha256::digest(script));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}' 'sha256-{}'; style-src 'unsafe-inline'; \
         img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash(bundle),
        hash(START)
    );
    Document {
        content_type: "text/html; charset=utf-8",
        policy,
        bytes: page.into(),
    }
}

/// Returns what stands between `start` and the next `end`; nothing where one of them is missing,
/// which a test would notice.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).map_or("", |(_, rest)| rest);
    rest.split_once(end).map_or("", |(inside, _)| inside)
}
