//! What the inbox keeps in PostgreSQL: dedup keys, blocked orders and dead events.

use std::collections::{HashMap, HashSet};

use chrono::DateTime;
use rdkafka::Timestamp;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use sqlx::PgConnection;
use uuid::Uuid;

use super::delivery::Delivery;
use super::judge::{Cause, Facts};
use crate::EventId;
use crate::kafka::Event;

/// Inserts the dedup keys of `events` and gives what is known of them and of their orders. That an
/// effect happens once rests on the primary key (consumer, event id): another member of the group
/// that holds the same event waits here until we have committed.
pub(super) async fn claim(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[&Event],
) -> Result<Facts, sqlx::Error> {
    let topics: Vec<_> = events.iter().map(|e| e.position.topic.clone()).collect();
    let partitions: Vec<_> = events.iter().map(|e| e.position.partition).collect();
    let offsets: Vec<_> = events.iter().map(|e| e.position.offset).collect();
    let times: Vec<_> = events
        .iter()
        .map(|e| DateTime::from_timestamp_millis(e.position.timestamp_millis).unwrap_or_default())
        .collect();
    let new = sqlx::query_scalar!(
        r#"
        insert into inbox (consumer, event_id, aggregate_id, version, topic, kafka_partition, kafka_offset, published_at)
        select $1, * from unnest($2::uuid[], $3::uuid[], $4::int[], $5::text[], $6::int[], $7::int8[], $8::timestamptz[])
        on conflict do nothing
        returning event_id
        "#,
        consumer,
        &ids(events),
        &orders(events),
        &versions(events),
        &topics,
        &partitions,
        &offsets,
        &times,
    )
    .fetch_all(&mut *connection)
    .await?;
    let new: HashSet<_> = new.into_iter().map(EventId::from).collect();
    // A second occurrence within the batch is in `new` too: only the key of the first was inserted.
    let handled =
        if new.len() == events.len() { Vec::new() } else { handled(connection, consumer, events).await? };
    Ok(Facts {
        handled: handled.into_iter().map(|(id, ..)| id).filter(|id| !new.contains(id)).collect(),
        latest: latest(connection, consumer, events, &new).await?,
        blocked: blocked(connection, consumer, events).await?,
        new,
    })
}

/// The same without inserting: what a handler's effects outside PostgreSQL go by. Only saves
/// repeating them.
pub(super) async fn look(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[&Event],
) -> Result<Facts, sqlx::Error> {
    let known = handled(connection, consumer, events).await?;
    let taken: HashSet<_> = known.iter().map(|(_, order, version)| (*order, *version)).collect();
    let handled: HashSet<_> = known.into_iter().map(|(id, ..)| id).collect();
    let new = events
        .iter()
        .map(|e| &e.attributes)
        .filter(|a| !handled.contains(&a.id) && !taken.contains(&(a.subject, a.version)))
        .map(|a| a.id)
        .collect();
    Ok(Facts {
        latest: latest(connection, consumer, events, &new).await?,
        blocked: blocked(connection, consumer, events).await?,
        handled,
        new,
    })
}

/// What was handled before and has the id, or the order and version, of one of `events`.
async fn handled(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[&Event],
) -> Result<Vec<(EventId, Uuid, i32)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select event_id as "event_id!", aggregate_id as "aggregate_id!", version as "version!" from inbox
        where consumer = $1 and event_id = any($2)
        union
        select event_id, aggregate_id, inbox.version from inbox
        join unnest($3::uuid[], $4::int[]) as wanted (order_id, version)
          on aggregate_id = wanted.order_id and inbox.version = wanted.version
        where consumer = $1
        "#,
        consumer,
        &ids(events),
        &orders(events),
        &versions(events),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.event_id.into(), row.aggregate_id, row.version)).collect())
}

