//! One span per request, a child of the caller's. Only installed when traces are exported.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::trace_context;
use crate::domain::TraceContext;
use crate::telemetry::SPANS;

/// Runs the request in a span of its own.
pub(crate) async fn trace(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
    let span = tracing::info_span!(
        target: SPANS,
        "request",
        otel.name = format!("{} {route}", request.method()),
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = route,
        http.response.status_code = Empty,
    );
    if let Some(parent) = remote(&trace_context::from_headers(request.headers())) {
        // Refused only when the layer that exports is not there.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// What an event carries on: the span of this request if there is one, else what was received.
pub(crate) fn handed_on(received: TraceContext) -> TraceContext {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    if !span.is_valid() {
        return received;
    }
    let flags = span.trace_flags().to_u8();
    TraceContext {
        traceparent: Some(format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id())),
        tracestate: received.tracestate,
    }
}

fn remote(received: &TraceContext) -> Option<SpanContext> {
    let mut parts = received.traceparent.as_deref()?.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let parent = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    Some(SpanContext::new(trace, parent, flags, true, TraceState::default()))
}
