//! What the metrics ask of the database. Every question is bounded by what is under way, never by the
//! size of a table: no count goes further than a limit, and no search begins at the old end.

use sqlx::PgPool;

use super::{foreign, status};
use crate::publish::source::OUTBOX;

/// How a sink stands.
#[derive(Debug, Default)]
pub(crate) struct SinkState {
    /// Committed events that are not settled; too many to count, the span of their numbers.
    pub pending: i64,
    /// Age of the oldest of them, 0 without one; a foreign table's rows tell none.
    pub oldest_pending_seconds: f64,
    /// Numbers below the highest settled one that are not visible.
    pub holes: i64,
    /// Dead letters, counted up to 100,000.
    pub dead: i64,
    /// Whether `holder` has the lease.
    pub leader: bool,
    /// Whether an operator has paused the sink.
    pub paused: bool,
    /// The term.
    pub epoch: i64,
}

/// How the e-mails stand, counted up to 100,000.
#[derive(Debug)]
pub(crate) struct MailState {
    /// To be sent.
    pub pending: i64,
    /// How long the first of them has been due, 0 when none is.
    pub oldest_due_seconds: f64,
    /// Of unknown outcome.
    pub unknown: i64,
}

/// The state of a sink; all zero before its first term. What is pending is counted as `relay status`
/// counts it, in the table that the sink reads.
///
/// # Errors
/// Whatever the database says, also that a foreign table cannot be read.
pub(crate) async fn sink(pool: &PgPool, sink: &str, holder: &str) -> Result<SinkState, sqlx::Error> {
    let Some(row) = sqlx::query!(
        r#"
        select source, epoch, paused_at is not null as "paused!", clock_timestamp() as "now!",
               coalesce(holder = $2 and lease_until > clock_timestamp(), false) as "leader!",
               (select count(*) from (select from relay_dead where sink = $1 limit 100000) as dead) as "dead!"
        from relay_sinks where sink = $1
        "#,
        sink,
        holder,
    )
    .fetch_optional(pool)
    .await?
    else {
        return Ok(SinkState::default());
    };
    let backlog = match row.source.as_str() {
        OUTBOX => status::backlog(pool, sink).await?,
        source => foreign::backlog(pool, sink, source).await?.ok_or(sqlx::Error::RowNotFound)?,
    };
    let age = backlog.oldest.and_then(|oldest| (row.now - oldest).to_std().ok());
    Ok(SinkState {
        pending: backlog.pending().0,
        oldest_pending_seconds: age.unwrap_or_default().as_secs_f64(),
        holes: backlog.holes(),
        dead: row.dead,
        leader: row.leader,
        paused: row.paused,
        epoch: row.epoch,
    })
}

/// The state of the e-mails.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn mail(pool: &PgPool) -> Result<MailState, sqlx::Error> {
    sqlx::query_as!(
        MailState,
        r#"
        select (select count(*) from (select from notifications where state = 'pending' limit 100000) as mail)
                   as "pending!",
               (select coalesce(greatest(extract(epoch from clock_timestamp() - min(next_attempt_at)), 0), 0)::float8
                from notifications where state = 'pending') as "oldest_due_seconds!",
               (select count(*) from (select from notifications where state = 'unknown' limit 100000) as mail)
                   as "unknown!"
        "#
    )
    .fetch_one(pool)
    .await
}