/// The highest version of each order that was handled before the events in `new`.
async fn latest(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[&Event],
    new: &HashSet<EventId>,
) -> Result<HashMap<Uuid, i32>, sqlx::Error> {
    let new: Vec<_> = new.iter().map(EventId::as_uuid).collect();
    let rows = sqlx::query!(
        r#"
        select aggregate_id, max(version) as "version!" from inbox
        where consumer = $1 and aggregate_id = any($2) and event_id <> all($3)
        group by aggregate_id
        "#,
        consumer,
        &orders(events),
        &new,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.aggregate_id, row.version)).collect())
}

/// Which of the events' orders are blocked. The lock makes a release wait for us, or us for it, so
/// that no event slips between the two.
async fn blocked(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[&Event],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        "select aggregate_id from inbox_blocked where consumer = $1 and aggregate_id = any($2)
         order by aggregate_id for share",
        consumer,
        &orders(events),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

fn ids(events: &[&Event]) -> Vec<Uuid> {
    events.iter().map(|e| e.attributes.id.as_uuid()).collect()
}

fn orders(events: &[&Event]) -> Vec<Uuid> {
    events.iter().map(|e| e.attributes.subject).collect()
}

fn versions(events: &[&Event]) -> Vec<i32> {
    events.iter().map(|e| e.attributes.version).collect()
}

/// Takes back the keys of events that were not handled after all.
pub(super) async fn unclaim(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[EventId],
) -> Result<(), sqlx::Error> {
    let ids: Vec<_> = events.iter().map(EventId::as_uuid).collect();
    sqlx::query!("delete from inbox where consumer = $1 and event_id = any($2)", consumer, &ids)
        .execute(connection)
        .await
        .map(drop)
}

/// Takes an event aside and blocks its order. False when it lies there already.
pub(super) async fn bury(
    connection: &mut PgConnection,
    consumer: &str,
    delivery: &Delivery,
    cause: Cause,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let (message, order) = (&delivery.message, delivery.order());
    // PostgreSQL's text holds no NUL, and the reason may quote what could not be read.
    let reason = reason.replace('\0', "\u{fffd}");
    if let Some(order) = order {
        sqlx::query!(
            "insert into inbox_blocked (consumer, aggregate_id, reason) values ($1, $2, $3) on conflict do nothing",
            consumer,
            order,
            reason,
        )
        .execute(&mut *connection)
        .await?;
    }
    let headers = || message.headers().into_iter().flat_map(Headers::iter);
    let names: Vec<_> = headers().map(|header| header.key.to_owned()).collect();
    let values: Vec<_> = headers().map(|header| header.value.map(<[u8]>::to_vec)).collect();
    let published_at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
    let buried = sqlx::query!(
        "insert into inbox_dead (consumer, aggregate_id, event_id, cause, reason, topic, kafka_partition,
           kafka_offset, published_at, key, header_names, header_values, data)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict do nothing",
        consumer,
        order,
        delivery.event_id().map(|id| id.as_uuid()),
        cause.as_str(),
        reason,
        message.topic(),
        message.partition(),
        message.offset(),
        published_at.unwrap_or_default(),
        message.key(),
        &names,
        &values as &[Option<Vec<u8>>],
        message.payload(),
    )
    .execute(connection)
    .await?;
    Ok(buried.rows_affected() > 0)
}

/// A dead event as it is kept.
pub(super) struct Dead {
    pub(super) dead_id: i64,
    pub(super) cause: String,
    pub(super) reason: String,
    pub(super) message: OwnedMessage,
}

macro_rules! dead {
    ($row:expr) => {{
        let row = $row;
        let headers = row.header_names.iter().zip(&row.header_values).fold(
            OwnedHeaders::new_with_capacity(row.header_names.len()),
            |headers, (key, value): (_, &Option<Vec<u8>>)| {
                headers.insert(Header { key, value: value.as_ref() })
            },
        );
        Dead {
            dead_id: row.dead_id,
            cause: row.cause,
            reason: row.reason,
            message: OwnedMessage::new(
                row.data,
                row.key,
                row.topic,
                Timestamp::CreateTime(row.published_at.timestamp_millis()),
                row.kafka_partition,
                row.kafka_offset,
                Some(headers),
            ),
        }
    }};
}

