//! HTTP: routes, what a request must look like, what an answer looks like. Decides nothing about
//! orders and sends no SQL.

mod access;
mod body;
mod cors;
mod docs;
mod etag;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod idempotency_key;
mod limit;
mod listing;
mod measure;
pub mod openapi;
mod orders;
mod problem;
mod request;
mod trace;
mod trace_context;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use sqlx::PgPool;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::{Origins, RateLimit};
use crate::metrics::Metrics;
use crate::writer::Writer;
pub use access::{Access, KeyRing};
use limit::Limiter;
use problem::ApiError;

/// What the handlers work with.
#[derive(Clone, Debug)]
pub struct AppState {
    /// For reads.
    pub pool: PgPool,
    /// For everything that changes an order.
    pub writer: Writer,
    /// Who may call.
    pub access: Access,
    /// For what is counted.
    pub metrics: Arc<Metrics>,
}

/// What is not for everyone: off when `None`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How often a client may ask.
    pub rate_limit: Option<RateLimit>,
    /// Which web pages may call.
    pub cors_origins: Option<Origins>,
    /// Whether traces are exported.
    pub traces: bool,
}

impl FromRef<AppState> for PgPool {
    fn from_ref(state: &AppState) -> Self {
        state.pool.clone()
    }
}

impl FromRef<AppState> for Writer {
    fn from_ref(state: &AppState) -> Self {
        state.writer.clone()
    }
}

impl FromRef<AppState> for Arc<Metrics> {
    fn from_ref(state: &AppState) -> Self {
        state.metrics.clone()
    }
}

/// All routes; needs no port, so that a test can call it as a function.
pub fn router(state: AppState, options: &Options) -> Router {
    let mut orders = Router::new()
        .route("/orders", post(orders::create).get(listing::list))
        .route("/orders/{order_id}", get(orders::show))
        .route("/orders/{order_id}/cancel", post(orders::cancel))
        .route("/orders/{order_id}/events", get(listing::events));
    if let Some(rate) = options.rate_limit {
        let limited = (Limiter::new(rate), state.access.clone());
        orders = orders.route_layer(from_fn_with_state(limited, limit::limit));
    }
    let mut router = Router::new()
        .merge(orders)
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(docs::page))
        .route("/metrics", get(measure::show))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(|_| {
            tracing::error!("a handler panicked");
            ApiError::Internal.into_response()
        }));
    if let Some(origins) = &options.cors_origins {
        router = router.layer(cors::layer(origins));
    }
    if options.traces {
        router = router.layer(from_fn(trace::trace));
    }
    // Outermost, so that preflights and panics are counted too.
    router.layer(from_fn_with_state(state.metrics.clone(), measure::measure)).with_state(state)
}
