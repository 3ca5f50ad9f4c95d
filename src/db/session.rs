//! Connections with settings of their own. They are set by statement and not by startup option,
//! because connection poolers refuse the latter.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

/// How long a connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A connection whose statements give up waiting for a lock after `lock_timeout`.
pub(crate) async fn writing(
    options: &PgConnectOptions,
    lock_timeout: Duration,
) -> Result<PgConnection, sqlx::Error> {
    let mut connection = connect(options).await?;
    sqlx::query!(
        "select set_config('lock_timeout', $1, false) as wait,
                set_config('default_transaction_isolation', 'read committed', false) as isolation",
        milliseconds(lock_timeout)
    )
    .fetch_one(&mut connection)
    .await?;
    Ok(connection)
}

/// Wakes whoever listens on `channel`. The payload says nothing: listeners read the outbox. The
/// commit need not reach the disk, because a bell is only a hint. That is set for this statement's
/// transaction alone: through a pooler a setting of the session would stay behind on a connection
/// that commits orders, and a crash of PostgreSQL would lose what clients were told is there.
pub(crate) async fn notify(connection: &mut PgConnection, channel: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('synchronous_commit', 'off', true), pg_notify($1, '')", channel)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Limits the lock waits of the transaction that is open on `connection`.
pub(crate) async fn set_local_lock_timeout(
    connection: &mut PgConnection,
    lock_timeout: Duration,
) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('lock_timeout', $1, true)", milliseconds(lock_timeout))
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// A connection without settings of its own.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    tokio::time::timeout(CONNECT_DEADLINE, options.connect()).await.map_err(|_| {
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database did not answer"))
    })?
}

/// 0 would mean "wait for ever".
fn milliseconds(wait: Duration) -> String {
    format!("{}ms", wait.as_millis().max(1))
}
