//! A sink's row before its first publisher.

use sqlx::PgConnection;

use crate::sink::SinkName;

/// Makes the row of a sink that reads the orders' outbox, if there is none, as its first publisher would.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn add(connection: &mut PgConnection, sink: &SinkName) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into relay_sinks (sink, source) values ($1, 'outbox') on conflict do nothing",
        sink.as_str(),
    )
    .execute(connection)
    .await
    .map(drop)
}
