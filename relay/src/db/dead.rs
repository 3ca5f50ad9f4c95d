//! The dead letters: what is parked, what is to be published again, what was given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::publish::gate::Retry;
use crate::publish::row::{Event, ForeignEvent, OVERHEAD, OrderEvent, Row};
use crate::sink::SinkName;

/// The dead letters that are to be published again: for each retry, oldest first, the next ones of its
/// order, ascending; `limit` rows in all, and no more once `bytes` are spent ([`Row::bytes`]), but one row at least.
///
/// `topic` gives the topic of a foreign aggregate type.
///
/// One statement, so one snapshot: whether an order has others beside these is told at the same
/// moment (invariant 4 rests on it).
///
/// # Errors
/// Whatever the database says; the read can be repeated.
pub(crate) async fn retries(
    pool: &PgPool,
    sink: &SinkName,
    topic: impl Fn(&str) -> String + Send,
    limit: usize,
    bytes: usize,
) -> Result<Vec<Retry>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        with asked as (
            select retry_id, aggregate_id, coalesce(until_seq, 9223372036854775807) as until_seq,
                   row_number() over (order by requested_at, retry_id) as place
            from relay_retries where sink = $1
            order by requested_at, retry_id limit $2
        ), found as (
            select asked.*, letter.seq, sum(coalesce(letter.bytes, 0)) over
                       (order by place, letter.seq rows between unbounded preceding and 1 preceding) as before
            from asked left join lateral (
                select seq, coalesce(octet_length(source_value), octet_length(payload::text)) + $4 as bytes from relay_dead
                where sink = $1 and aggregate_id = asked.aggregate_id and seq <= asked.until_seq
                order by seq limit $2
            ) as letter on true
            order by place, letter.seq limit $2
        )
        select found.retry_id as "retry_id!", found.aggregate_id as "order!", dead.seq as "seq?",
               dead.event_id as "event_id?", dead.version as "version?", dead.type as "kind?",
               dead.payload::text as "payload?", dead.headers ->> 'traceparent' as traceparent,
               dead.headers ->> 'tracestate' as tracestate, dead.created_at as "created_at?",
               dead.aggregate_type as "aggregate_type?", dead.source_id, dead.source_key, dead.source_value,
               case when dead.source_id is not null then dead.headers end as "headers: Json<BTreeMap<Arc<str>, Option<String>>>",
               not exists (select from relay_dead as other where other.sink = $1
                           and other.aggregate_id = found.aggregate_id and other.seq <= found.until_seq
                           and (found.seq is null or other.seq > found.seq)) as "last!",
               not exists (select from relay_dead as other where other.sink = $1
                           and other.aggregate_id = found.aggregate_id
                           and (found.seq is null or other.seq > found.seq)) as "frees!"
        from found left join relay_dead as dead on dead.sink = $1 and dead.seq = found.seq
        where coalesce(found.before, 0) < $3
        order by found.place, found.seq
        "#,
        sink.as_str(),
        i64::try_from(limit).unwrap_or(i64::MAX),
        i64::try_from(bytes.max(1)).unwrap_or(i64::MAX),
        i32::try_from(OVERHEAD).unwrap_or(i32::MAX),
    )
    .fetch_all(pool)
    .await?;
    let mut retries: Vec<Retry> = Vec::new();
    for row in rows {
        if retries.last().is_none_or(|retry| retry.id != row.retry_id) {
            retries.push(Retry {
                id: row.retry_id,
                order: row.order,
                rows: Vec::new(),
                last: true,
                frees: true,
            });
        }
        let Some(retry) = retries.last_mut() else { continue };
        (retry.last, retry.frees) = (row.last, row.frees);
        let foreign = (row.aggregate_type, row.source_id, row.source_key, row.headers);
        let order = (row.event_id, row.version, row.kind, row.payload, row.created_at);
        let event = match (foreign, order) {
            ((Some(aggregate_type), Some(id), Some(key), Some(Json(headers))), _) => {
                Event::Foreign(ForeignEvent {
                    topic: topic(&aggregate_type),
                    id,
                    key,
                    payload: row.source_value,
                    headers: headers.into_iter().collect(),
                })
            }
            (_, (Some(event_id), Some(version), Some(kind), Some(payload), Some(created_at))) => {
                Event::Order(OrderEvent {
                    event_id,
                    version,
                    kind,
                    payload,
                    traceparent: row.traceparent,
                    tracestate: row.tracestate,
                    created_at,
                })
            }
            // A retry without dead letters.
            _ => continue,
        };
        if let Some(seq) = row.seq {
            retry.rows.push(Row { seq, aggregate_id: row.order, event });
        }
    }
    Ok(retries)
}

