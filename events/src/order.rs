//! The order events and their JSON. Within v1 a change may only add an optional field.
//!
//! No personal data: a notification reads the address from PostgreSQL, events never hold it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::OrderId;

/// `aggregate_type` of every order event.
pub const AGGREGATE_ORDER: &str = "order";

/// What an order is at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Accepted and in force.
    Created,
    /// Cancelled by its client; final.
    Cancelled,
}

impl OrderStatus {
    /// The word used in JSON and in the `orders_status_known` constraint.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Data of `order.created.v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "contract", derive(schemars::JsonSchema))]
pub struct OrderCreated {
    /// The order; equals `ce_subject` and the Kafka key.
    pub order_id: OrderId,
    /// The customer's number in the client's system.
    #[cfg_attr(feature = "contract", schemars(range(min = 1)))]
    pub customer_id: i64,
    /// Integer of the currency's minor unit.
    #[cfg_attr(feature = "contract", schemars(range(min = 1)))]
    pub amount_cents: i64,
    /// ISO 4217 code, three upper-case letters.
    #[cfg_attr(feature = "contract", schemars(regex(pattern = "^[A-Z]{3}$")))]
    pub currency: String,
    /// Always `created`.
    #[cfg_attr(feature = "contract", schemars(with = "String", extend("const" = "created")))]
    pub status: OrderStatus,
    /// When the order was accepted (RFC 3339, UTC).
    pub created_at: DateTime<Utc>,
}

/// Data of `order.cancelled.v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "contract", derive(schemars::JsonSchema))]
pub struct OrderCancelled {
    /// The order; equals `ce_subject` and the Kafka key.
    pub order_id: OrderId,
    /// The customer's number in the client's system.
    #[cfg_attr(feature = "contract", schemars(range(min = 1)))]
    pub customer_id: i64,
    /// Integer of the currency's minor unit.
    #[cfg_attr(feature = "contract", schemars(range(min = 1)))]
    pub amount_cents: i64,
    /// ISO 4217 code, three upper-case letters.
    #[cfg_attr(feature = "contract", schemars(regex(pattern = "^[A-Z]{3}$")))]
    pub currency: String,
    /// Always `cancelled`.
    #[cfg_attr(feature = "contract", schemars(with = "String", extend("const" = "cancelled")))]
    pub status: OrderStatus,
    /// When the order was cancelled (RFC 3339, UTC).
    pub cancelled_at: DateTime<Utc>,
}

/// Everything that can happen to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderEvent {
    /// `order.created.v1`, always version 1.
    Created(OrderCreated),
    /// `order.cancelled.v1`.
    Cancelled(OrderCancelled),
}

/// The event is none of ours, or its data does not have the shape of its type.
#[derive(Debug, thiserror::Error)]
pub enum UnknownEvent {
    /// A type that this version of the contract does not know; consumers skip it.
    #[error("event type `{0}` is not part of this contract")]
    Type(String),
    /// The data is not what the type says; nothing can be done with it.
    #[error("the data of a `{kind}` event is malformed")]
    Data {
        /// The event type.
        kind: String,
        /// What is wrong with the JSON.
        #[source]
        source: serde_json::Error,
    },
}

impl OrderEvent {
    /// Type of the first event of an order.
    pub const CREATED: &'static str = "order.created.v1";
    /// Type of the event of a cancelled order.
    pub const CANCELLED: &'static str = "order.cancelled.v1";

    /// The CloudEvents type.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Created(_) => Self::CREATED,
            Self::Cancelled(_) => Self::CANCELLED,
        }
    }

    /// The order that the event is about.
    #[must_use]
    pub fn order_id(&self) -> OrderId {
        match self {
            Self::Created(data) => data.order_id,
            Self::Cancelled(data) => data.order_id,
        }
    }

    /// The event's data as JSON, the value of the Kafka message.
    ///
    /// # Errors
    /// Never for the types of this crate; the signature is `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        match self {
            Self::Created(data) => serde_json::to_string(data),
            Self::Cancelled(data) => serde_json::to_string(data),
        }
    }

    /// Reads an event back from its CloudEvents type and its data.
    ///
    /// # Errors
    /// [`UnknownEvent`] when the type is not ours or the data does not fit it. Unknown fields are
    /// ignored: within v1 fields may be added.
    pub fn from_json(kind: &str, data: &[u8]) -> Result<Self, UnknownEvent> {
        let malformed = |source| UnknownEvent::Data { kind: kind.to_owned(), source };
        match kind {
            Self::CREATED => serde_json::from_slice(data).map(Self::Created).map_err(malformed),
            Self::CANCELLED => serde_json::from_slice(data).map(Self::Cancelled).map_err(malformed),
            other => Err(UnknownEvent::Type(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_way_through_json() {
        let event = OrderEvent::Created(OrderCreated {
            order_id: OrderId::new(),
            customer_id: 42,
            amount_cents: 2599,
            currency: "USD".into(),
            status: OrderStatus::Created,
            created_at: Utc::now(),
        });
        let json = event.to_json().expect("serialises");
        assert_eq!(OrderEvent::from_json(OrderEvent::CREATED, json.as_bytes()).expect("reads back"), event);
    }

    #[test]
    fn a_foreign_type_is_told_from_malformed_data() {
        assert!(matches!(OrderEvent::from_json("invoice.paid.v1", b"{}"), Err(UnknownEvent::Type(_))));
        assert!(matches!(OrderEvent::from_json(OrderEvent::CREATED, b"{}"), Err(UnknownEvent::Data { .. })));
    }

    #[test]
    fn a_field_added_within_v1_is_ignored() {
        let json = br#"{"orderId":"0198a2a0-0000-7000-8000-000000000001","customerId":1,"amountCents":1,
            "currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00Z","later":true}"#;
        assert!(OrderEvent::from_json(OrderEvent::CREATED, json).is_ok());
    }
}
