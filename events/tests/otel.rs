//! The spans of the inbox, as an exporter gets them.

use events::inbox::otel;
use events::kafka::{Event, Position};
use events::{Attributes, EventId};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;

fn event(traceparent: Option<&str>) -> Event {
    Event {
        attributes: Attributes {
            id: EventId::new(),
            source: "/orders".to_owned(),
            kind: "order.created.v1".to_owned(),
            subject: uuid::Uuid::now_v7(),
            time: chrono::DateTime::UNIX_EPOCH,
            version: 1,
            traceparent: traceparent.map(str::to_owned),
            tracestate: None,
        },
        data: b"{}".to_vec(),
        position: Position {
            topic: "orders.events.v1".to_owned(),
            partition: 2,
            offset: 7,
            timestamp_millis: 0,
        },
    }
}

#[test]
fn the_span_of_a_consumer_is_linked_to_the_request_that_caused_the_event() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "test");
    let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
    tracing::subscriber::with_default(subscriber, || {
        otel::span(&event(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))).in_scope(|| {});
        otel::span(&event(Some("no trace"))).in_scope(|| {});
        otel::span(&event(None)).in_scope(|| {});
    });
    let spans = exporter.get_finished_spans().expect("the spans");
    let links: Vec<Vec<String>> = spans
        .iter()
        .map(|span| {
            let cause = |link: &opentelemetry::trace::Link| {
                format!("{}-{}", link.span_context.trace_id(), link.span_context.span_id())
            };
            span.links.links.iter().map(cause).collect()
        })
        .collect();
    let linked = vec!["4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7".to_owned()];
    assert_eq!(links, [linked, vec![], vec![]]);
    for span in spans {
        assert_eq!(span.name, "process orders.events.v1");
        assert_eq!(span.span_kind, opentelemetry::trace::SpanKind::Consumer);
    }
}
