//! The committed contract beside the types.

use std::path::PathBuf;

use events::contract::{breaks, files};
use serde_json::Value;

fn committed(path: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contract").join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_types_break_no_consumer_of_v1() {
    let files = files();
    let schemas: Vec<_> = files.iter().filter(|(path, _)| path.starts_with("schemas/")).collect();
    assert_eq!(schemas.len(), 2);
    for (path, schema) in schemas {
        assert_eq!(breaks(&committed(path), schema), Vec::<String>::new(), "contract/{path}");
    }
}

#[test]
fn the_committed_contract_is_what_the_types_say() {
    for (path, content) in files() {
        assert_eq!(committed(&path), content, "contract/{path} is stale: `make contract` writes it anew");
    }
}

#[test]
fn a_sample_is_valid_under_its_schema_and_its_headers_under_asyncapi() {
    let files = files();
    let asyncapi = &files["asyncapi.json"];
    for (message, kind) in [("orderCreated", "order.created.v1"), ("orderCancelled", "order.cancelled.v1")] {
        let sample = &files[&format!("samples/{kind}.json")];
        let validator =
            |schema| jsonschema::draft202012::options().should_validate_formats(true).build(schema);
        let data = validator(&files[&format!("schemas/{kind}.json")]).expect("a JSON Schema");
        let headers =
            validator(&asyncapi["components"]["messages"][message]["headers"]).expect("a JSON Schema");
        data.validate(&sample["value"]).expect("the data is valid");
        headers.validate(&sample["headers"]).expect("the headers are valid");

        let mut other = sample["value"].clone();
        other["amountCents"] = "2599".into();
        assert!(data.validate(&other).is_err(), "a string is no amount");
        let mut other = sample["headers"].clone();
        other["ce_orderversion"] = "0".into();
        assert!(headers.validate(&other).is_err(), "versions start at 1");
    }
}
