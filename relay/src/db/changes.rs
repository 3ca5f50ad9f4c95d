//! What operators have changed: who, what and why.

use serde_json::Value;
use sqlx::PgConnection;

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
