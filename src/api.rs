//! The HTTP interface: server, routes, wire types, and the one map from errors to statuses.
//!
//! | to read about | see |
//! |---|---|
//! | listening, stopping, one connection | `server`, `connection` |
//! | what surrounds every request | `middleware`, `guard`, `cors`, `trace` |
//! | the contract, and the path of a request | `classify_image` |
//! | further routes | `v1`, `inference`, `model`, `health`, `metrics`, `page` |
//! | failures and their statuses | `problem`, `failures` |
//!
//! Statuses and headers occur here and in no other module of the service.

mod body;
mod classify_image;
mod connection;
mod context;
mod cors;
mod failures;
mod guard;
mod headers;
mod health;
mod images;
mod inference;
mod metrics;
mod middleware;
mod model;
mod options;
mod page;
mod problem;
mod rate;
mod server;
mod state;
mod trace;
mod v1;

use poem::middleware::{NormalizePath, TrailingSlash};
use poem::web::{Data, Html};
use poem::{Endpoint, EndpointExt, IntoResponse, Route, get, handler};
use poem_openapi::OpenApiService;

pub use server::{BindError, Server, Stop};
pub use state::ApiState;

/// The routes that the specification describes.
type Routes = (
    classify_image::Contract,
    v1::ImageRoutes,
    model::ModelRoutes,
    health::HealthRoutes,
);

fn openapi() -> OpenApiService<Routes, ()> {
    let routes = (
        classify_image::Contract,
        v1::ImageRoutes,
        model::ModelRoutes,
        health::HealthRoutes,
    );
    OpenApiService::new(routes, "imgclass", env!("CARGO_PKG_VERSION"))
        .summary("What is in this picture?")
        .description(include_str!("api/description.md"))
        .license(poem_openapi::LicenseObject::new("Apache-2.0").identifier("Apache-2.0"))
}

/// Returns the specification, as `GET /openapi.json` serves it and `imgclass openapi` prints it.
pub fn specification() -> String {
    with_last_slash(&openapi().spec())
}

/// Restores the last slash of the contract's path. Applications know the path with it, and the
/// framework drops it from every path.
fn with_last_slash(document: &str) -> String {
    document.replace("\"/classify_image\"", "\"/classify_image/\"")
}

/// Returns all routes over a state: what the server runs, and what tests call without a socket. A
/// last slash makes no difference.
pub fn app(state: ApiState) -> impl Endpoint<Output = poem::Response> {
    let service = openapi();
    let page =
        with_last_slash(&service.swagger_ui_html()).replace("<title>Swagger UI</title>", PAGE_HEAD);
    let cors = cors::Cors::new(state.access().origins.clone());
    let context = middleware::RequestContext::new(state.metrics().cloned(), cors);
    let guard = guard::Guard::new(state.access().clone());
    let metrics = state.serves_metrics();
    let routes = page::routes(inference::routes(Route::new()))
        .at(
            "/openapi.json",
            get(spec).data(Specification(specification())),
        )
        .at(
            "/docs",
            get(swagger).data(SwaggerPage(format!("<!DOCTYPE html>{page}"))),
        )
        .nest("/", service);
    let routes = if metrics {
        routes.at("/metrics", get(metrics::text))
    } else {
        routes
    };
    routes
        .before(page::at_root)
        .with(guard)
        .with(NormalizePath::new(TrailingSlash::Trim))
        .with(context)
        .data(state)
}

/// Returns `/metrics` alone, for a port of its own. Its requests are not counted.
pub fn metrics_app(state: ApiState) -> impl Endpoint<Output = poem::Response> {
    Route::new()
        .at("/metrics", get(metrics::text))
        .with(middleware::RequestContext::new(None, cors::Cors::default()))
        .data(state)
}

/// What the head of Swagger UI's page lacks: a title of ours, and the viewport of a phone.
const PAGE_HEAD: &str = "<title>imgclass: interface</title>\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
    <link rel=\"icon\" href=\"data:,\">";

/// The page of Swagger UI, which contains its scripts, its styles and the specification.
#[derive(Clone)]
struct SwaggerPage(String);

#[handler]
fn swagger(Data(page): Data<&SwaggerPage>) -> Html<String> {
    Html(page.0.clone())
}

/// The text of the specification.
#[derive(Clone)]
struct Specification(String);

#[handler]
fn spec(Data(document): Data<&Specification>) -> impl IntoResponse {
    document.0.clone().with_content_type("application/json")
}
