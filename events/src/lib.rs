//! The event contract between the pipeline and everybody who subscribes to it.
//!
//! Owns the order event types, their JSON, the CloudEvents 1.0 attributes that travel as Kafka
//! headers, and the inbox that makes a consumer's effect happen once. Knows nothing of how an
//! event came to be: the API writes these types, the relay moves them, consumers read them.
//!
//! Features: `kafka` (headers to and from Kafka messages), `inbox` (the consumer loop), `otel` (its
//! spans), `contract` (the published description of it all, as files).

mod cloudevents;
#[cfg(feature = "contract")]
pub mod contract;
mod ids;
#[cfg(feature = "inbox")]
pub mod inbox;
#[cfg(feature = "kafka")]
pub mod kafka;
mod order;

pub use cloudevents::{Attributes, MalformedEvent, SPEC_VERSION, data_schema, header};
pub use ids::{EventId, OrderId};
pub use iso_currency::Currency;
pub use order::{AGGREGATE_ORDER, OrderCancelled, OrderCreated, OrderEvent, OrderStatus, UnknownEvent};

/// The PostgreSQL channel that the API rings after a commit and the relay listens on. It only
/// saves waiting: the relay polls the outbox anyway.
pub const OUTBOX_CHANNEL: &str = "outbox";
