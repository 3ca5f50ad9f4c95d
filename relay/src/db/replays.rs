//! Replays: which events, how far, by whom. Nothing here is read by a publisher.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::outbox::OrderRow;
use crate::publish::row::Row;
use crate::sink::SinkName;

/// Which events are meant.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Of these orders; of all when there are none.
    pub orders: Vec<Uuid>,
    /// Of these types; of all when there are none.
    pub kinds: Vec<String>,
    /// Written then or later.
    pub from_time: Option<DateTime<Utc>>,
    /// Written then or earlier.
    pub to_time: Option<DateTime<Utc>>,
    /// Lowest number.
    pub from_seq: i64,
    /// Highest number.
    pub to_seq: i64,
}

/// How many events a filter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meant {
    /// Published, and to be replayed.
    pub published: i64,
    /// Left out: not published yet, parked or discarded.
    pub left_out: i64,
}

/// A replay as it is kept.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replay {
    /// What `--continue` takes.
    pub id: i64,
    /// Where it publishes.
    pub topic: String,
    /// Filter: orders.
    pub orders: Vec<Uuid>,
    /// Filter: types.
    pub types: Vec<String>,
    /// Filter: time.
    pub from_time: Option<DateTime<Utc>>,
    /// Filter: time.
    pub to_time: Option<DateTime<Utc>>,
    /// Filter: number.
    pub from_seq: i64,
    /// Filter: number.
    pub to_seq: i64,
    /// Highest number that is done.
    pub position: i64,
    /// Events meant when it began.
    pub total: i64,
    /// Events published.
    pub published: i64,
    /// Events that Kafka refused, and those behind them.
    pub refused: i64,
    /// `running`, `stopped` or `done`.
    pub state: String,
    /// Who.
    pub started_by: String,
    /// When.
    pub started_at: DateTime<Utc>,
    /// When it was stopped or done.
    pub ended_at: Option<DateTime<Utc>>,
    /// Whether it has shown a sign of life within a minute.
    pub alive: bool,
}

impl Replay {
    /// Its filter.
    #[must_use]
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            orders: self.orders.clone(),
            kinds: self.types.clone(),
            from_time: self.from_time,
            to_time: self.to_time,
            from_seq: self.from_seq,
            to_seq: self.to_seq,
        }
    }
}

/// The lowest and the highest number that these orders have, or that there are at all.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn ends(pool: &PgPool, orders: &[Uuid]) -> Result<(i64, i64), sqlx::Error> {
    let ends = if orders.is_empty() {
        let ends = sqlx::query!("select min(seq), max(seq) from outbox").fetch_one(pool).await?;
        (ends.min, ends.max)
    } else {
        let ends = sqlx::query!("select min(seq), max(seq) from outbox where aggregate_id = any($1)", orders)
            .fetch_one(pool)
            .await?;
        (ends.min, ends.max)
    };
    Ok((ends.0.unwrap_or(1), ends.1.unwrap_or(0)))
}

/// Counts what a filter means, above `after`.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn count(
    pool: &PgPool,
    sink: &SinkName,
    filter: &Filter,
    after: i64,
) -> Result<Meant, sqlx::Error> {
    sqlx::query_as!(
        Meant,
        r#"
        select count(*) filter (where published) as "published!", count(*) filter (where not published) as "left_out!"
        from (
            select coalesce((select published from relay_sinks where sink = $1) @> seq, false)
                   and not exists (select from relay_dead as dead where dead.sink = $1 and dead.seq = event.seq)
                   and not exists (select from relay_discarded as gone where gone.sink = $1 and gone.seq = event.seq)
                   as published
            from outbox as event
            where seq between $2 and $3 and seq > $8
              and (cardinality($4::uuid[]) = 0 or aggregate_id = any($4))
              and (cardinality($5::text[]) = 0 or type = any($5))
              and ($6::timestamptz is null or created_at >= $6) and ($7::timestamptz is null or created_at <= $7)
        ) as meant
        "#,
        sink.as_str(),
        filter.from_seq,
        filter.to_seq,
        &filter.orders,
        &filter.kinds,
        filter.from_time,
        filter.to_time,
        after,
    )
    .fetch_one(pool)
    .await
}

