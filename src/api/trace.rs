//! W3C trace context: a trace that a caller has begun goes on in our spans and log lines. Whether spans are exported is decided where logging
//! starts; nothing is sent on to the servers that images come from.

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use poem::Request;
use poem::http::StatusCode;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes `span` a part of the caller's trace, and writes the trace's id into it where there is one. The span needs the fields `trace_id` and
/// `otel.kind`, empty.
pub(super) fn begin(span: &Span, request: &Request) {
    let caller = request.header("traceparent").and_then(parse);
    let context = caller.clone().map_or_else(Context::new, |caller| {
        Context::new().with_remote_span_context(caller)
    });
    // An error means that nothing is exported.
    let exported = span.set_parent(context).ok().map(|()| {
        // Before the context is asked for: that starts the span, whose kind is fixed then.
        span.record("otel.kind", "server");
        span.context().span().span_context().clone()
    });
    let mut known = [exported, caller].into_iter().flatten();
    if let Some(context) = known.find(SpanContext::is_valid) {
        span.record("trace_id", context.trace_id().to_string());
    }
}

/// Tells the current span's end in OpenTelemetry's terms (semantic conventions for HTTP servers).
pub(super) fn end(method: &'static str, route: &str, status: StatusCode) {
    let span = Span::current();
    span.set_attribute("http.request.method", method);
    span.set_attribute("http.route", route.to_owned());
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
}

/// A `traceparent` header (<https://www.w3.org/TR/trace-context/>): version, trace, parent and flags in lower-case hexadecimal. Versions
/// that come later may have more after that.
fn parse(header: &str) -> Option<SpanContext> {
    let mut parts = header.split('-');
    let mut hexadecimal = |length: usize| {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let part = parts.next()?;
        (part.len() == length && part.bytes().all(digit)).then_some(part)
    };
    let (version, trace, parent, flags) = (
        hexadecimal(2)?,
        hexadecimal(32)?,
        hexadecimal(16)?,
        hexadecimal(2)?,
    );
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        flags,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::parse;

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
            (good.replace("4bf9", "4bg9"), false),
            (String::new(), false),
            ("x".repeat(10_000), false),
        ];
        for (header, valid) in table {
            assert_eq!(parse(&header).is_some(), valid, "{header}");
        }
    }
}
