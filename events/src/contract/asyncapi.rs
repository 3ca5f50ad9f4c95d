//! The AsyncAPI 3 document: topic, key, headers, payloads and guarantees.

use serde_json::{Value, json};

use super::{samples, schema_path};
use crate::{OrderEvent, data_schema, header};

/// What a subscriber may rely on, in the words of `docs/consuming.md`.
const GUARANTEES: &str = "\
Delivery is at least once: every committed event is acknowledged by all in-sync replicas, and may be \
repeated. A repeat carries the same `ce_id` and the same bytes.

First occurrences of one order's events come in the order of `ce_orderversion` (1, 2, 3 … without gaps); \
they share a partition, because the key is the order id. Between orders there is no order.

Within v1 an optional field may be added to the data, a header to the message and an event type to the \
topic, and nothing else changes: ignore what you do not know. No event holds personal data.";

/// The document. Its schemas are files beside it.
pub(super) fn document() -> Value {
    let message = |kind: &str, what: &str, example: Value| {
        json!({
            "name": kind,
            "title": what,
            "contentType": "application/json",
            "headers": headers(kind),
            "payload": {"$ref": format!("./{}", schema_path(kind))},
            "bindings": {"kafka": {
                "key": {"type": "string", "format": "uuid", "description": "The order id."},
                "bindingVersion": "0.5.0",
            }},
            "examples": [{"name": "sample", "headers": example["headers"], "payload": example["value"]}],
        })
    };
    let [created, cancelled] = samples::all().map(|sample| sample.to_json());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Order events",
            "version": "1.0.0",
            "description": GUARANTEES,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "orderEvents": {
                "address": "orders.events.v1",
                "title": "What happens to orders",
                "description": "CloudEvents 1.0 in Kafka's binary content mode. The key is the order id, the \
                    partitioner is Java's default (murmur2).",
                "messages": {
                    "orderCreated": {"$ref": "#/components/messages/orderCreated"},
                    "orderCancelled": {"$ref": "#/components/messages/orderCancelled"},
                },
                "bindings": {"kafka": {"topic": "orders.events.v1", "bindingVersion": "0.5.0"}},
            },
        },
        "operations": {
            "publishOrderEvents": {
                "action": "send",
                "channel": {"$ref": "#/channels/orderEvents"},
                "summary": "The relay publishes every committed event.",
                "messages": [
                    {"$ref": "#/channels/orderEvents/messages/orderCreated"},
                    {"$ref": "#/channels/orderEvents/messages/orderCancelled"},
                ],
            },
        },
        "components": {
            "messages": {
                "orderCreated": message(OrderEvent::CREATED, "An order was accepted", created),
                "orderCancelled": message(OrderEvent::CANCELLED, "An order was cancelled by its client", cancelled),
            },
        },
    })
}

/// The headers of a message: every value is text.
fn headers(kind: &str) -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let fixed = |value: &str| json!({"type": "string", "const": value});
    let uuid = |what: &str| json!({"type": "string", "format": "uuid", "description": what});
    json!({
        "type": "object",
        "properties": {
            header::CONTENT_TYPE: fixed("application/json"),
            header::SPEC_VERSION: fixed(crate::SPEC_VERSION),
            header::ID: uuid("The event, a UUIDv7: the same in every repeat."),
            header::SOURCE: text("Who published it, a URI-reference; source and id together are unique."),
            header::TYPE: fixed(kind),
            header::SUBJECT: uuid("The order."),
            header::TIME: {"type": "string", "format": "date-time", "description": "When it happened, UTC, microseconds."},
            header::DATA_SCHEMA: fixed(&data_schema(kind)),
            header::PARTITION_KEY: uuid("The order, equal to the key."),
            header::ORDER_VERSION: {
                "type": "string",
                "pattern": "^[1-9][0-9]*$",
                "description": "1, 2, 3 … per order: the same again is a repeat, one left out is a gap, a lower new one is a reordering.",
            },
            header::PLAIN_ID: uuid("`ce_id` under the name that Debezium's outbox router gives it."),
            header::TRACEPARENT: text("W3C Trace Context of the request that caused the event, if it had one."),
            header::TRACESTATE: text("W3C Trace Context."),
            header::REPLAYED: {
                "type": "string",
                "const": "true",
                "description": "Only on a repeat that an operator asked for.",
            },
        },
        "required": [
            header::CONTENT_TYPE, header::SPEC_VERSION, header::ID, header::SOURCE, header::TYPE, header::SUBJECT,
            header::TIME, header::DATA_SCHEMA, header::PARTITION_KEY, header::ORDER_VERSION, header::PLAIN_ID,
        ],
    })
}
