//! The page at `/`. Its files are in the binary, and a policy keeps it from loading anything from
//! elsewhere. The page uses the same routes as every other client.
//!
//! Its links are relative. Where a proxy serves us under a path, the page says so in its base, because
//! that path may come without its last slash, and links would then lead elsewhere.

use poem::http::{Uri, header};
use poem::web::Data;
use poem::{EndpointExt, Request, Response, Route, get, handler};

use super::context::{LacksSlash, SharedAnswer};
use super::state::ApiState;
use crate::config::is_root_path;

/// What the page may do: run its own script and style, show its own pictures and those that it
/// makes, and talk to its own server. No other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
    connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'";

/// The path of the page. It is not `/`, because the router sends `/` to the routes of the
/// specification, which have nothing there.
const INDEX: &str = "/index.html";

/// Turns a request for `/` into one for the page.
pub(super) async fn at_root(mut request: Request) -> poem::Result<Request> {
    if request.uri().path() == "/" {
        *request.uri_mut() = Uri::from_static(INDEX);
    }
    Ok(request)
}

/// Removes the path under which the interface is served from the path of a request, if it is there.
pub(super) fn without_root_path(mut request: Request, root_path: &str) -> Request {
    if root_path.is_empty() {
        return request;
    }
    let Some(rest) = request.uri().path().strip_prefix(root_path) else {
        return request;
    };
    if rest.is_empty() {
        request.set_data(LacksSlash(format!("{root_path}/")));
    } else if rest.starts_with('/') {
        let query = request.uri().query();
        let rest = query.map_or_else(|| rest.to_owned(), |query| format!("{rest}?{query}"));
        // What was a path is one without its beginning too.
        if let Ok(uri) = rest.parse() {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// One file of the page.
#[derive(Clone, Copy)]
struct Asset {
    content_type: &'static str,
    bytes: &'static [u8],
}

const ASSETS: [(&str, Asset); 5] = [
    (
        INDEX,
        Asset {
            content_type: "text/html; charset=utf-8",
            bytes: include_bytes!("../../web/index.html"),
        },
    ),
    (
        "/page.css",
        Asset {
            content_type: "text/css; charset=utf-8",
            bytes: include_bytes!("../../web/page.css"),
        },
    ),
    (
        "/page.js",
        Asset {
            content_type: "text/javascript; charset=utf-8",
            bytes: include_bytes!("../../web/page.js"),
        },
    ),
    (
        "/icon.svg",
        Asset {
            content_type: "image/svg+xml",
            bytes: include_bytes!("../../web/icon.svg"),
        },
    ),
    (
        "/example.jpg",
        Asset {
            content_type: "image/jpeg",
            bytes: include_bytes!("../../web/example.jpg"),
        },
    ),
];

/// The element of the page behind which its base stands, if it has one.
const BEFORE_BASE: &str = "<meta charset=\"utf-8\">\n";

/// Adds the page's files to `route`.
pub(super) fn routes(route: Route) -> Route {
    ASSETS.into_iter().fold(route, |route, (path, asset)| {
        route.at(path, get(serve).data(asset))
    })
}

/// Returns the path under which the client sees our root, without a last slash: what the proxy says
/// in `X-Forwarded-Prefix`, else what the operator has said.
pub(super) fn prefix<'a>(request: &'a Request, state: &'a ApiState) -> &'a str {
    let forwarded = request.header("x-forwarded-prefix");
    let forwarded = forwarded.map(|text| text.trim_end_matches('/'));
    forwarded
        .filter(|text| is_root_path(text))
        .unwrap_or_else(|| state.root_path())
}

#[handler]
fn serve(request: &Request, Data(state): Data<&ApiState>, Data(asset): Data<&Asset>) -> Response {
    let response = Response::builder()
        .content_type(asset.content_type)
        .header("content-security-policy", POLICY)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        // Browsers ask again each time, so that a new version shows at once.
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::VARY, "X-Forwarded-Prefix");
    let prefix = prefix(request, state);
    let page = std::str::from_utf8(asset.bytes).ok();
    let parts = page.and_then(|page| page.split_once(BEFORE_BASE));
    match parts.filter(|_| !prefix.is_empty()) {
        Some((start, rest)) => response.body(format!(
            "{start}{BEFORE_BASE}<base href=\"{prefix}/\">\n{rest}"
        )),
        None => response.extension(SharedAnswer).body(asset.bytes),
    }
}