/// The next events that a filter means, ascending: only what this sink has published, because a first
/// occurrence belongs to the publisher (invariant 4). `limit` rows and `bytes` of payload, but one
/// row at least.
///
/// # Errors
/// Whatever the database says; the read can be repeated.
pub(crate) async fn page(
    pool: &PgPool,
    sink: &SinkName,
    filter: &Filter,
    after: i64,
    limit: i64,
    bytes: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query_as!(
        OrderRow,
        r#"
        select seq, event_id, aggregate_id, version, type as kind, payload::text as "payload!",
               headers ->> 'traceparent' as traceparent, headers ->> 'tracestate' as tracestate, created_at
        from (
            select event.*, sum(octet_length(payload::text))
                   over (order by seq rows between unbounded preceding and 1 preceding) as before
            from (
                select * from outbox as event
                where seq between $2 and $3 and seq > $8
                  and (cardinality($4::uuid[]) = 0 or aggregate_id = any($4))
                  and (cardinality($5::text[]) = 0 or type = any($5))
                  and ($6::timestamptz is null or created_at >= $6)
                  and ($7::timestamptz is null or created_at <= $7)
                  and (select published from relay_sinks where sink = $1) @> seq
                  and not exists (select from relay_dead as dead where dead.sink = $1 and dead.seq = event.seq)
                  and not exists (select from relay_discarded as gone where gone.sink = $1 and gone.seq = event.seq)
                order by seq limit $9
            ) as event
        ) as event
        where coalesce(before, 0) < $10
        order by seq
        "#,
        sink.as_str(),
        filter.from_seq,
        filter.to_seq,
        &filter.orders,
        &filter.kinds,
        filter.from_time,
        filter.to_time,
        after,
        limit,
        bytes,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Row::from).collect())
}

/// Keeps a new replay and gives its first run.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn start(
    connection: &mut PgConnection,
    sink: &SinkName,
    topic: &str,
    filter: &Filter,
    total: i64,
    by: &str,
) -> Result<Attempt, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        insert into relay_replays (sink, topic, orders, types, from_time, to_time, from_seq, to_seq, position,
                                   total, started_by)
        values ($1, $2, $3, $4, $5, $6, $7::int8, $8, $7::int8 - 1, $9, $10)
        returning replay_id, attempt
        "#,
        sink.as_str(),
        topic,
        &filter.orders,
        &filter.kinds,
        filter.from_time,
        filter.to_time,
        filter.from_seq,
        filter.to_seq,
        total,
        by,
    )
    .fetch_one(connection)
    .await?;
    Ok(Attempt { replay: row.replay_id, number: row.attempt })
}

/// The replays of a sink, newest first; only one when an id is given.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn list(
    pool: &PgPool,
    sink: &SinkName,
    id: Option<i64>,
) -> Result<Vec<Replay>, sqlx::Error> {
    sqlx::query_as!(
        Replay,
        r#"
        select replay_id as id, topic, orders, types, from_time, to_time, from_seq, to_seq, position, total,
               published, refused, state, started_by, started_at, ended_at,
               state = 'running' and seen_at > clock_timestamp() - interval '1 minute' as "alive!"
        from relay_replays where sink = $1 and ($2::int8 is null or replay_id = $2)
        order by replay_id desc limit 100
        "#,
        sink.as_str(),
        id,
    )
    .fetch_all(pool)
    .await
}

/// One run of a replay: every write names it, and one of an earlier run changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Of this replay.
    pub replay: i64,
    /// The first, the second …
    pub number: i32,
}

/// Where a replay goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The new run.
    pub attempt: Attempt,
    /// Highest number that is done.
    pub position: i64,
    /// Events published so far.
    pub published: i64,
}

/// Sets a replay going again that was stopped, or of which nothing was seen for a minute; none when it
/// runs or is done. That one process at a time goes on with it rests on this one statement: of two at
/// once the second waits for the first one's row, and then finds it running.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn go_on(connection: &mut PgConnection, id: i64) -> Result<Option<Resumed>, sqlx::Error> {
    let row = sqlx::query!(
        "update relay_replays
         set state = 'running', attempt = attempt + 1, ended_at = null, seen_at = clock_timestamp()
         where replay_id = $1
           and (state = 'stopped' or state = 'running' and seen_at <= clock_timestamp() - interval '1 minute')
         returning attempt, position, published",
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Resumed {
        attempt: Attempt { replay: id, number: row.attempt },
        position: row.position,
        published: row.published,
    }))
}

/// Notes how far a replay is; says whether this run is still the present one.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn advance(
    pool: &PgPool,
    attempt: Attempt,
    position: i64,
    published: i64,
    refused: i64,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update relay_replays
         set position = $3, published = published + $4, refused = refused + $5, seen_at = clock_timestamp()
         where replay_id = $1 and attempt = $2 and state = 'running'",
        attempt.replay,
        attempt.number,
        position,
        published,
        refused,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Shows that a replay runs, however long Kafka takes for a page.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn seen(pool: &PgPool, attempt: Attempt) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update relay_replays set seen_at = clock_timestamp()
         where replay_id = $1 and attempt = $2 and state = 'running'",
        attempt.replay,
        attempt.number,
    )
    .execute(pool)
    .await
    .map(drop)
}

/// Notes that a replay is done, or stopped.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn end(pool: &PgPool, attempt: Attempt, done: bool) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update relay_replays set state = case when $3 then 'done' else 'stopped' end, ended_at = clock_timestamp()
         where replay_id = $1 and attempt = $2 and state = 'running'",
        attempt.replay,
        attempt.number,
        done,
    )
    .execute(pool)
    .await
    .map(drop)
}