/// The oldest dead events that the dead-letter topic has not acknowledged, but for those in `without`.
pub(super) async fn unforwarded(
    connection: &mut PgConnection,
    consumer: &str,
    without: &[i64],
    most: i64,
) -> Result<Vec<Dead>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select dead_id, cause, reason, topic, kafka_partition, kafka_offset, published_at, key, header_names,
          header_values as "header_values: Vec<Option<Vec<u8>>>", data
        from inbox_dead where consumer = $1 and forwarded_at is null and dead_id <> all($2)
        order by dead_id limit $3
        "#,
        consumer,
        without,
        most,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| dead!(row)).collect())
}

/// The dead-letter topic has acknowledged them.
pub(super) async fn forwarded(connection: &mut PgConnection, dead: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query!("update inbox_dead set forwarded_at = clock_timestamp() where dead_id = any($1)", dead)
        .execute(connection)
        .await
        .map(drop)
}

/// The dead events of an order, in the order of their arrival, which is that of their versions.
pub(super) async fn dead_of(
    connection: &mut PgConnection,
    consumer: &str,
    order: Uuid,
) -> Result<Vec<Dead>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select dead_id, cause, reason, topic, kafka_partition, kafka_offset, published_at, key, header_names,
          header_values as "header_values: Vec<Option<Vec<u8>>>", data
        from inbox_dead where consumer = $1 and aggregate_id = $2 order by dead_id
        "#,
        consumer,
        order,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| dead!(row)).collect())
}

/// Orders whose release somebody has asked for, and whether the first event is to be skipped.
pub(super) async fn to_release(
    connection: &mut PgConnection,
    consumer: &str,
) -> Result<Vec<(Uuid, bool)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        select aggregate_id, release = 'skip' as "skip!" from inbox_blocked
        where consumer = $1 and release is not null order by blocked_at limit 100
        "#,
        consumer,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.aggregate_id, row.skip)).collect())
}

/// Locks a blocked order against whoever handles its events. False when it is no longer to be
/// released.
pub(super) async fn lock_blocked(
    connection: &mut PgConnection,
    consumer: &str,
    order: Uuid,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query_scalar!(
        "select 1 from inbox_blocked
         where consumer = $1 and aggregate_id = $2 and release is not null for update",
        consumer,
        order,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// A dead event is handled, or given up.
pub(super) async fn unbury(connection: &mut PgConnection, dead: i64) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from inbox_dead where dead_id = $1", dead).execute(connection).await.map(drop)
}

/// Nothing of the order is dead any more.
pub(super) async fn unblock(
    connection: &mut PgConnection,
    consumer: &str,
    order: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from inbox_blocked where consumer = $1 and aggregate_id = $2", consumer, order)
        .execute(connection)
        .await
        .map(drop)
}

/// The order stays blocked: `dead` was refused again.
pub(super) async fn refused_again(
    connection: &mut PgConnection,
    consumer: &str,
    order: Uuid,
    dead: i64,
    reason: &str,
) -> Result<(), sqlx::Error> {
    let reason = reason.replace('\0', "\u{fffd}");
    sqlx::query!("update inbox_dead set cause = 'refused', reason = $2 where dead_id = $1", dead, reason)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "update inbox_blocked set release = null, reason = $3 where consumer = $1 and aggregate_id = $2",
        consumer,
        order,
        reason,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Asks whichever member of the consumer takes it to release an order. False when it is not blocked.
pub(super) async fn ask_release(
    connection: &mut PgConnection,
    consumer: &str,
    order: Uuid,
    how: &str,
) -> Result<bool, sqlx::Error> {
    let asked = sqlx::query!(
        "update inbox_blocked set release = $3 where consumer = $1 and aggregate_id = $2",
        consumer,
        order,
        how,
    )
    .execute(connection)
    .await?;
    Ok(asked.rows_affected() > 0)
}

/// Checks now what is deferred to the commit.
pub(super) async fn check_constraints(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("set constraints all immediate").execute(connection).await.map(drop)
}
