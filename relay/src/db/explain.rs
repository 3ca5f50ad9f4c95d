//! What the database knows of one order's way: read by `relay explain`, changes nothing.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::config::Subject;

/// The order that an id or a number means: an order's own, or that of one of its events.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn order_of(pool: &PgPool, subject: Subject) -> Result<Option<Uuid>, sqlx::Error> {
    let (id, seq) = match subject {
        Subject::Id(id) => (Some(id), None),
        Subject::Seq(seq) => (None, Some(seq)),
    };
    // Each place through its own index; the outbox may have been emptied since.
    sqlx::query_scalar!(
        r#"
        select aggregate_id as "order!" from (
            (select order_id as aggregate_id from orders where order_id = $1)
            union all (select aggregate_id from outbox where aggregate_id = $1 limit 1)
            union all (select aggregate_id from outbox where event_id = $1)
            union all (select aggregate_id from outbox where seq = $2)
            union all (select aggregate_id from relay_dead
                       where source_id is null and (event_id = $1 or aggregate_id = $1 or seq = $2) limit 1)
            union all (select aggregate_id from inbox where consumer = 'notify' and event_id = $1)
            union all (select aggregate_id from inbox_dead
                       where consumer = 'notify' and (event_id = $1 or aggregate_id = $1)
                         and aggregate_id is not null limit 1)
        ) as found limit 1
        "#,
        id,
        seq,
    )
    .fetch_optional(pool)
    .await
}

/// An order as the API wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Whose it is.
    pub client_id: String,
    /// `created` or `cancelled`.
    pub status: String,
    /// When the API took the request, on the API's clock.
    pub created_at: DateTime<Utc>,
    /// Personal data: shown only when asked for.
    pub customer_email: Option<String>,
}

/// The order, if this database has it.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn order(pool: &PgPool, order: Uuid) -> Result<Option<Order>, sqlx::Error> {
    sqlx::query_as!(
        Order,
        "select client_id, status, created_at, customer_email from orders where order_id = $1",
        order,
    )
    .fetch_optional(pool)
    .await
}

/// A request that is still remembered by its idempotency key.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The client's key.
    pub key: String,
    /// What was asked for.
    pub operation: String,
    /// How it was answered.
    pub response_status: i16,
    /// When, on the database's clock.
    pub created_at: DateTime<Utc>,
}

/// The requests about an order. Reads the keys of its client.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn requests(pool: &PgPool, client: &str, order: Uuid) -> Result<Vec<Request>, sqlx::Error> {
    sqlx::query_as!(
        Request,
        "select key, operation, response_status, created_at from idempotency_keys
         where client_id = $1 and order_id = $2 order by created_at",
        client,
        order,
    )
    .fetch_all(pool)
    .await
}

/// An event wherever traces of it are left: outbox, dead letters, inbox of `notify`.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// 1, 2, 3 … within the order.
    pub version: i32,
    /// Its id.
    pub event_id: Uuid,
    /// Its number; none when only the inbox remembers it.
    pub seq: Option<i64>,
    /// CloudEvents type; none when only the inbox remembers it.
    pub kind: Option<String>,
    /// Trace context and the like.
    pub headers: Option<Value>,
    /// When it was written, on the database's clock.
    pub committed_at: Option<DateTime<Utc>>,
    /// Whether the sink has settled it.
    pub settled: Option<bool>,
    /// `refused` or `behind`, when it is parked.
    pub cause: Option<String>,
    /// The words of Kafka.
    pub detail: Option<String>,
    /// When it was parked.
    pub parked_at: Option<DateTime<Utc>>,
    /// Where it lies, once `notify` has seen it.
    pub topic: Option<String>,
    /// Partition.
    pub partition: Option<i32>,
    /// Offset.
    pub offset: Option<i64>,
    /// When the relay handed it to Kafka, on the relay's clock.
    pub published_at: Option<DateTime<Utc>>,
    /// When `notify` had handled it.
    pub notified_at: Option<DateTime<Utc>>,
    /// `refused` or `behind`, when `notify` has taken it aside.
    pub aside: Option<String>,
    /// What `notify` said.
    pub aside_reason: Option<String>,
    /// When it was taken aside.
    pub aside_at: Option<DateTime<Utc>>,
}

