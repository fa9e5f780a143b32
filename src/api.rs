//! The HTTP interface: server, routes, wire types, and the one map from errors to statuses.
//!
//! | to read about | see |
//! |---|---|
//! | listening, stopping, one connection | `server`, `connection` |
//! | what surrounds every request | `middleware`, `guard`, `cors`, `trace` |
//! | the contract, and the path of a request | `classify_image` |
//! | the specification | `specification`, `documentation` |
//! | further routes | `v1`, `inference`, `model`, `health`, `metrics`, `page` |
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
#[cfg(fuzzing)]
pub mod fuzzing;
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
mod specification;
mod state;
mod trace;
mod v1;

use std::sync::Arc;

use poem::middleware::{NormalizePath, TrailingSlash};
use poem::{Endpoint, EndpointExt, Route, get};
use poem_openapi::{OpenApiService, Tags};

pub use server::{BindError, Server, Stop};
pub use state::ApiState;

/// The groups of routes in the specification.
#[derive(Tags)]
#[oai(rename_all = "lowercase")]
enum Group {
    /// What is in a picture.
    Classification,
    /// What is loaded.
    Model,
    /// For probes.
    Health,
}

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
        .description(include_str!("api/description.md"))
        .license(
            poem_openapi::LicenseObject::new("Apache-2.0")
                .url("https://www.apache.org/licenses/LICENSE-2.0"),
        )
}

/// Returns the specification, as `GET /openapi.json` serves it where no keys are asked for, and as
/// `imgclass openapi` prints it.
pub fn specification() -> String {
    specification::text(&openapi().spec(), false)
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
    let specification = specification::text(&service.spec(), !state.access().keys.is_empty());
    let routes = documentation::routes(routes, &specification, &service.swagger_ui_html());
    let routes = routes.nest("/", service);
    let routes = if metrics {
        routes.at("/metrics", get(metrics::text))
    } else {
        routes
    };
    let root_path: Arc<str> = state.root_path().into();
    routes
        .before(page::at_root)
        .with(guard)
        .with(NormalizePath::new(TrailingSlash::Trim))
        .with(context)
        .data(state)
        .before(move |request| {
            let root_path = root_path.clone();
            async move { Ok(page::without_root_path(request, &root_path)) }
        })
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
