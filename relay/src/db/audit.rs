//! What `relay audit` asks of the outbox. Changes nothing.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::publish::frontier::Numbers;

/// What a sink had settled at one moment.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Acknowledged, parked or rolled back.
    pub numbers: Numbers,
    /// The parked ones among them, and those that were discarded: Kafka has none of them.
    pub parked: HashSet<i64>,
}

/// What `sink` has settled, in one snapshot.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn settled(pool: &PgPool, sink: &str) -> Result<Settled, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select array(select lower(range) from unnest(published) as range order by 1) as "from!",
               array(select upper(range) - 1 from unnest(published) as range order by 1) as "to!",
               array(select seq from relay_dead where sink = $1
                     union all select seq from relay_discarded where sink = $1) as "parked!"
        from relay_sinks where sink = $1
        "#,
        sink,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map_or_else(Settled::default, |row| Settled {
        numbers: row.from.into_iter().zip(row.to).map(|(from, to)| from..=to).collect(),
        parked: row.parked.into_iter().collect(),
    }))
}

/// Number and time of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Its number.
    pub seq: i64,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// The number from which on retention has removed nothing. Below it single rows are left: dead letters,
/// and events that were committed late.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn whole_from(pool: &PgPool) -> Result<i64, sqlx::Error> {
    let removed =
        sqlx::query_scalar!("select upper(outbox_removed) from relay_retention").fetch_optional(pool).await?;
    Ok(removed.flatten().unwrap_or(0))
}

/// The first row whose number is at least `seq`.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn first_from(pool: &PgPool, seq: i64) -> Result<Option<Mark>, sqlx::Error> {
    sqlx::query_as!(Mark, "select seq, created_at from outbox where seq >= $1 order by seq limit 1", seq)
        .fetch_optional(pool)
        .await
}

/// The last row whose number is at most `seq`.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn last_until(pool: &PgPool, seq: i64) -> Result<Option<Mark>, sqlx::Error> {
    sqlx::query_as!(Mark, "select seq, created_at from outbox where seq <= $1 order by seq desc limit 1", seq)
        .fetch_optional(pool)
        .await
}

/// The first number whose row, and all after it but for a few of the same instant, were written at
/// `time` or later; none when all are older. Number and time are drawn at the same moment, so this
/// is a binary search and needs no index on the time.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn first_at(pool: &PgPool, time: DateTime<Utc>) -> Result<Option<i64>, sqlx::Error> {
    let (Some(first), Some(last)) = (first_from(pool, 0).await?, last_until(pool, i64::MAX).await?) else {
        return Ok(None);
    };
    if last.created_at < time {
        return Ok(None);
    }
    let (mut low, mut high) = (first.seq, last.seq);
    while low < high {
        let middle = low + (high - low) / 2;
        match first_from(pool, middle).await? {
            Some(mark) if mark.created_at < time => low = mark.seq + 1,
            _ => high = middle,
        }
    }
    Ok(Some(low))
}

/// Which of these event ids the outbox has.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn known(pool: &PgPool, ids: &[Uuid]) -> Result<HashSet<Uuid>, sqlx::Error> {
    let known = sqlx::query_scalar!(
        r#"
        select event_id as "event_id!" from outbox where event_id = any($1)
        union select event_id from relay_dead where event_id = any($1)
        "#,
        ids
    )
    .fetch_all(pool)
    .await?;
    Ok(known.into_iter().collect())
}
