//! One event of each type as it lies on the topic, with fixed values: what the writer, the relay and
//! the consumers are tested against.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{Attributes, EventId, OrderCancelled, OrderCreated, OrderEvent, OrderId, OrderStatus};

/// An event with its attributes.
pub(super) struct Sample {
    attributes: Attributes,
    event: OrderEvent,
}

impl Sample {
    pub(super) fn kind(&self) -> &str {
        &self.attributes.kind
    }

    /// Key, headers and value of the message.
    pub(super) fn to_json(&self) -> Value {
        let headers: Map<String, Value> =
            self.attributes.headers().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let value = match &self.event {
            OrderEvent::Created(data) => json!(data),
            OrderEvent::Cancelled(data) => json!(data),
        };
        json!({"key": self.attributes.subject, "headers": headers, "value": value})
    }

    fn new(
        event: OrderEvent,
        id: u128,
        version: i32,
        time: DateTime<Utc>,
        traceparent: Option<&str>,
    ) -> Self {
        let attributes = Attributes {
            id: EventId::from(Uuid::from_u128(id)),
            source: "/orders".to_owned(),
            kind: event.kind().to_owned(),
            subject: event.order_id().as_uuid(),
            time,
            version,
            traceparent: traceparent.map(str::to_owned),
            tracestate: traceparent.map(|_| "vendor=1".to_owned()),
        };
        Self { attributes, event }
    }
}

/// An order that is created with the trace of its request, and cancelled a minute later without one.
pub(super) fn all() -> [Sample; 2] {
    let order_id = OrderId::from(Uuid::from_u128(0x0198_a2a0_0000_7000_8000_0000_0000_0001));
    let created_at = DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap_or_default();
    let cancelled_at = created_at + chrono::TimeDelta::minutes(1);
    let (customer_id, amount_cents, currency) = (42, 2599, "USD".to_owned());
    let created = OrderCreated {
        order_id,
        customer_id,
        amount_cents,
        currency: currency.clone(),
        status: OrderStatus::Created,
        created_at,
    };
    let cancelled = OrderCancelled {
        order_id,
        customer_id,
        amount_cents,
        currency,
        status: OrderStatus::Cancelled,
        cancelled_at,
    };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    [
        Sample::new(
            OrderEvent::Created(created),
            0x0198_a2a0_0000_7000_8000_0000_0000_0011,
            1,
            created_at,
            Some(trace),
        ),
        Sample::new(
            OrderEvent::Cancelled(cancelled),
            0x0198_a2a0_0000_7000_8000_0000_0000_0012,
            2,
            cancelled_at,
            None,
        ),
    ]
}
