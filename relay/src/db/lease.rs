//! The sink's row: who may publish, and what has been settled.
//!
//! The lease lives on the database's clock, and the epoch is the fence: every write names the
//! epoch it was made under, and one of an earlier epoch updates no row. A server that was restored, or
//! failed over to, may have forgotten an epoch and give it again, and draw numbers again that were
//! read before; so the fence is the epoch, its holder and the server's start together, and a publisher
//! that meets another server begins anew from what that one knows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::publish::core::Checkpoint;
use crate::publish::frontier::Numbers;
use crate::sink::SinkName;

/// One term of one holder on one server, from the server's start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    number: i64,
    holder: Arc<str>,
    server_started: DateTime<Utc>,
}

impl Epoch {
    /// When the server started that gave the lease.
    #[must_use]
    pub(crate) fn server_started(&self) -> DateTime<Utc> {
        self.server_started
    }
}

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

/// What came of prolonging the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// It is still ours, and this is what operators ask for.
    Held(Standing),
    /// It is somebody else's: stop.
    Lost,
}

/// What operators ask of the publisher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Why it has to stand still, if so.
    pub paused: Option<String>,
    /// Whether dead letters are to be published again.
    pub retries: bool,
}

/// Asks for the lease of a sink that reads `source`. A holder that asks again gets a new epoch.
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
    let given = sqlx::query!(
        r#"
        update relay_sinks
        set epoch = epoch + 1, holder = $2, lease_until = clock_timestamp() + make_interval(secs => $3),
            trouble = null, trouble_since = null
        where sink = $1 and source = $4
          and (lease_until is null or lease_until <= clock_timestamp() or holder = $2)
        returning epoch, pg_postmaster_start_time() as "server_started!"
        "#,
        sink.as_str(),
        holder,
        ttl.as_secs_f64(),
        source,
    )
    .fetch_optional(pool)
    .await?;
    if let Some(given) = given {
        let (number, server_started) = (given.epoch, given.server_started);
        return Ok(Acquired::Leader(Epoch { number, holder: holder.into(), server_started }));
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

/// The sink's row as operators see it.
#[derive(Clone, Debug)]
pub(crate) struct SinkState {
    /// Who publishes, if anybody does.
    pub holder: Option<String>,
    /// Since when it is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// Why.
    pub pause_reason: Option<String>,
}

/// Who publishes, and whether it is paused; none when nobody ever has published under this name.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn state(
    executor: impl PgExecutor<'_>,
    sink: &SinkName,
) -> Result<Option<SinkState>, sqlx::Error> {
    sqlx::query_as!(
        SinkState,
        r#"
        select case when lease_until > clock_timestamp() then holder end as holder, paused_at, pause_reason
        from relay_sinks where sink = $1
        "#,
        sink.as_str(),
    )
    .fetch_optional(executor)
    .await
}

/// Which table the sink reads; none when nobody ever has published under this name.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn source(pool: &PgPool, sink: &SinkName) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!("select source from relay_sinks where sink = $1", sink.as_str())
        .fetch_optional(pool)
        .await
}

/// Pauses the sink, or gives a pause another reason; resumes it when there is none.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn pause(
    connection: &mut PgConnection,
    sink: &SinkName,
    reason: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update relay_sinks
         set paused_at = case when $2::text is not null then coalesce(paused_at, clock_timestamp()) end,
             pause_reason = $2
         where sink = $1",
        sink.as_str(),
        reason,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Prolongs the lease, notes what keeps its holder from making progress, if anything does, and hears
