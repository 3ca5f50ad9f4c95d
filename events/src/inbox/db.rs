//! The dedup keys.

use chrono::DateTime;
use sqlx::PgConnection;

use crate::EventId;
use crate::kafka::Event;

/// Inserts the dedup keys of `events` and gives those that were not there before. That an effect
/// happens once rests on the primary key (consumer, event id).
pub(super) async fn insert(
    connection: &mut PgConnection,
    consumer: &str,
    events: &[Event],
) -> Result<Vec<EventId>, sqlx::Error> {
    let ids: Vec<_> = events.iter().map(|e| e.attributes.id.as_uuid()).collect();
    let subjects: Vec<_> = events.iter().map(|e| e.attributes.subject).collect();
    let versions: Vec<_> = events.iter().map(|e| e.attributes.version).collect();
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
        &ids,
        &subjects,
        &versions,
        &topics,
        &partitions,
        &offsets,
        &times,
    )
    .fetch_all(connection)
    .await?;
    Ok(new.into_iter().map(EventId::from).collect())
}
