//! Counts every request, and shows the counts.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::problem::ApiError;
use crate::metrics::Metrics;
use crate::writer::Writer;

/// All paths that match no route share this one: their number is up to the clients.
const UNMATCHED: &str = "unmatched";

/// Takes the time of each request. One whose client goes away before the answer is not counted.
pub(crate) async fn measure(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    metrics.answered(&method, route, response.status(), began.elapsed());
    response
}

/// `GET /metrics`
#[utoipa::path(get, path = "/metrics", tag = "operation", operation_id = "getMetrics", summary = "Metrics",
    responses((status = 200, description = "What is counted, as Prometheus text", content_type = "text/plain",
               body = String)))]
pub(crate) async fn show(
    State(metrics): State<Arc<Metrics>>,
    State(writer): State<Writer>,
) -> Result<Response, ApiError> {
    let text = metrics.render(writer.queued()).map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        ApiError::Internal
    })?;
    Ok(([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
