//! A service in the test's own process, and clients that call its routes without a socket.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use clap::Parser;
use imgclass::api::{ApiState, app};
use imgclass::config::{HttpLimits, ServiceArgs};
use imgclass::service::{NoObserver, Observer, Service, ServiceOptions};
use imgclass_decode::Isolation;
use imgclass_network::{Classifier, Network};
use poem::http::StatusCode;
use poem::test::{TestClient, TestResponse};
use serde_json::Value;

use super::model::untrained;

/// The bounds of HTTP in these tests: small ones, so that tests can exceed them.
pub(crate) const LIMITS: HttpLimits = HttpLimits {
    payload_limit: 4 * 1024 * 1024,
    body_timeout: Duration::from_secs(10),
    max_images: 4,
};

/// The network of all tests that need no other: loading one takes a second.
pub(crate) static CLASSIFIER: LazyLock<Arc<Classifier>> = LazyLock::new(|| Arc::new(untrained()));

/// The service of all tests that need no options.
pub(crate) static SERVICE: LazyLock<Arc<Service>> =
    LazyLock::new(|| service(&["--request-timeout", "10m"]));

/// Returns the options that the command line would make of `arguments`.
pub(crate) fn options(classifier: &Classifier, arguments: &[&str]) -> ServiceOptions {
    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        service: ServiceArgs,
    }
    let arguments = Arguments::parse_from([&["test"], arguments].concat());
    let mut options = arguments.service.service_options(classifier.info());
    // This process is the test's, so the workers need the program itself.
    if let Isolation::Processes { program } = &mut options.decode.isolation {
        *program = Some(env!("CARGO_BIN_EXE_imgclass").into());
    }
    options
}

/// Starts a service with the options of a command line.
pub(crate) fn service(arguments: &[&str]) -> Arc<Service> {
    observed_service(arguments, Arc::new(NoObserver))
}

/// Starts a service that tells `observer` what it does.
pub(crate) fn observed_service(arguments: &[&str], observer: Arc<dyn Observer>) -> Arc<Service> {
    let options = options(&CLASSIFIER, arguments);
    service_with_model(CLASSIFIER.network(), &options, observer)
}

/// Starts a service for another network than the usual one.
pub(crate) fn service_of(classifier: Classifier, arguments: &[&str]) -> Arc<Service> {
    let options = options(&classifier, arguments);
    let service = Service::start(classifier, &options, Arc::new(NoObserver));
    Arc::new(service.expect("a service"))
}

/// Starts a service whose batches run on `model`.
pub(crate) fn service_with_model(
    model: Arc<dyn Network>,
    options: &ServiceOptions,
    observer: Arc<dyn Observer>,
) -> Arc<Service> {
    let service = Service::start_with_network(model, CLASSIFIER.clone(), options, observer);
    Arc::new(service.expect("a service"))
}

/// Returns a client of [`SERVICE`].
pub(crate) fn client() -> TestClient<impl poem::Endpoint> {
    client_of(SERVICE.clone())
}

/// Returns a client of a service within [`LIMITS`].
pub(crate) fn client_of(service: Arc<Service>) -> TestClient<impl poem::Endpoint> {
    client_within(LIMITS, service)
}

/// Returns a client of a service within other limits.
pub(crate) fn client_within(
    limits: HttpLimits,
    service: Arc<Service>,
) -> TestClient<impl poem::Endpoint> {
    let state = ApiState::loading(limits);
    state.loaded(service);
    TestClient::new(app(state))
}

/// Returns the status and the JSON of a response.
pub(crate) async fn body(response: TestResponse) -> (StatusCode, Value) {
    let status = response.0.status();
    let bytes = response.0.into_body().into_bytes().await.expect("a body");
    let value = serde_json::from_slice(&bytes);
    (
        status,
        value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes))),
    )
}
