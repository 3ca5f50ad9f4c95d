//! What an operator measures: the counters that the other modules move, and their text for
//! Prometheus. Labels come from fixed sets only, so that no client can make series.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use sqlx::PgPool;

use crate::domain::{Operation, Outcome};
use crate::writer::WriteError;

/// Seconds: from a replay on an idle machine to the longest that a request may wait.
const LATENCY: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Orders in one statement.
const BATCH_SIZE: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Everything that is measured. Counting costs a few atomic additions and no lock that is ever held.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
    outcomes: IntCounterVec,
    queue: IntGauge,
    batch_size: Histogram,
    pool: IntGaugeVec,
    keys_deleted: IntCounter,
    pools: [(&'static str, PgPool); 2],
}

impl Metrics {
    /// All at zero; the pools are looked at when the text is made.
    ///
    /// # Errors
    /// When two metrics have one name, which is a mistake in this file.
    pub(crate) fn new(readers: PgPool, waiters: PgPool) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("http_requests_total", "Requests answered"),
                &["method", "route", "status"],
            )?,
            latency: HistogramVec::new(
                HistogramOpts::new(
                    "http_request_duration_seconds",
                    "Time from a request's head to its answer's head",
                )
                .buckets(LATENCY.into()),
                &["method", "route"],
            )?,
            outcomes: IntCounterVec::new(
                Opts::new(
                    "idempotency_requests_total",
                    "Requests with an idempotency key, by how the key and the request were judged",
                ),
                &["operation", "outcome"],
            )?,
            queue: IntGauge::new("writer_queue_depth", "Orders that wait to be written")?,
            batch_size: Histogram::with_opts(
                HistogramOpts::new("writer_batch_size", "Requests taken together by the writer")
                    .buckets(BATCH_SIZE.into()),
            )?,
            pool: IntGaugeVec::new(
                Opts::new("database_pool_connections", "Connections to PostgreSQL"),
                &["pool", "state"],
            )?,
            keys_deleted: IntCounter::new(
                "idempotency_keys_expired_total",
                "Expired idempotency keys deleted by this process",
            )?,
            pools: [("readers", readers), ("waiters", waiters)],
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.latency.clone()))?;
        metrics.registry.register(Box::new(metrics.outcomes.clone()))?;
        metrics.registry.register(Box::new(metrics.queue.clone()))?;
        metrics.registry.register(Box::new(metrics.batch_size.clone()))?;
        metrics.registry.register(Box::new(metrics.pool.clone()))?;
        metrics.registry.register(Box::new(metrics.keys_deleted.clone()))?;
        Ok(metrics)
    }

    /// Counts the janitor's deletions.
    pub(crate) fn keys_deleted(&self) -> IntCounter {
        self.keys_deleted.clone()
    }

    /// Takes how many requests the writer found waiting.
    pub(crate) fn batch_size(&self) -> Histogram {
        self.batch_size.clone()
    }

    /// A request was answered. `route` is the pattern that matched, never the path itself.
    pub(crate) fn answered(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let method = known(method);
        self.requests.with_label_values(&[method, route, status.as_str()]).inc();
        self.latency.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    /// The writer has judged a request with a key.
    pub(crate) fn judged(&self, operation: Operation, reply: &Result<Outcome, WriteError>) {
        self.outcomes.with_label_values(&[operation.as_str(), outcome(operation, reply)]).inc();
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub(crate) fn render(&self, queued: usize) -> Result<String, prometheus::Error> {
        self.queue.set(i64::try_from(queued).unwrap_or(i64::MAX));
        for (name, pool) in &self.pools {
            let (all, idle) = (i64::from(pool.size()), i64::try_from(pool.num_idle()).unwrap_or(i64::MAX));
            self.pool.with_label_values(&[*name, "idle"]).set(idle);
            self.pool.with_label_values(&[*name, "busy"]).set((all - idle).max(0));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn outcome(operation: Operation, reply: &Result<Outcome, WriteError>) -> &'static str {
    match (reply, operation) {
        (Ok(Outcome::Done(_)), Operation::Create) => "created",
        (Ok(Outcome::Done(answer)), Operation::Cancel) if answer.status < 400 => "cancelled",
        (Ok(Outcome::Done(_)), Operation::Cancel) => "refused",
        (Ok(Outcome::Replayed(_)), _) => "replayed",
        (Ok(Outcome::KeyReused), _) => "reused",
        (Ok(Outcome::InProgress), _) => "in_progress",
        (Ok(Outcome::NoSuchOrder), _) => "not_found",
        (Err(WriteError::Overloaded), _) => "overloaded",
        (Err(WriteError::Unavailable), _) => "unavailable",
        (Err(WriteError::OutcomeUnknown), _) => "unknown",
        (Err(WriteError::Failed), _) => "failed",
    }
}

/// A client may invent methods; they share one series.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
