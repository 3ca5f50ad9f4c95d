//! Reading the outbox.

use std::ops::RangeInclusive;

use sqlx::PgPool;

use crate::publish::frontier::Holders;
use crate::publish::row::Row;

/// The rows in `open` and those above `above`, ascending, `limit` at most.
///
/// One statement, so one snapshot: a later version of an order is never seen without its earlier
/// one (invariant 4 rests on it). Each range is read by itself through the primary key, so that a
/// read costs what it returns, however many rows lie before or behind.
///
/// # Errors
/// Whatever the database says; the read can be repeated.
pub(crate) async fn read(
    pool: &PgPool,
    open: &[RangeInclusive<i64>],
    above: i64,
    limit: usize,
) -> Result<Vec<Row>, sqlx::Error> {
    let ahead = above + 1..=i64::MAX;
    let (from, to): (Vec<i64>, Vec<i64>) =
        open.iter().chain([&ahead]).map(|range| (*range.start(), *range.end())).unzip();
    sqlx::query_as!(
        Row,
        r#"
        select event.seq as "seq!", event.event_id as "event_id!", event.aggregate_id as "aggregate_id!",
               event.version as "version!", event.type as "kind!", event.payload::text as "payload!",
               event.headers ->> 'traceparent' as traceparent, event.headers ->> 'tracestate' as tracestate,
               event.created_at as "created_at!"
        from unnest($1::int8[], $2::int8[]) as open(from_seq, to_seq)
        cross join lateral (
            select * from outbox where seq between open.from_seq and open.to_seq order by seq limit $3
        ) as event
        order by event.seq
        limit $3
        "#,
        &from,
        &to,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(pool)
    .await
}

/// The transactions that hold the writers' lock on the outbox now.
///
/// A writer takes `RowExclusiveLock` before it draws a number and lets go only after its commit
/// is visible; that nothing is lost in a hole (invariant 3) rests on asking for exactly this lock.
///
/// # Errors
/// Whatever the database says; the question can be repeated.
pub(crate) async fn lock_holders(pool: &PgPool) -> Result<Holders, sqlx::Error> {
    let holders = sqlx::query_scalar!(
        r#"
        select virtualtransaction as "holder!"
        from pg_locks
        where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
          and relation = 'outbox'::regclass
          and database = (select oid from pg_database where datname = current_database())
        "#
    )
    .fetch_all(pool)
    .await?;
    Ok(holders.into_iter().collect())
}
