//! Whether the process is alive, and whether it can do its work.

use axum::extract::State;
use axum::http::StatusCode;
use sqlx::PgPool;

use crate::db::health::{self, Schema};

/// `GET /healthz`: the process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the database answers and has every migration.
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