/// The events of an order, in version order.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn events(pool: &PgPool, sink: &str, order: Uuid) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as!(
        Event,
        r#"
        with row as (select * from outbox where aggregate_id = $2),
             dead as (select seq, event_id, version, type, headers, created_at, cause, detail, parked_at
                      from relay_dead where sink = $1 and aggregate_id = $2
                      union all
                      select seq, event_id, version, event ->> 'type', (event -> 'headers')::jsonb,
                             (event ->> 'created_at')::timestamptz, 'discarded', discarded_by || ': ' || reason,
                             discarded_at
                      from relay_discarded where sink = $1 and aggregate_id = $2),
             seen as (select event_id, version, topic, kafka_partition, kafka_offset, published_at, handled_at,
                             null as cause, null as reason, null::timestamptz as dead_at
                      from inbox where consumer = 'notify' and aggregate_id = $2
                      union all
                      select event_id,
                             convert_from(header_values[array_position(header_names, 'ce_orderversion')], 'UTF8')::int,
                             topic, kafka_partition, kafka_offset, published_at, null, cause, reason, dead_at
                      from inbox_dead
                      where consumer = 'notify' and aggregate_id = $2 and event_id is not null),
             id as (select event_id, version from row union select event_id, version from dead
                    union select event_id, version from seen)
        select id.version as "version!", id.event_id as "event_id!", coalesce(row.seq, dead.seq) as seq,
               coalesce(row.type, dead.type) as kind, coalesce(row.headers, dead.headers) as headers,
               coalesce(row.created_at, dead.created_at) as committed_at,
               (select published @> coalesce(row.seq, dead.seq) from relay_sinks where sink = $1) as settled,
               dead.cause as "cause?", dead.detail as "detail?", dead.parked_at as "parked_at?",
               seen.topic as "topic?", seen.kafka_partition as "partition?", seen.kafka_offset as "offset?",
               seen.published_at as "published_at?", seen.handled_at as "notified_at?",
               seen.cause as "aside?", seen.reason as "aside_reason?", seen.dead_at as "aside_at?"
        from id left join row using (event_id) left join dead using (event_id) left join seen using (event_id)
        order by id.version, 3
        "#,
        sink,
        order,
    )
    .fetch_all(pool)
    .await
}

/// An e-mail of an order.
#[derive(Clone, Debug)]
pub(crate) struct Mail {
    /// Primary key.
    pub notification_id: Uuid,
    /// The version of the event it is about.
    pub order_version: i32,
    /// Confirmation or cancellation.
    pub kind: String,
    /// Where it is.
    pub state: String,
    /// Attempts that the server refused.
    pub attempts: i32,
    /// When it is due.
    pub next_attempt_at: DateTime<Utc>,
    /// Who sends it at the moment.
    pub holder: Option<String>,
    /// The server's last words; they may repeat the address.
    pub last_error: Option<String>,
    /// With angle brackets.
    pub message_id: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When the server took it.
    pub sent_at: Option<DateTime<Utc>>,
    /// When the server refused it for good.
    pub failed_at: Option<DateTime<Utc>>,
}

/// The e-mails of an order.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn mails(pool: &PgPool, order: Uuid) -> Result<Vec<Mail>, sqlx::Error> {
    sqlx::query_as!(
        Mail,
        "select notification_id, order_version, kind, state, attempts, next_attempt_at, holder, last_error,
                message_id, created_at, sent_at, failed_at
         from notifications where order_id = $1 order by order_version, kind",
        order,
    )
    .fetch_all(pool)
    .await
}
