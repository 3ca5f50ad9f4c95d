//! Whether the process is alive, and whether it can do its work.

use axum::extract::State;
use axum::http::StatusCode;
use sqlx::PgPool;

use crate::db::health::{self, Schema};

/// `GET /healthz`: the process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", operation_id = "getHealth", summary = "Is the process alive",
    responses((status = 200, description = "The process answers", content_type = "text/plain", body = String,
               example = "ok\n")))]
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the database answers and has every migration.
#[utoipa::path(get, path = "/readyz", tag = "operation", operation_id = "getReadiness", summary = "Can the process work",
    responses(
        (status = 200, description = "Ready", content_type = "text/plain", body = String, example = "ready\n"),
        (status = 503, description = "Not ready; says why", content_type = "text/plain", body = String,
         example = "the database does not answer\n")))]
pub(crate) async fn ready(State(pool): State<PgPool>) -> (StatusCode, &'static str) {
    let schema = match pool.acquire().await {
        Ok(mut connection) => health::schema(&mut connection).await,
        Err(error) => Err(error.into()),
    };
    match schema {
        Ok(Schema::Current) => (StatusCode::OK, "ready\n"),
        Ok(Schema::Pending(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the database is not migrated: run `orders migrate`\n")
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}
