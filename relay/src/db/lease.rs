//! The sink's row: who may publish, and what has been settled.
//!
//! The lease lives on the database's clock, and the epoch is the fence: every write names the
//! epoch it was made under, and one of an earlier epoch updates no row.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::publish::core::Checkpoint;
use crate::publish::frontier::Numbers;
use crate::sink::SinkName;

/// One term of one holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(i64);

/// What came of asking for the lease.
#[derive(Debug)]
pub(crate) enum Acquired {
    /// It is ours.
    Leader(Epoch),
    /// Somebody else has it; ask again after this long.
    Standby(Duration),
    /// The sink is one that reads this other table.
    OtherSource(String),
}

/// Whether a fenced write found its epoch still in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fenced {
    /// It did.
    Held,
    /// The lease is somebody else's: stop.
    Lost,
}

/// Asks for the lease of a sink that reads `source`.
///
/// # Errors
/// Whatever the database says; the question can be repeated.
pub(crate) async fn acquire(
    pool: &PgPool,
    sink: &SinkName,
    source: &str,
    holder: &str,
    ttl: Duration,
) -> Result<Acquired, sqlx::Error> {
    sqlx::query!(
        "insert into relay_sinks (sink, source) values ($1, $2) on conflict do nothing",
        sink.as_str(),
        source,
    )
    .execute(pool)
    .await?;
    let epoch = sqlx::query_scalar!(
        r#"
        update relay_sinks
        set epoch = epoch + 1, holder = $2, lease_until = clock_timestamp() + make_interval(secs => $3)
        where sink = $1 and source = $4 and (lease_until is null or lease_until <= clock_timestamp())
        returning epoch
        "#,
        sink.as_str(),
        holder,
        ttl.as_secs_f64(),
        source,
    )
    .fetch_optional(pool)
    .await?;
    if let Some(epoch) = epoch {
        return Ok(Acquired::Leader(Epoch(epoch)));
    }
    let found = sqlx::query!(
        r#"
        select source, greatest(extract(epoch from lease_until - clock_timestamp()), 0)::float8 as left
        from relay_sinks where sink = $1
        "#,
        sink.as_str(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(match found {
        Some(found) if found.source != source => Acquired::OtherSource(found.source),
        found => {
            Acquired::Standby(Duration::from_secs_f64(found.and_then(|found| found.left).unwrap_or_default()))
        }
    })
}

/// Prolongs the lease.
///
/// # Errors
/// Whatever the database says; the renewal can be repeated.
pub(crate) async fn renew(
    pool: &PgPool,
    sink: &SinkName,
    epoch: Epoch,
    ttl: Duration,
) -> Result<Fenced, sqlx::Error> {
    let done = sqlx::query!(
        "update relay_sinks set lease_until = clock_timestamp() + make_interval(secs => $3)
         where sink = $1 and epoch = $2 and holder is not null",
        sink.as_str(),
        epoch.0,
        ttl.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(fenced(done.rows_affected()))
}

/// Gives the lease up, so that a standby need not wait for its end.
///
/// # Errors
/// Whatever the database says; the lease then ends by itself.
pub(crate) async fn release(pool: &PgPool, sink: &SinkName, epoch: Epoch) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update relay_sinks set holder = null, lease_until = null where sink = $1 and epoch = $2",
        sink.as_str(),
        epoch.0,
    )
    .execute(pool)
    .await
    .map(drop)
}

/// What has been settled.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn published(pool: &PgPool, sink: &SinkName) -> Result<Numbers, sqlx::Error> {
    let ranges = sqlx::query!(
        r#"
        select lower(range) as "from!", upper(range) - 1 as "to!"
        from relay_sinks, unnest(published) as range where sink = $1
        "#,
        sink.as_str(),
    )
    .fetch_all(pool)
    .await?;
    Ok(ranges.into_iter().map(|range| range.from..=range.to).collect())
}

/// The orders that have dead letters: their later events go behind them.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn parked_orders(pool: &PgPool, sink: &SinkName) -> Result<HashSet<Uuid>, sqlx::Error> {
    let orders =
        sqlx::query_scalar!("select distinct aggregate_id from relay_dead where sink = $1", sink.as_str())
            .fetch_all(pool)
            .await?;
    Ok(orders.into_iter().collect())
}

/// Commits that events are settled, and which of them are parked, in one statement: an event is
/// never counted as settled without lying on Kafka or among the dead letters (invariant 3).
/// Union is commutative and the dead letters have a key, so a repeat changes nothing.
///
/// # Errors
/// Whatever the database says; the checkpoint can be repeated.
pub(crate) async fn checkpoint(
    executor: impl PgExecutor<'_>,
    sink: &SinkName,
    epoch: Epoch,
    ttl: Duration,
    checkpoint: &Checkpoint,
) -> Result<Fenced, sqlx::Error> {
    let (from, to): (Vec<i64>, Vec<i64>) =
        checkpoint.settled.iter().map(|range| (*range.start(), *range.end() + 1)).unzip();
    let (parked, details): (Vec<i64>, Vec<Option<String>>) =
        checkpoint.parked.iter().map(|event| (event.seq, event.refusal.clone())).unzip();
    let held = sqlx::query_scalar!(
        r#"
        with held as (
            update relay_sinks
            set published = published + (select range_agg(int8range(from_seq, to_seq))
                                         from unnest($3::int8[], $4::int8[]) as settled(from_seq, to_seq)),
                lease_until = clock_timestamp() + make_interval(secs => $5)
            where sink = $1 and epoch = $2 and holder is not null
            returning sink
        ), parked as (
            insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload,
                                    headers, created_at, cause, detail)
            select held.sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                   created_at, case when detail is null then 'behind' else 'refused' end,
                   coalesce(detail, 'an earlier event of this order is parked')
            from held, unnest($6::int8[], $7::text[]) as parked(seq, detail) join outbox using (seq)
            on conflict on constraint relay_dead_pkey do nothing
        )
        select count(*) as "held!" from held
        "#,
        sink.as_str(),
        epoch.0,
        &from,
        &to,
        ttl.as_secs_f64(),
        &parked,
        &details as &[Option<String>],
    )
    .fetch_one(executor)
    .await?;
    Ok(fenced(held.unsigned_abs()))
}

fn fenced(rows: u64) -> Fenced {
    if rows == 0 { Fenced::Lost } else { Fenced::Held }
}
