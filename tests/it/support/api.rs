//! The HTTP interface over the formula's network, with no socket, and pictures to send it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use clap::Parser;
use imgclass::api::{ApiState, app};
use imgclass::config::{HttpLimits, ServiceArgs};
use imgclass::service::Service;
use imgclass_engine::NoObserver;
use imgclass_network::Classifier;
use poem::http::StatusCode;
use poem::test::{TestClient, TestResponse};
use serde_json::Value;

/// The service's options as the command line would give them.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArgs,
}

/// The bounds of HTTP in these tests: small ones, so that they can be passed.
pub(crate) const LIMITS: HttpLimits = HttpLimits {
    payload_limit: 4 * 1024 * 1024,
    body_timeout: Duration::from_secs(10),
    max_images: 4,
};

/// One untrained service for all tests: its answers mean nothing, but they are the same every time.
pub(crate) static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(|| {
    service(
        crate::support::model::untrained(),
        &["--request-timeout", "10m"],
    )
});

pub(crate) fn service(model: Classifier, arguments: &[&str]) -> Arc<Service> {
    let arguments = Arguments::parse_from([&["test"], arguments].concat());
    let options = arguments.service.service_options(model.info());
    Arc::new(Service::start(model, &options, Arc::new(NoObserver)).expect("a service"))
}

pub(crate) fn client_of(service: Arc<Service>) -> TestClient<impl poem::Endpoint> {
    let state = ApiState::loading(LIMITS);
    state.loaded(service);
    TestClient::new(app(state))
}

pub(crate) fn client() -> TestClient<impl poem::Endpoint> {
    client_of(SERVICE.clone())
}

#[allow(dead_code, reason = "not every test sends pictures")]
pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 5) as u8, (y * 3) as u8, 90])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    let written = pixels.write_to(&mut bytes, image::ImageFormat::Png);
    written.expect("encodes");
    bytes.into_inner()
}

#[allow(dead_code, reason = "not every test sends pictures")]
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[allow(dead_code, reason = "not every test sends URLs")]
pub(crate) fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(bytes))
}

#[allow(dead_code, reason = "not every test reads JSON")]
pub(crate) async fn body(response: TestResponse) -> (StatusCode, Value) {
    let status = response.0.status();
    let bytes = response.0.into_body().into_bytes().await.expect("a body");
    let value = serde_json::from_slice(&bytes);
    (
        status,
        value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes))),
    )
}
