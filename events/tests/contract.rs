//! The committed contract beside the types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use events::contract::{breaks, files, promises};
use serde_json::Value;

fn contract() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contract")
}

fn committed(path: &str) -> Value {
    let path = contract().join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What v1 has promised: never written anew, whatever becomes of types and schemas.
fn promised() -> BTreeMap<String, Value> {
    let folder = contract().join("v1");
    let names = std::fs::read_dir(folder).expect("contract/v1").map(|file| file.expect("a file").file_name());
    let paths = names.map(|name| format!("v1/{}", name.to_str().expect("text")));
    paths.filter(|path| path.ends_with(".json")).map(|path| (path.clone(), committed(&path))).collect()
}

#[test]
fn the_types_and_headers_break_no_consumer_of_v1() {
    let today = promises();
    assert_eq!(promised().len(), 2);
    for (path, promised) in promised() {
        let today = today.get(&path).unwrap_or_else(|| panic!("{path}: the event type is gone"));
        assert_eq!(breaks(&promised, today), Vec::<String>::new(), "contract/{path}");
    }
    // What was added since is promised too.
    for (path, schema) in files().iter().filter(|(path, _)| path.starts_with("schemas/")) {
        assert_eq!(breaks(&committed(path), schema), Vec::<String>::new(), "contract/{path}");
    }
}

#[test]
fn each_kind_of_change_that_breaks_a_consumer_of_v1_is_found_against_the_baseline() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (
            |v| drop(v["data"]["properties"].as_object_mut().map(|p| p.remove("customerId"))),
            "/customerId: removed",
        ),
        (|v| v["data"]["properties"]["amountCents"]["type"] = "string".into(), "/amountCents/type: was"),
        (|v| push(&mut v["data"]["required"], "note"), "`note` is newly required"),
        (
            |v| drop(v["headers"]["properties"].as_object_mut().map(|p| p.remove("tracestate"))),
            "/tracestate: removed",
        ),
        (|v| push(&mut v["headers"]["required"], "traceparent"), "`traceparent` is newly required"),
        (|v| drop(v["headers"]["required"].as_array_mut().map(|r| r.pop())), "is no longer required"),
    ];
    for (path, promised) in promised() {
        for (change, named) in changes {
            let mut changed = promised.clone();
            change(&mut changed);
            let found = breaks(&promised, &changed);
            assert!(found.len() == 1 && found[0].contains(named), "{path}, {named}: {found:?}");
        }
    }
}

fn push(list: &mut Value, name: &str) {
    list.as_array_mut().expect("a list").push(name.into());
}

#[test]
fn what_is_sent_today_is_what_v1_has_promised() {
    for (path, promised) in promised() {
        let kind = path.trim_start_matches("v1/").trim_end_matches(".json");
        let sample = &files()[&format!("samples/{kind}.json")];
        for (part, of_sample) in [("data", "value"), ("headers", "headers")] {
            let validator = jsonschema::draft202012::options().should_validate_formats(true);
            let validator = validator.build(&promised[part]).expect("a JSON Schema");
            validator.validate(&sample[of_sample]).unwrap_or_else(|error| panic!("{path} {part}: {error}"));
        }
        // A header that may be left out is sent all the same when there is something to say.
        let sent = sample["headers"].as_object().expect("headers");
        let traced = kind == "order.created.v1";
        let left_out =
            promised["headers"]["properties"].as_object().expect("headers").keys().filter(|name| {
                let name = name.as_str();
                !sent.contains_key(name) && name != "replayed" && (traced || !name.starts_with("trace"))
            });
        assert_eq!(
            left_out.collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "{path}: headers that are no longer sent"
        );
    }
}

#[test]
fn the_asyncapi_document_is_valid_under_the_schema_of_asyncapi() {
    // Draft 7, as the schema says of itself.
    let schema = committed("check/asyncapi-3.0.0.schema.json");
    let validator = jsonschema::draft7::new(&schema).expect("a JSON Schema");
    let document = committed("asyncapi.json");
    validator.validate(&document).unwrap_or_else(|error| panic!("{}: {error}", error.instance_path()));

    type Change = fn(&mut Value);
    let changes: [Change; 3] = [
        |v| v["operations"]["publishOrderEvents"]["action"] = "publish".into(),
        |v| drop(v["info"].as_object_mut().map(|info| info.remove("title"))),
        |v| v["channels"]["orderEvents"]["adress"] = "orders".into(),
    ];
    for change in changes {
        let mut wrong = document.clone();
        change(&mut wrong);
        assert!(!validator.is_valid(&wrong), "{wrong:#}");
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
