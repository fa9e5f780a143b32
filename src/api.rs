//! The HTTP interface: server, routes, wire types, and the one map from errors to statuses.
//!
//! | to read about | see |
//! |---|---|
//! | listening, stopping, one connection | `server`, `connection` |
//! | what surrounds every request | `middleware`, `guard`, `cors`, `trace` |
//! | the contract, and the path of a request | `classify_image` |
//! | further routes | `v1`, `inference`, `model`, `health`, `metrics`, `page`, `documentation` |
//! | failures and their statuses | `problem`, `failures` |
//!
//! Statuses and headers occur here and in no other module of the service.

mod body;
mod classify_image;
mod connection;
mod context;
mod cors;
mod documentation;
mod failures;
mod guard;
mod headers;
mod health;
mod images;
mod inference;
mod json;
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
use poem::{Endpoint, EndpointExt, Route, get};
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
    let cors = cors::Cors::new(state.access().origins.clone());
    let context = middleware::RequestContext::new(
        state.metrics().cloned(),
        cors,
        state.answer_memory().clone(),
    );
    let guard = guard::Guard::new(state.access().clone());
    let metrics = state.serves_metrics();
    let routes = page::routes(inference::routes(Route::new()));
    let routes = documentation::routes(routes, &specification(), &service.swagger_ui_html());
    let routes = routes.nest("/", service);
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
        .with(middleware::RequestContext::new(
            None,
            cors::Cors::default(),
            state.answer_memory().clone(),
        ))
        .data(state)
}
