//! What became of an order: its events on their way to Kafka, its e-mails.

use chrono::{DateTime, Utc};
use events::OrderId;
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;

/// The sink whose frontier says what is on Kafka.
const SINK: &str = "kafka";
/// The consumer whose inbox says where on Kafka.
const CONSUMER: &str = "notify";

/// One event of an order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    event_id: uuid::Uuid,
    version: i32,
    #[serde(rename = "type")]
    kind: String,
    time: DateTime<Utc>,
    state: EventState,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    published: Option<Published>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EventState {
    Pending,
    Published,
    Parked,
}

/// Where an event lies, as a consumer has seen it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Published {
    partition: i32,
    offset: i64,
    time: DateTime<Utc>,
}

/// One e-mail of an order. The address is not repeated: the client has sent it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EmailView {
    kind: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sent_at: Option<DateTime<Utc>>,
}

/// The events of an order by version. A parked event counts as settled in the frontier, so the
/// dead letters are asked first; one that an operator discarded stays parked for ever.
pub(crate) async fn events(pool: &PgPool, order: OrderId) -> Result<Vec<EventView>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select o.event_id, o.version, o.type as kind, o.created_at,
                  (d.seq is not null or gone.seq is not null) as "parked!",
                  (i.event_id is not null or coalesce(s.published @> o.seq, false)) as "published!",
                  i.kafka_partition as "partition?", i.kafka_offset as "offset?", i.published_at as "time?"
             from outbox o
             left join relay_sinks s on s.sink = $2
             left join relay_dead d on d.sink = $2 and d.seq = o.seq
             left join relay_discarded gone on gone.sink = $2 and gone.seq = o.seq
             left join inbox i on i.consumer = $3 and i.event_id = o.event_id
            where o.aggregate_id = $1
            order by o.version"#,
        order.as_uuid(),
        SINK,
        CONSUMER,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| EventView {
            event_id: row.event_id,
            version: row.version,
            kind: row.kind,
            time: row.created_at,
            state: match (row.parked, row.published) {
                (true, _) => EventState::Parked,
                (false, true) => EventState::Published,
                (false, false) => EventState::Pending,
            },
            published: match (row.partition, row.offset, row.time) {
                (Some(partition), Some(offset), Some(time)) => Some(Published { partition, offset, time }),
                _ => None,
            },
        })
        .collect())
}

/// The e-mails of an order, oldest first.
pub(crate) async fn emails(pool: &PgPool, order: OrderId) -> Result<Vec<EmailView>, sqlx::Error> {
    sqlx::query_as!(
        EmailView,
        "select kind, state, sent_at from notifications where order_id = $1 order by order_version, kind",
        order.as_uuid(),
    )
    .fetch_all(pool)
    .await
}
