//! Logs, and traces when somebody collects them: one span per request and per batch, exported by
//! OTLP over HTTP. No span carries a key, an address or a body.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Log, LogFormat};

/// The `target` of all spans, so that a log filter cannot switch traces off.
pub(crate) const SPANS: &str = "orders::span";

/// How long one export may take.
const EXPORT: Duration = Duration::from_secs(5);

/// The traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("OTEL_EXPORTER_OTLP_ENDPOINT must look like http://host:4318")]
pub struct InvalidEndpoint(#[source] ExporterBuildError);

/// What has to be flushed before the program ends.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging to stderr (stdout is for what a command prints) and, if `otlp` names a collector
/// (`http://host:port`, to which `/v1/traces` is added), exporting traces.
///
/// # Errors
/// When the collector's address cannot be read.
pub fn start(log: &Log, otlp: Option<&str>) -> Result<Telemetry, InvalidEndpoint> {
    let filter = EnvFilter::builder().parse_lossy(log.filter());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format() {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let provider = otlp.map(provider).transpose()?;
    let spans = provider.as_ref().map(|provider| {
        // Events stay in the log: a span is not a second place for them.
        let only_spans = tracing_subscriber::filter::filter_fn(|metadata| {
            metadata.is_span() && metadata.target() == SPANS
        });
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("orders"))
            .with_location(false)
            .with_threads(false)
            .with_filter(only_spans)
            .with_filter(LevelFilter::INFO)
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(Telemetry(provider))
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, InvalidEndpoint> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT)
        .build()
        .map_err(InvalidEndpoint)?;
    let resource = Resource::builder().with_service_name("orders").build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

impl Telemetry {
    /// Exports what is left. Blocks until the collector has it or the time for one export is over.
    pub fn flush(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(EXPORT)
        {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}
