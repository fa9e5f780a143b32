//! HTTP, and nothing but: routes, wire types, the one map from errors to statuses, and the server. Statuses and headers live here and
//! nowhere else; no work is done here.

mod body;
mod classify_image;
mod connection;
mod cors;
mod guard;
mod headers;
mod health;
mod inference;
mod metrics;
mod middleware;
mod model;
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
        .description(include_str!("description.md"))
        .license(poem_openapi::LicenseObject::new("Apache-2.0").identifier("Apache-2.0"))
}

/// The specification, as `GET /openapi.json` serves it and `imgclass openapi` prints it.
pub fn specification() -> String {
    with_last_slash(&openapi().spec())
}

/// The framework drops the last slash of every path; applications know the contract's path with it.
fn with_last_slash(document: &str) -> String {
    document.replace("\"/classify_image\"", "\"/classify_image/\"")
}

/// All routes over a state; what the server runs, and what tests call without a socket. A last slash makes no difference.
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

/// `/metrics` alone, for a port of its own; nothing there is counted.
pub fn metrics_app(state: ApiState) -> impl Endpoint<Output = poem::Response> {
    Route::new()
        .at("/metrics", get(metrics::text))
        .with(middleware::RequestContext::new(None, cors::Cors::default()))
        .data(state)
}

/// A number for JSON with the digits that tell it from its neighbours in single precision, and no more: 0.86, not 0.8600000143051147.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// What Swagger UI's page lacks: a title of ours, and the size of a phone.
const PAGE_HEAD: &str = "<title>imgclass: interface</title>\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
    <link rel=\"icon\" href=\"data:,\">";

/// Swagger UI with its scripts, styles and the specification within.
#[derive(Clone)]
struct SwaggerPage(String);

#[handler]
fn swagger(Data(page): Data<&SwaggerPage>) -> Html<String> {
    Html(page.0.clone())
}

/// The specification's text.
#[derive(Clone)]
struct Specification(String);

#[handler]
fn spec(Data(document): Data<&Specification>) -> impl IntoResponse {
    document.0.clone().with_content_type("application/json")
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn numbers_are_written_with_the_digits_that_single_precision_has() {
        for (x, text) in [
            (0.86f32, "0.86"),
            (0.1 + 0.2, "0.3"),
            (1e-30, "1e-30"),
            (0.0, "0"),
            (1.0, "1"),
        ] {
            assert_eq!(shortest(x), text.parse::<f64>().unwrap(), "{x}");
            assert_eq!(shortest(x) as f32, x);
        }
    }
}
