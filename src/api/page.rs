//! The page at `/`. Its files are in the binary, and a policy keeps it from loading anything from
//! elsewhere. The page uses the same routes as every other client.

use poem::http::{Uri, header};
use poem::web::Data;
use poem::{EndpointExt, Request, Response, Route, get, handler};

use super::context::SharedAnswer;

/// What the page may do: run its own script and style, show its own pictures and those that it
/// makes, and talk to its own server. No other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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

/// Adds the page's files to `route`.
pub(super) fn routes(route: Route) -> Route {
    ASSETS.into_iter().fold(route, |route, (path, asset)| {
        route.at(path, get(serve).data(asset))
    })
}

#[handler]
fn serve(Data(asset): Data<&Asset>) -> Response {
    Response::builder()
        .content_type(asset.content_type)
        .header("content-security-policy", POLICY)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        // Browsers ask again each time, so that a new version shows at once.
        .header(header::CACHE_CONTROL, "no-cache")
        .extension(SharedAnswer)
        .body(asset.bytes)
}
