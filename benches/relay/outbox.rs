//! The outboxes that are drained, made in the server, and their rows.

use std::fmt;

use chrono::{DateTime, Utc};
use events::{Attributes, EventId};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::shared::Outcome;

/// One event in so many is of the hot order.
pub(crate) const HOT: i64 = 100;

/// Whose the events of a full outbox are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// Every order has one.
    One,
    /// Every order has five, one right behind the other: the hardest case for whoever keeps them
    /// in order.
    Five,
    /// A thousand orders take turns.
    Thousand,
    /// As `One`, but every hundredth is of one and the same order; only the others are measured.
    Hot,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "one event per order",
            Self::Five => "five events per order",
            Self::Thousand => "a thousand orders",
            Self::Hot => "the others beside a hot order",
        })
    }
}

impl Shape {
    /// The name of its database.
    pub(crate) fn database(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Five => "five",
            Self::Thousand => "thousand",
            Self::Hot => "hot",
        }
    }

    /// The order and the version of the `n`th event, in SQL; `n` counts from 1.
    fn order_and_version(self) -> (&'static str, &'static str) {
        match self {
            Self::One => ("n", "1"),
            Self::Five => ("(n - 1) / 5", "(n - 1) % 5 + 1"),
            Self::Thousand => ("n % 1000", "(n - 1) / 1000 + 1"),
            Self::Hot => {
                ("case when n % 100 = 0 then 0 else n end", "case when n % 100 = 0 then n / 100 else 1 end")
            }
        }
    }

    /// How many of so many events are measured.
    pub(crate) fn measured(self, events: i64) -> i64 {
        if self == Self::Hot { events - events / HOT } else { events }
    }

    /// Fills the empty outbox of its database. The `n`th event has the number `n`.
    pub(crate) async fn fill(self, connection: &mut PgConnection, events: i64) -> Outcome<()> {
        let (order, version) = self.order_and_version();
        // Order ids ascend as UUIDv7 do and are as random behind that.
        let fill = format!(
            r#"
            insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
            select uuidv7(), 'order', order_id, version, 'order.created.v1',
                   format('{{"orderId":"%s","customerId":42,"amountCents":2599,"currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00.000000Z"}}',
                          order_id)::json
            from (select n, {order} as order_number, {version} as version from generate_series(1, $1) as n) as events
            cross join lateral (select overlay(md5(order_number::text) placing lpad(to_hex(order_number), 8, '0')
                                               from 1 for 8)::uuid as order_id) as ids
            order by n
            "#
        );
        sqlx::query(AssertSqlSafe(fill)).bind(events).execute(connection).await?;
        Ok(())
    }
}

/// The columns of [`Event`].
pub(crate) const COLUMNS: &str =
    "seq, event_id, aggregate_id, version, type as kind, payload::text as payload, created_at";

/// A row.
#[derive(sqlx::FromRow)]
pub(crate) struct Event {
    pub(crate) seq: i64,
    event_id: Uuid,
    pub(crate) aggregate_id: Uuid,
    version: i32,
    kind: String,
    pub(crate) payload: String,
    created_at: DateTime<Utc>,
}

impl Event {
    /// What the relay makes of it.
    pub(crate) fn attributes(&self) -> Attributes {
        Attributes {
            id: EventId::from(self.event_id),
            source: "/orders".to_owned(),
            kind: self.kind.clone(),
            subject: self.aggregate_id,
            time: self.created_at,
            version: self.version,
            traceparent: None,
            tracestate: None,
        }
    }
}