/// Which dead letters an operator means.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Those of these orders; of every order when there are none.
    pub orders: Vec<Uuid>,
    /// This one only.
    pub event: Option<Uuid>,
    /// Those of orders of which an event was refused with words that contain these.
    pub cause: Option<String>,
}

/// Dead letters with one cause.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    /// `refused` or `behind`.
    pub cause: String,
    /// The words, sizes left out.
    pub detail: String,
    /// How many events.
    pub events: i64,
    /// Of how many orders.
    pub orders: i64,
    /// How many of the events are to be published again.
    pub retrying: i64,
    /// When the first one was parked.
    pub oldest: DateTime<Utc>,
    /// One of the orders.
    pub example: Uuid,
}

/// The dead letters by cause, most first.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn groups(pool: &PgPool, sink: &SinkName) -> Result<Vec<Group>, sqlx::Error> {
    sqlx::query_as!(
        Group,
        r#"
        select cause, regexp_replace(detail, ' \(\d+ bytes\)$', '') as "detail!", count(*) as "events!",
               count(distinct aggregate_id) as "orders!",
               count(*) filter (where retry_id is not null and seq <= coalesce(until_seq, seq)) as "retrying!",
               min(parked_at) as "oldest!", (array_agg(aggregate_id order by parked_at, seq))[1] as "example!"
        from relay_dead
        left join relay_retries using (sink, aggregate_id)
        where sink = $1
        group by 1, 2
        order by 3 desc, 1, 2
        "#,
        sink.as_str(),
    )
    .fetch_all(pool)
    .await
}

/// A dead letter without its payload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Letter {
    /// Its number in the outbox.
    pub seq: i64,
    /// The event's id.
    pub event_id: Uuid,
    /// The order.
    pub order_id: Uuid,
    /// 1, 2, 3 … within the order.
    pub version: i32,
    /// CloudEvents type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `refused` or `behind`.
    pub cause: String,
    /// The words of the refusal.
    pub detail: String,
    /// When it was parked.
    pub parked_at: DateTime<Utc>,
    /// Whether its order is to be published again.
    pub retrying: bool,
    /// The id as a foreign table has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The aggregate's id as a foreign table has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_key: Option<String>,
}

/// The dead letters that are meant, order by order in version order.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn letters(
    executor: impl PgExecutor<'_>,
    sink: &SinkName,
    selection: &Selection,
) -> Result<Vec<Letter>, sqlx::Error> {
    sqlx::query_as!(
        Letter,
        r#"
        select seq, event_id, dead.aggregate_id as order_id, version, type as kind, cause, detail, parked_at,
               exists (select from relay_retries as retry where retry.sink = $1
                       and retry.aggregate_id = dead.aggregate_id
                       and dead.seq <= coalesce(retry.until_seq, dead.seq)) as "retrying!",
               source_id, source_key
        from relay_dead as dead
        where sink = $1 and (cardinality($2::uuid[]) = 0 or aggregate_id = any($2))
          and ($3::uuid is null or event_id = $3)
          and ($4::text is null or exists (
              select from relay_dead as refused where refused.sink = $1
              and refused.aggregate_id = dead.aggregate_id and refused.cause = 'refused'
              and strpos(lower(refused.detail), lower($4)) > 0))
        order by min(seq) over (partition by dead.aggregate_id), seq
        "#,
        sink.as_str(),
        &selection.orders,
        selection.event,
        selection.cause,
    )
    .fetch_all(executor)
    .await
}

