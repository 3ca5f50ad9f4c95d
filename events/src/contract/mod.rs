//! What is published of the contract, made from the types: the files under `contract/`.
//!
//! `cargo run --package events --features contract --example contract` writes them, and refuses to
//! when an event would no longer be what a consumer of v1 was promised.

mod asyncapi;
mod compatible;
mod samples;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

pub use self::compatible::breaks;
use crate::{OrderCancelled, OrderCreated, OrderEvent, data_schema};

/// Every file by its path below `contract/`, with its content.
#[must_use]
pub fn files() -> BTreeMap<String, Value> {
    let mut files = BTreeMap::from([("asyncapi.json".to_owned(), asyncapi::document())]);
    for kind in [OrderEvent::CREATED, OrderEvent::CANCELLED] {
        files.insert(schema_path(kind), schema(kind));
    }
    for sample in samples::all() {
        files.insert(format!("samples/{}.json", sample.kind()), sample.to_json());
    }
    files
}

/// What a consumer is promised of each event type, by the path below `contract/` of what v1 has promised:
/// `data` and `headers` of its messages, as JSON Schemas.
#[must_use]
pub fn promises() -> BTreeMap<String, Value> {
    let messages = &asyncapi::document()["components"]["messages"];
    let messages = messages.as_object().into_iter().flat_map(|messages| messages.values());
    messages
        .filter_map(|message| Some((message["name"].as_str()?, &message["headers"])))
        .map(|(kind, headers)| (format!("v1/{kind}.json"), json!({"data": schema(kind), "headers": headers})))
        .collect()
}

/// Where the schema of an event type lies below `contract/`.
#[must_use]
pub fn schema_path(kind: &str) -> String {
    format!("schemas/{kind}.json")
}

/// JSON Schema 2020-12 of an event's data.
fn schema(kind: &str) -> Value {
    match kind {
        OrderEvent::CREATED => schema_of::<OrderCreated>(kind),
        _ => schema_of::<OrderCancelled>(kind),
    }
}

fn schema_of<T: JsonSchema>(kind: &str) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
    schema["$id"] = json!(data_schema(kind));
    schema["title"] = json!(kind);
    schema
}
