//! The outbox beside the topic: what every test of the publisher ends with.
#![allow(dead_code, reason = "each test file includes this and uses its own part")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use demo::testing::{Topic, eventually};
use demo::topic::Message;
use sqlx::PgPool;
use uuid::Uuid;

/// Commits the next event of an order of which nobody else writes.
pub(crate) async fn append(pool: &PgPool, order: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', $1, coalesce(max(version), 0) + 1, 'order.created.v1', '{}'
         from outbox where aggregate_id = $1",
    )
    .bind(order)
    .execute(pool)
    .await
    .map(drop)
}

/// Waits until every committed event is settled.
pub(crate) async fn settled(pool: &PgPool, limit: Duration) {
    eventually("every committed event to be settled", limit, async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from outbox where not exists
             (select from relay_sinks where sink = 'kafka' and published @> seq)",
        )
        .fetch_one(pool)
        .await
        .ok()?;
        (open == 0).then_some(())
    })
    .await;
}

/// Waits until every number that was drawn below the highest settled one counts as settled.
pub(crate) async fn without_holes(pool: &PgPool, limit: Duration) {
    eventually("every hole to be closed", limit, async || {
        let ranges: i64 = sqlx::query_scalar("select count(*) from relay_sinks, unnest(published)")
            .fetch_one(pool)
            .await
            .ok()?;
        (ranges == 1).then_some(())
    })
    .await;
}

/// An event as the outbox, or the topic, tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Uuid,
    pub(crate) order: Uuid,
    pub(crate) version: i32,
    pub(crate) kind: String,
    pub(crate) payload: String,
}

impl Event {
    fn of(message: &Message) -> Self {
        let header = |name| message.header(name).unwrap_or_else(|| panic!("header {name} in {message:?}"));
        let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().expect("bytes")).expect("UTF-8");
        let order = text(&message.key);
        assert_eq!(header("ce_subject"), order, "the key is the order");
        assert_eq!(header("id"), header("ce_id"));
        Self {
            id: header("ce_id").parse().expect("a UUID"),
            order: order.parse().expect("a UUID"),
            version: header("ce_orderversion").parse().expect("a number"),
            kind: header("ce_type").to_owned(),
            payload: text(&message.value),
        }
    }
}

/// Compares outbox and topic event by event, and gives the number of repeats on the topic:
/// nothing lost, nothing extra, nothing changed, and for each order first occurrences in version
/// order. Events in `except` (event ids) are expected to be missing.
pub(crate) async fn compare(pool: &PgPool, topic: &Topic, except: &HashSet<Uuid>) -> usize {
    compare_with(pool, &topic.read().await, except).await
}

/// The same for what lies on any topic.
pub(crate) async fn compare_with(pool: &PgPool, messages: &[Message], except: &HashSet<Uuid>) -> usize {
    let rows: Vec<(Uuid, Uuid, i32, String, String)> = sqlx::query_as(
        "select event_id, aggregate_id, version, type, payload::text from outbox order by seq",
    )
    .fetch_all(pool)
    .await
    .expect("the outbox is read");
    let committed: HashMap<Uuid, Event> = rows
        .into_iter()
        .map(|(id, order, version, kind, payload)| (id, Event { id, order, version, kind, payload }))
        .collect();

    let messages: Vec<Event> = messages.iter().map(Event::of).collect();
    let mut seen = HashSet::new();
    let mut latest: HashMap<Uuid, i32> = HashMap::new();
    for event in &messages {
        assert_eq!(committed.get(&event.id), Some(event), "on the topic is what was committed");
        if seen.insert(event.id) {
            let before = latest.insert(event.order, event.version).unwrap_or(0);
            assert_eq!(event.version, before + 1, "first occurrences of order {} are in order", event.order);
        }
    }
    let lost: Vec<_> = committed.keys().filter(|id| !seen.contains(id) && !except.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} events lost: {lost:?}", lost.len(), committed.len());
    messages.len() - seen.len()
}
