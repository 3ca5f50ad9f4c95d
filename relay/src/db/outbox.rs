//! Reading the outbox.

use std::ops::RangeInclusive;
use std::pin::pin;

use chrono::{DateTime, Utc};
use futures_util::{Stream, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use uuid::Uuid;

use crate::publish::frontier::Holders;
use crate::publish::row::{Event, OrderEvent, Row};

/// A row of our own outbox as its columns are.
pub(super) struct OrderRow {
    pub seq: i64,
    pub event_id: Uuid,
    pub aggregate_id: Uuid,
    pub version: i32,
    pub kind: String,
    pub payload: String,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub created_at: DateTime<Utc>,
}

impl From<OrderRow> for Row {
    fn from(row: OrderRow) -> Self {
        Self {
            seq: row.seq,
            aggregate_id: row.aggregate_id,
            event: Event::Order(OrderEvent {
                event_id: row.event_id,
                version: row.version,
                kind: row.kind,
                payload: row.payload,
                traceparent: row.traceparent,
                tracestate: row.tracestate,
                created_at: row.created_at,
            }),
        }
    }
}

/// What a read gave.
#[derive(Debug)]
pub(crate) struct Read {
    /// The rows, ascending.
    pub rows: Vec<Row>,
    /// Whether it stopped at one of its limits, so that nothing above the last row was looked at.
    pub cut: bool,
}

/// The rows in `open` and those above `above`, ascending: `limit` at most, and no more once `bytes`
/// are spent ([`Row::bytes`]), so at most one row too many.
///
/// One statement, so one snapshot: a later version of an order is never seen without its earlier
/// one (invariant 4 rests on it). Each range is read by itself through the primary key, so that a
/// read costs what it returns, however many rows lie before or behind; what lies above, the most by
/// far, comes in order from there and is not sorted. The rows are put in order before their payloads
/// are fetched from where PostgreSQL keeps large ones, and they come as a stream: what does not fit
/// the bytes is fetched by nobody.
///
/// With `server_started`, nothing is read from a server that started at another time: one that was failed
/// over to may have forgotten transactions and draw their numbers again, below `above` (invariants 3
/// and 4 rest on it).
///
/// # Errors
/// Whatever the database says; the read can be repeated.
pub(crate) async fn read(
    pool: &PgPool,
    server_started: Option<DateTime<Utc>>,
    open: &[RangeInclusive<i64>],
    above: i64,
    limit: usize,
    bytes: usize,
) -> Result<Read, sqlx::Error> {
    let (from, to) = ends(open);
    let mut connection = pool.acquire().await?;
    let rows = sqlx::query_as!(
        OrderRow,
        r#"
            select seq as "seq!", event_id as "event_id!", aggregate_id as "aggregate_id!",
                   version as "version!", type as "kind!", payload::text as "payload!",
                   headers ->> 'traceparent' as traceparent, headers ->> 'tracestate' as tracestate,
                   created_at as "created_at!"
            from (
                (select event.*
                 from unnest($1::int8[], $2::int8[]) as open(from_seq, to_seq)
                 cross join lateral (
                     select * from outbox where seq between open.from_seq and open.to_seq order by seq limit $4
                 ) as event
                 order by event.seq
                 limit $4)
                union all
                (select * from outbox where seq > $3 order by seq limit $4)
            ) as event
            where $5::timestamptz is null or pg_postmaster_start_time() = $5
            order by seq
            limit $4
            "#,
        &from,
        &to,
        above,
        i64::try_from(limit).unwrap_or(i64::MAX),
        server_started,
    )
    .fetch(&mut *connection)
    .map_ok(Row::from);
    let (read, ended) = take(rows, limit, bytes).await?;
    if !ended {
        abandon(connection);
    }
    Ok(read)
}

/// The lower and the upper ends of ranges.
pub(super) fn ends(ranges: &[RangeInclusive<i64>]) -> (Vec<i64>, Vec<i64>) {
    ranges.iter().map(|range| (*range.start(), *range.end())).unzip()
}

/// Takes rows until `bytes` are spent or there are no more; the second value says that there are no more.
///
/// # Errors
/// Whatever the database says.
pub(super) async fn take(
    rows: impl Stream<Item = Result<Row, sqlx::Error>>,
    limit: usize,
    bytes: usize,
) -> Result<(Read, bool), sqlx::Error> {
    let mut rows = pin!(rows);
    let (mut taken, mut spent) = (Vec::new(), 0);
    while spent < bytes {
        let Some(row) = rows.try_next().await? else {
            return Ok((Read { cut: taken.len() >= limit, rows: taken }, true));
        };
        spent += row.bytes();
        taken.push(row);
    }
    Ok((Read { rows: taken, cut: true }, false))
}

/// Gives up a connection of which not all was read. Before its next use it would be read to the end
/// of what was asked for: all that memory has no room for. A new one costs less.
pub(super) fn abandon(connection: PoolConnection<Postgres>) {
    drop(connection.detach());
}

/// The transactions that hold the writers' lock on an outbox table now.
///
/// A writer takes `RowExclusiveLock` before it draws a number and lets go only after its commit
/// is visible; that nothing is lost in a hole (invariant 3) rests on asking for exactly this lock.
///
/// # Errors
/// Whatever the database says; the question can be repeated.
pub(crate) async fn lock_holders(pool: &PgPool, table: &str) -> Result<Holders, sqlx::Error> {
    let holders = sqlx::query_scalar!(
        r#"
        select virtualtransaction as "holder!"
        from pg_locks
        where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
          and relation = to_regclass($1)
          and database = (select oid from pg_database where datname = current_database())
        "#,
        table,
    )
    .fetch_all(pool)
    .await?;
    Ok(holders.into_iter().collect())
}
