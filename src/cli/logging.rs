//! Where log lines and traces go and what they look like. Lines go to standard error, so that standard output holds only results; traces
//! to an OpenTelemetry collector, where one is named.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::Failure;

/// Either names a collector; the second for traces alone.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Keeps the export of traces going; what has not been sent is sent when it is dropped.
pub(super) struct Logging(Option<SdkTracerProvider>);

/// Starts logging: `RUST_LOG` decides what is written, else `default_level`. To be called outside of an asynchronous runtime.
pub(super) fn start(default_level: &str, json: bool) -> Result<Logging, Failure> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let provider = provider()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(tracer(provider)));
    // An error means that somebody (a test) has started logging before, which is as good.
    let _ = tracing_subscriber::registry()
        .with(lines(json))
        .with(traces)
        .with(filter)
        .try_init();
    Ok(Logging(provider))
}

/// For people, or JSON.
fn lines(json: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
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

/// What exports traces, where a collector is named. The endpoint, headers, limits and the sampler are read from OpenTelemetry's own
/// variables; the protocol is HTTP with protobuf.
fn provider() -> Result<Option<SdkTracerProvider>, Failure> {
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
