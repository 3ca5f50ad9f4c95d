//! Spans across the broker: the span in which an event is handled is linked to the request that
//! caused the event, which `traceparent` names.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::header;
use crate::kafka::Event;

/// The `target` of all spans of the inbox, so that a filter can let them through by it.
pub const SPANS: &str = "events::span";

/// A span of kind consumer (OpenTelemetry's semantic conventions for messaging), for
/// [`Settings::span`](super::Settings::span). A link and not a parent: a request that was answered
/// long ago does not become longer because somebody handles its event.
#[must_use]
pub fn span(event: &Event) -> tracing::Span {
    let (attributes, position) = (&event.attributes, &event.position);
    let span = tracing::info_span!(
        target: SPANS,
        "process",
        otel.name = format!("process {}", position.topic),
        otel.kind = "consumer",
        messaging.system = "kafka",
        messaging.operation.type = "process",
        messaging.destination.name = position.topic,
        messaging.destination.partition.id = position.partition,
        messaging.kafka.offset = position.offset,
        messaging.message.id = %attributes.id,
        cloudevents.event_type = attributes.kind,
        cloudevents.event_subject = %attributes.subject,
    );
    let headers: HashMap<String, String> =
        [(header::TRACEPARENT, &attributes.traceparent), (header::TRACESTATE, &attributes.tracestate)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
            .collect();
    let cause = TraceContextPropagator::new().extract(&headers);
    let cause = cause.span().span_context().clone();
    if cause.is_valid() {
        span.add_link(cause);
    }
    span
}
