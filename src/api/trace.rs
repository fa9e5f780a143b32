//! W3C trace context: a trace that a caller has begun goes on in our spans and log lines.
//!
//! Whether spans are exported is decided where logging starts. No trace context is sent to the
//! servers that images come from.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, Status, TraceContextExt};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use poem::http::{HeaderMap, StatusCode};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes `span` a part of the caller's trace, if the headers of its request name one, and writes
/// the id of the trace into the span. The span needs the fields `trace_id` and `otel.kind`, empty.
pub(super) fn begin(span: &Span, headers: &HeaderMap) {
    let caller = caller_context(headers);
    // An error means that nothing is exported.
    let exported = span.set_parent(caller.clone()).ok().map(|()| {
        // Recorded before the context is asked for, because that starts the span and fixes its
        // kind.
        span.record("otel.kind", "server");
        span.context()
    });
    let contexts = [exported, Some(caller)].into_iter().flatten();
    let mut spans = contexts.map(|context| context.span().span_context().clone());
    if let Some(known) = spans.find(SpanContext::is_valid) {
        span.record("trace_id", known.trace_id().to_string());
    }
}

/// Describes the end of the current span in OpenTelemetry's terms (semantic conventions for HTTP
/// servers).
pub(super) fn end(method: &'static str, route: &str, status: StatusCode) {
    let span = Span::current();
    span.set_attribute("http.request.method", method);
    span.set_attribute("http.route", route.to_owned());
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
}

/// Returns the context that a request's `traceparent` and `tracestate` describe; an empty one where
/// there is none or where `traceparent` is malformed.
fn caller_context(headers: &HeaderMap) -> Context {
    let headers = HeaderExtractor(headers);
    if !headers.get("traceparent").is_some_and(is_well_formed) {
        return Context::new();
    }
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// Says whether a `traceparent` has the form that the standard asks for
/// (<https://www.w3.org/TR/trace-context/#traceparent-header-field-values>): version, trace, parent
/// and flags in 2, 32, 16 and 2 lower-case hexadecimal digits. Versions after 00 may have more
/// behind that.
///
/// The propagator (opentelemetry_sdk 0.33) judges the values, but it also accepts fields that are
/// too short, and signs before the digits.
fn is_well_formed(traceparent: &str) -> bool {
    let mut fields = traceparent.split('-');
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let mut next_has = |length: usize| {
        let field = fields.next().unwrap_or_default();
        field.len() == length && field.bytes().all(digit)
    };
    let complete = [2, 32, 16, 2].into_iter().all(&mut next_has);
    complete && (fields.next().is_none() || !traceparent.starts_with("00"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem::http::HeaderValue;

    fn parse(traceparent: &str) -> Option<SpanContext> {
        let value = HeaderValue::from_str(traceparent).unwrap();
        let headers = HeaderMap::from_iter([("traceparent".parse().unwrap(), value)]);
        let context = caller_context(&headers).span().span_context().clone();
        context.is_valid().then_some(context)
    }

    #[test]
    fn a_traceparent_is_read_as_the_standard_says_or_not_at_all() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(good).unwrap();
        assert_eq!(context.trace_id().to_string(), &good[3..35]);
        assert_eq!(context.span_id().to_string(), &good[36..52]);
        assert!(context.is_sampled() && context.is_remote());
        let table = [
            (good.replace("-01", "-00"), true),
            (good.replace("00-4b", "01-4b") + "-more", true),
            (good.to_owned() + "-more", false),
            (good.replace("00-4b", "ff-4b"), false),
            (good.to_uppercase(), false),
            (
                good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
                false,
            ),
            (good.replace("00f067aa0ba902b7", &"0".repeat(16)), false),
            (good.replace("-01", "-1"), false),
            (good.replace("-01", "-+1"), false),
            (good.to_owned() + "-", false),
            (good.replace("4bf9", "4bg9"), false),
            (String::new(), false),
            ("x".repeat(10_000), false),
        ];
        for (header, valid) in table {
            assert_eq!(parse(&header).is_some(), valid, "{header}");
        }
    }
}
