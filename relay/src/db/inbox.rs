//! What consumers with an inbox in this database have taken aside. The tables are those of
//! `events::inbox`, which alone handles what lies there; here it is looked at, and asked for.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Counts go up to here and no further.
const COUNTED: i64 = 100_000;

/// What is looked for. Everything, when nothing is said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// What this consumer has taken aside.
    pub consumer: Option<String>,
    /// Of these orders, or of the orders of these events.
    pub ids: Vec<Uuid>,
    /// These numbers.
    pub numbers: Vec<i64>,
    /// Refused with these words, or any part of them.
    pub cause: Option<String>,
}

/// The event that blocks an order, and what lies behind it; or a message of which no order can be read.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stuck {
    /// Counts up in the order in which events are taken aside.
    pub number: i64,
    /// The name under which the consumer keeps its dedup keys.
    pub consumer: String,
    /// None when the message tells none: it blocks nothing.
    pub order_id: Option<Uuid>,
    /// None when the message cannot be read.
    pub event_id: Option<Uuid>,
    /// What the consumer said.
    pub reason: String,
    /// When it was taken aside.
    pub dead_at: DateTime<Utc>,
    /// Later events of the order.
    pub behind: i64,
    /// `retry` or `skip`, when that was asked for and is not done yet.
    pub asked: Option<String>,
}

/// The first dead event of each order, oldest first.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn stuck(
    executor: impl sqlx::PgExecutor<'_>,
    selection: &Selection,
    limit: Option<i64>,
) -> Result<Vec<Stuck>, sqlx::Error> {
    sqlx::query_as!(
        Stuck,
        r#"
        select first.dead_id as number, first.consumer, first.aggregate_id as order_id, first.event_id, first.reason,
               first.dead_at, blocked.release as "asked?",
               (select count(*) from inbox_dead as later
                where later.consumer = first.consumer and later.aggregate_id = first.aggregate_id
                  and later.dead_id > first.dead_id) as "behind!"
        from inbox_dead as first
        left join inbox_blocked as blocked
          on blocked.consumer = first.consumer and blocked.aggregate_id = first.aggregate_id
        where not exists (select from inbox_dead as earlier
                          where earlier.consumer = first.consumer and earlier.aggregate_id = first.aggregate_id
                            and earlier.dead_id < first.dead_id)
          and ($1::text is null or first.consumer = $1)
          and (cardinality($2::uuid[]) + cardinality($3::int8[]) = 0
               or first.dead_id = any($3) or first.event_id = any($2) or first.aggregate_id = any($2)
               or exists (select from inbox_dead as later
                          where later.consumer = first.consumer and later.aggregate_id = first.aggregate_id
                            and (later.event_id = any($2) or later.dead_id = any($3))))
          and ($4::text is null or position($4 in first.reason) > 0)
        order by first.dead_id limit $5
        "#,
        selection.consumer,
        &selection.ids,
        &selection.numbers,
        selection.cause,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// A dead event with everything that was delivered.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// As in [`Stuck`], from here on.
    pub number: i64,
    pub consumer: String,
    pub order_id: Option<Uuid>,
    pub event_id: Option<Uuid>,
    /// `refused`, or `behind` an earlier event of its order.
    pub cause: String,
    pub reason: String,
    pub dead_at: DateTime<Utc>,
    /// When the dead-letter topic acknowledged it.
    pub forwarded_at: Option<DateTime<Utc>>,
    /// Where it lies.
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// The message's timestamp.
    pub published_at: DateTime<Utc>,
    pub key: Option<Vec<u8>>,
    pub header_names: Vec<String>,
    pub header_values: Vec<Option<Vec<u8>>>,
    pub data: Option<Vec<u8>>,
}

/// One dead event by id or number, or those of an order, in the order in which they will be handled.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn whole(
    pool: &PgPool,
    consumer: Option<&str>,
    id: Option<Uuid>,
    number: Option<i64>,
) -> Result<Vec<Whole>, sqlx::Error> {
    sqlx::query_as!(
        Whole,
        r#"
        select dead_id as number, consumer, aggregate_id as order_id, event_id, cause, reason, dead_at, forwarded_at,
               topic, kafka_partition as partition, kafka_offset as "offset", published_at, key, header_names,
               header_values as "header_values: Vec<Option<Vec<u8>>>", data
        from inbox_dead
        where (aggregate_id = $2 or event_id = $2 or dead_id = $3) and ($1::text is null or consumer = $1)
        order by consumer, dead_id
        "#,
        consumer,
        id,
        number,
    )
    .fetch_all(pool)
    .await
}

/// Locks the blocked orders of a consumer against whoever handles their events: what is first of an
/// order stays first until we have committed.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn lock(connection: &mut PgConnection, consumer: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("select from inbox_blocked where consumer = $1 order by aggregate_id for update", consumer)
        .fetch_all(connection)
        .await
        .map(drop)
}

/// Asks the consumer to handle what lies aside of these orders; `how` is `retry`, or `skip` to give up the
/// first event of each.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn ask(
    connection: &mut PgConnection,
    consumer: &str,
    orders: &[Uuid],
    how: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update inbox_blocked set release = $3 where consumer = $1 and aggregate_id = any($2)",
        consumer,
        orders,
        how,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Gives up messages that belong to no order.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn give_up(connection: &mut PgConnection, numbers: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from inbox_dead where dead_id = any($1) and aggregate_id is null", numbers)
        .execute(connection)
        .await
        .map(drop)
}

/// What became of orders for which somebody has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    /// Nobody has done it yet.
    pub waiting: i64,
    /// Blocked again, by an event that was refused.
    pub refused: i64,
}

/// Looks how far the consumer is with these orders.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn progress(
    pool: &PgPool,
    consumer: &str,
    orders: &[Uuid],
) -> Result<Progress, sqlx::Error> {
    sqlx::query_as!(
        Progress,
        r#"
        select count(*) filter (where release is not null) as "waiting!",
               count(*) filter (where release is null) as "refused!"
        from inbox_blocked where consumer = $1 and aggregate_id = any($2)
        "#,
        consumer,
        orders,
    )
    .fetch_one(pool)
    .await
}

/// What lies aside of a consumer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Aside {
    /// Its name.
    pub consumer: String,
    /// Events.
    pub events: i64,
    /// Orders that are blocked by them.
    pub orders: i64,
}

/// Counts what lies aside, 100,000 events at most.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn aside(pool: &PgPool) -> Result<Vec<Aside>, sqlx::Error> {
    sqlx::query_as!(
        Aside,
        r#"
        select consumer, count(*) as "events!", count(distinct aggregate_id) as "orders!"
        from (select consumer, aggregate_id from inbox_dead limit $1) as dead
        group by consumer order by consumer
        "#,
        COUNTED,
    )
    .fetch_all(pool)
    .await
}