/// what operators ask for.
///
/// # Errors
/// Whatever the database says; the renewal can be repeated.
pub(crate) async fn renew(
    pool: &PgPool,
    sink: &SinkName,
    epoch: &Epoch,
    ttl: Duration,
    trouble: Option<&str>,
) -> Result<Renewed, sqlx::Error> {
    let standing = sqlx::query_as!(
        Standing,
        r#"
        update relay_sinks
        set lease_until = clock_timestamp() + make_interval(secs => $3), trouble = $4,
            trouble_since = case when $4::text is not null then coalesce(trouble_since, clock_timestamp()) end
        where sink = $1 and epoch = $2 and holder = $5 and pg_postmaster_start_time() = $6
        returning pause_reason as paused,
                  exists (select from relay_retries where relay_retries.sink = relay_sinks.sink) as "retries!"
        "#,
        sink.as_str(),
        epoch.number,
        ttl.as_secs_f64(),
        trouble,
        &*epoch.holder,
        epoch.server_started,
    )
    .fetch_optional(pool)
    .await?;
    Ok(standing.map_or(Renewed::Lost, Renewed::Held))
}

/// Gives the lease up, so that a standby need not wait for its end.
///
/// # Errors
/// Whatever the database says; the lease then ends by itself.
pub(crate) async fn release(pool: &PgPool, sink: &SinkName, epoch: &Epoch) -> Result<Fenced, sqlx::Error> {
    let done = sqlx::query!(
        "update relay_sinks set holder = null, lease_until = null, trouble = null, trouble_since = null
         where sink = $1 and epoch = $2 and holder = $3 and pg_postmaster_start_time() = $4",
        sink.as_str(),
        epoch.number,
        &*epoch.holder,
        epoch.server_started,
    )
    .execute(pool)
    .await?;
    Ok(fenced(done.rows_affected()))
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

/// Commits that events are settled, which of them are parked, and which dead letters are none any
/// more, in one statement: an event is never counted as settled without lying on Kafka or among the
/// dead letters, and never taken from those without lying on Kafka (invariant 3). An event that was
/// parked before may be in no outbox any more: it is parked again where it is.
/// Union is commutative and the dead letters have a key, so a repeat changes nothing.
///
/// # Errors
/// Whatever the database says; the checkpoint can be repeated.
pub(crate) async fn checkpoint(
    executor: impl PgExecutor<'_>,
    sink: &SinkName,
    epoch: &Epoch,
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
            set published = published + coalesce((select range_agg(int8range(from_seq, to_seq))
                                                  from unnest($3::int8[], $4::int8[]) as settled(from_seq, to_seq)), '{}'),
                lease_until = clock_timestamp() + make_interval(secs => $5)
            where sink = $1 and epoch = $2 and holder = $10 and pg_postmaster_start_time() = $11
            returning sink
        ), news as (
            select held.sink, seq, case when detail is null then 'behind' else 'refused' end as cause,
                   coalesce(detail, 'an earlier event of this order is parked') as detail
            from held, unnest($6::int8[], $7::text[]) as parked(seq, detail)
        ), parked as (
            insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload,
                                    headers, created_at, cause, detail)
            select news.sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                   created_at, cause, detail
            from news join outbox using (seq)
            on conflict on constraint relay_dead_pkey do nothing
        ), parked_again as (
            update relay_dead set cause = news.cause, detail = news.detail
            from news where relay_dead.sink = news.sink and relay_dead.seq = news.seq
        ), mended as (
            delete from relay_dead using held where relay_dead.sink = held.sink and seq = any($8)
        ), ended as (
            delete from relay_retries using held where relay_retries.sink = held.sink and retry_id = any($9)
        )
        select count(*) as "held!" from held
        "#,
        sink.as_str(),
        epoch.number,
        &from,
        &to,
        ttl.as_secs_f64(),
        &parked,
        &details as &[Option<String>],
        &checkpoint.mended,
        &checkpoint.ended,
        &*epoch.holder,
        epoch.server_started,
    )
    .fetch_one(executor)
    .await?;
    Ok(fenced(held.unsigned_abs()))
}

fn fenced(rows: u64) -> Fenced {
    if rows == 0 { Fenced::Lost } else { Fenced::Held }
}
