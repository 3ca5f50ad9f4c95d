//! Spans from the commit to the mailbox, exported by OTLP over HTTP when somebody collects them; nothing
//! is made of them otherwise. Names and attributes are OpenTelemetry's semantic conventions for
//! messaging (<https://opentelemetry.io/docs/specs/semconv/messaging/kafka/>). No span carries an
//! address or a payload.
//!
//! Every span is a child of the request's, by the `traceparent` that the event carries; whether it is
//! sampled was decided there. An event without one begins a trace.

use std::time::{Duration, SystemTime};

use events::kafka::Event;
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::db::notifications::Leased;
use crate::mail::Outcome;
use crate::publish::row::{self, Row};

/// How long one export may take.
const EXPORT: Duration = Duration::from_secs(5);

/// Makes the spans of all stages; made by `default()` it makes none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces(Option<Exporting>);

#[derive(Clone, Debug)]
struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    topic: String,
}

impl Traces {
    /// Exports to the collector at `endpoint` (`http://host:port`, to which `/v1/traces` is added).
    ///
    /// # Errors
    /// When the address cannot be read.
    pub(crate) fn to(endpoint: &str, topic: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT)
            .build()?;
        let resource = Resource::builder().with_service_name("relay").build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        let tracer = provider.tracer("relay");
        Ok(Self(Some(Exporting { provider, tracer, topic: topic.to_owned() })))
    }

    /// Kafka has acknowledged an event: from its writing, on the database's clock, to now.
    pub(crate) fn published(&self, row: &Row) {
        let Some(Exporting { tracer, topic, .. }) = &self.0 else { return };
        let row::Event::Order(event) = &row.event else { return };
        let context = remote(event.traceparent.as_deref());
        let builder = tracer
            .span_builder(format!("send {topic}"))
            .with_kind(SpanKind::Producer)
            .with_start_time(SystemTime::from(event.created_at))
            .with_attributes(messaging(
                "send",
                topic,
                event.event_id.to_string(),
                row.aggregate_id.to_string(),
            ));
        tracer.build_with_context(builder, &parent(context)).end();
    }

    /// `notify` has handled an event since `began`. The span is linked to what the message carried, as
    /// the conventions ask, and a child of it, so that one trace shows the whole way.
    pub(crate) fn notified(&self, event: &Event, began: SystemTime) {
        let Some(Exporting { tracer, topic, .. }) = &self.0 else { return };
        let context = remote(event.attributes.traceparent.as_deref());
        let builder = tracer
            .span_builder(format!("process {topic}"))
            .with_kind(SpanKind::Consumer)
            .with_start_time(began)
            .with_links(context.iter().cloned().map(Link::with_context).collect())
            .with_attributes(messaging(
                "process",
                topic,
                event.attributes.id.to_string(),
                event.attributes.subject.to_string(),
            ));
        tracer.build_with_context(builder, &parent(context)).end();
    }

    /// The mail server was offered an e-mail from `began` on.
    pub(crate) fn mailed(&self, mail: &Leased, outcome: &Outcome, began: SystemTime) {
        let (Some(Exporting { tracer, .. }), Some(outcome)) = (&self.0, outcome.word()) else { return };
        let builder = tracer
            .span_builder(format!("send {}", mail.kind))
            .with_kind(SpanKind::Client)
            .with_start_time(began)
            .with_attributes([
                KeyValue::new("network.protocol.name", "smtp"),
                KeyValue::new("messaging.message.id", mail.message_id.clone()),
                KeyValue::new("mail.outcome", outcome),
            ]);
        let mut span = tracer.build_with_context(builder, &parent(remote(mail.traceparent.as_deref())));
        if outcome != "sent" {
            // The server's words may hold the address.
            span.set_status(Status::error(outcome));
        }
        span.end();
    }

    /// Exports what is left. Blocks until the collector has it or the time for one export is over.
    pub(crate) fn flush(&self) {
        if let Some(Exporting { provider, .. }) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(EXPORT)
        {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}

fn messaging(operation: &'static str, topic: &str, id: String, key: String) -> [KeyValue; 6] {
    [
        KeyValue::new("messaging.system", "kafka"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", topic.to_owned()),
        KeyValue::new("messaging.message.id", id),
        KeyValue::new("messaging.kafka.message.key", key),
    ]
}

fn parent(context: Option<SpanContext>) -> Context {
    context.map_or_else(Context::new, |remote| Context::new().with_remote_span_context(remote))
}

/// Reads a `traceparent` that the API found well formed.
fn remote(traceparent: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent?.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}
