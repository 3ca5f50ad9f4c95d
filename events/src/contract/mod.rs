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
