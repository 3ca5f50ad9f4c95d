//! HTTP: routes, what a request must look like, what an answer looks like. Decides nothing about
//! orders and sends no SQL.

mod access;
mod body;
mod docs;
mod health;
mod idempotency_key;
mod listing;
pub mod openapi;
mod orders;
mod problem;
mod request;
mod trace_context;

use axum::Router;
use axum::extract::FromRef;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use sqlx::PgPool;
use tower_http::catch_panic::CatchPanicLayer;

use crate::writer::Writer;
pub use access::{Access, KeyRing};
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

/// All routes; needs no port, so that a test can call it as a function.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/orders", post(orders::create).get(listing::list))
        .route("/orders/{order_id}", get(orders::show))
        .route("/orders/{order_id}/cancel", post(orders::cancel))
        .route("/orders/{order_id}/events", get(listing::events))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(docs::page))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(|_| {
            tracing::error!("a handler panicked");
            ApiError::Internal.into_response()
        }))
        .with_state(state)
}
