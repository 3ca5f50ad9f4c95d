//! One event as an outbox table holds it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What a row costs in memory beside its payload, roughly.
pub(crate) const OVERHEAD: usize = 512;

/// A row of an outbox table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number; within one order it follows commit order.
    pub seq: i64,
    /// What the gate keeps in order: the order, or what stands for a foreign table's aggregate.
    pub aggregate_id: Uuid,
    /// What goes to Kafka.
    pub event: Event,
}

/// What goes to Kafka, in the shape of its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Of our own outbox: an event of the contract.
    Order(OrderEvent),
    /// Of an outbox table of another program.
    Foreign(ForeignEvent),
}

/// An event of the contract; its subject and key is the row's aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderEvent {
    /// The event's id, the same in every repeat.
    pub event_id: Uuid,
    /// 1, 2, 3 … within the order.
    pub version: i32,
    /// CloudEvents type.
    pub kind: String,
    /// JSON.
    pub payload: String,
    /// W3C Trace Context of the request, as received.
    pub traceparent: Option<String>,
    /// W3C Trace Context, as received.
    pub tracestate: Option<String>,
    /// When it was written, on the database's clock.
    pub created_at: DateTime<Utc>,
}

/// An event of an outbox table of another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignEvent {
    /// Where it goes; it may be no name that Kafka takes.
    pub topic: String,
    /// The event's id, the same in every repeat.
    pub id: String,
    /// Key on Kafka: the aggregate's id.
    pub key: String,
    /// Value on Kafka; none is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// More headers; one without a value is null.
    pub headers: Vec<(Arc<str>, Option<String>)>,
}

impl Row {
    /// What the row counts against the bound on memory.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.payload_bytes() + OVERHEAD
    }

    /// The length of its payload.
    #[must_use]
    pub(crate) fn payload_bytes(&self) -> usize {
        match &self.event {
            Event::Order(event) => event.payload.len(),
            Event::Foreign(event) => event.payload.as_ref().map_or(0, Vec::len),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn row(seq: i64, order: Uuid) -> Row {
        let event = OrderEvent {
            event_id: Uuid::from_u128(u128::from(seq.unsigned_abs())),
            version: 1,
            kind: "order.created.v1".into(),
            payload: "{}".into(),
            traceparent: None,
            tracestate: None,
            created_at: DateTime::UNIX_EPOCH,
        };
        Row { seq, aggregate_id: order, event: Event::Order(event) }
    }
}
