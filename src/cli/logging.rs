//! Starts logging and the export of traces.
//!
//! Log lines go to standard error, so that standard output holds only results. Traces go to an
//! OpenTelemetry collector if an environment variable names one.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::Failure;

/// The environment variables that name a collector; the second one is for traces alone.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Keeps the export of traces running. Dropping it sends the traces that have not been sent yet.
pub(super) struct Logging(Option<SdkTracerProvider>);

/// Starts logging at the levels that `RUST_LOG` names, else at `default_level`.
///
/// This must be called outside of an asynchronous runtime, because the exporter of traces has a
/// blocking HTTP client.
pub(super) fn start(default_level: &str, json: bool) -> Result<Logging, Failure> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let provider = trace_provider()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(tracer(provider)));
    // An error means that logging has been started before, as it is in tests, which is just as
    // good.
    let _ = tracing_subscriber::registry()
        .with(log_lines(json))
        .with(traces)
        .with(filter)
        .try_init();
    Ok(Logging(provider))
}

/// Creates the layer that writes log lines, as JSON or as text.
fn log_lines(json: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed()
    }
}

/// Creates what exports traces, or `None` if no collector is named.
///
/// The endpoint, headers, limits and the sampler are read from OpenTelemetry's own environment
/// variables. The protocol is HTTP with protobuf.
fn trace_provider() -> Result<Option<SdkTracerProvider>, Failure> {
    let named = |name| std::env::var(name).is_ok_and(|value: String| !value.is_empty());
    if !ENDPOINTS.into_iter().any(named) {
        return Ok(None);
    }
    let service = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "imgclass".to_owned());
    let resource = Resource::builder().with_service_name(service).build();
    let exporter = SpanExporter::builder().with_http().build()?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource);
    Ok(Some(provider.build()))
}

fn tracer(provider: &SdkTracerProvider) -> Tracer {
    provider.tracer("imgclass")
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!("the last traces could not be exported: {error}");
        }
    }
}
