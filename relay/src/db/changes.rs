//! What operators have changed: who, what and why.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

/// Keeps the record of a change, in the transaction of the change itself. `command` is what was typed,
/// `dead retry` for example; `details` is a JSON object that says what was touched.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn record(
    connection: &mut PgConnection,
    by: &str,
    command: &str,
    reason: Option<&str>,
    details: &Value,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into relay_changes (changed_by, command, reason, details) values ($1, $2, $3, $4)",
        by,
        command,
        reason,
        details,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// One record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// Counts up, with gaps.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub by: String,
    /// What was typed.
    pub command: String,
    /// Why.
    pub reason: Option<String>,
    /// What was touched.
    pub details: Value,
}

/// The latest records, newest first.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn latest(pool: &PgPool, limit: i64) -> Result<Vec<Change>, sqlx::Error> {
    sqlx::query_as!(
        Change,
        r#"
        select change_id as id, changed_at as at, changed_by as "by", command, reason, details
        from relay_changes order by change_id desc limit $1
        "#,
        limit,
    )
    .fetch_all(pool)
    .await
}
