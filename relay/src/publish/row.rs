//! One event as the outbox holds it.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What a row costs in memory beside its payload, roughly.
pub(crate) const OVERHEAD: usize = 512;

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number; within one order it follows commit order.
    pub seq: i64,
    /// The event's id, the same in every repeat.
    pub event_id: Uuid,
    /// The order: key on Kafka, and what the gate keeps in order.
    pub aggregate_id: Uuid,
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

impl Row {
    /// What the row counts against the bound on memory.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() + OVERHEAD
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn row(seq: i64, order: Uuid) -> Row {
        Row {
            seq,
            event_id: Uuid::from_u128(u128::from(seq.unsigned_abs())),
            aggregate_id: order,
            version: 1,
            kind: "order.created.v1".into(),
            payload: "{}".into(),
            traceparent: None,
            tracestate: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }
}
