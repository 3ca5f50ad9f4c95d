//! Takes OTLP over HTTP, as a collector of traces does.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use demo::testing::eventually;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// A collector on a port of its own, until it is dropped.
pub(crate) struct Collector {
    url: String,
    exports: UnboundedReceiver<Bytes>,
    /// Everything received so far, byte by byte.
    pub(crate) exported: Vec<u8>,
    received: Vec<Span>,
    _tasks: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (sender, exports) = unbounded_channel();
        let take = async |State(exports): State<UnboundedSender<Bytes>>, body: Bytes| {
            let _ = exports.send(body);
        };
        let app = Router::new().route("/v1/traces", post(take)).with_state(sender);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.expect("served") });
        Self { url, exports, exported: Vec::new(), received: Vec::new(), _tasks: tasks }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Waits until there are so many spans, and gives all of them.
    pub(crate) async fn spans(&mut self, wanted: usize, limit: Duration) -> Vec<Span> {
        eventually(&format!("{wanted} spans"), limit, async || {
            while let Ok(export) = self.exports.try_recv() {
                let request = ExportTraceServiceRequest::decode(export.clone()).expect("OTLP");
                let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
                self.received.extend(scopes.flat_map(|scope| scope.spans));
                self.exported.extend(export);
            }
            (self.received.len() >= wanted).then(|| self.received.clone())
        })
        .await
    }
}

pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