/// Everything about a dead letter, as a JSON object, by the id of the event or of its order. The value of
/// one of a foreign table is shown as PostgreSQL escapes bytes.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn whole(pool: &PgPool, sink: &SinkName, id: Uuid) -> Result<Vec<Value>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select case when source_id is null then json_build_object(
            'seq', seq, 'eventId', event_id, 'orderId', aggregate_id, 'version', version, 'type', type,
            'createdAt', created_at, 'cause', cause, 'detail', detail, 'parkedAt', parked_at,
            'payloadBytes', octet_length(payload::text), 'headers', headers, 'payload', payload)
        else json_build_object(
            'seq', seq, 'eventId', event_id, 'orderId', aggregate_id, 'sourceId', source_id, 'sourceKey', source_key,
            'aggregateType', aggregate_type, 'type', type, 'cause', cause, 'detail', detail, 'parkedAt', parked_at,
            'valueBytes', octet_length(source_value), 'headers', headers, 'value', encode(source_value, 'escape'))
        end as "letter!"
        from relay_dead where sink = $1 and (event_id = $2 or aggregate_id = $2)
        order by seq
        "#,
        sink.as_str(),
        id,
    )
    .fetch_all(pool)
    .await
}

/// Lets one operator at a time change what becomes of dead letters, until the transaction ends.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn lock(connection: &mut PgConnection, sink: &SinkName) -> Result<(), sqlx::Error> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('relay_retries ' || $1, 0))", sink.as_str())
        .execute(connection)
        .await
        .map(drop)
}

/// The earlier dead letters of the order of `event`, which have to go before it.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn earlier(
    connection: &mut PgConnection,
    sink: &SinkName,
    event: Uuid,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "select earlier.seq from relay_dead as dead
         join relay_dead as earlier on earlier.sink = dead.sink and earlier.aggregate_id = dead.aggregate_id
                                    and earlier.seq < dead.seq
         where dead.sink = $1 and dead.event_id = $2
         order by earlier.seq",
        sink.as_str(),
        event,
    )
    .fetch_all(connection)
    .await
}

/// Asks the publisher to publish the dead letters of some orders again, up to the number `until` if
/// there is one. An order that was asked for already is asked for anew.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn ask(
    connection: &mut PgConnection,
    sink: &SinkName,
    orders: &[Uuid],
    until: Option<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into relay_retries (retry_id, sink, aggregate_id, until_seq)
        select gen_random_uuid(), $1, aggregate_id, $3 from unnest($2::uuid[]) as asked(aggregate_id)
        on conflict on constraint relay_retries_once do update
        set retry_id = excluded.retry_id, until_seq = excluded.until_seq, requested_at = excluded.requested_at
        "#,
        sink.as_str(),
        orders,
        until,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Takes dead letters out for good and keeps them as a record. An order that has none left is asked
/// for, so that the publisher lets it go on.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn discard(
    connection: &mut PgConnection,
    sink: &SinkName,
    seqs: &[i64],
    by: &str,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        with gone as (
            delete from relay_dead where sink = $1 and seq = any($2) returning *
        ), kept as (
            insert into relay_discarded (sink, seq, event_id, aggregate_id, version, event, reason, discarded_by)
            select sink, seq, event_id, aggregate_id, version, row_to_json(gone), $4, $3 from gone
        )
        insert into relay_retries (retry_id, sink, aggregate_id)
        select gen_random_uuid(), $1, aggregate_id
        from (select distinct aggregate_id from gone) as gone
        where not exists (select from relay_dead as other where other.sink = $1
                          and other.aggregate_id = gone.aggregate_id and other.seq <> all($2))
        "#,
        sink.as_str(),
        seqs,
        by,
        reason,
    )
    .execute(connection)
    .await
    .map(drop)
}
