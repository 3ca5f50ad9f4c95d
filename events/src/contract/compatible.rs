//! Whether a schema still keeps what an earlier one promised to consumers. Within v1 an optional
//! field may be added, and nothing else: the topic holds events of every age, so what a field is must
//! be true of the old and of the new ones.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords that describe and promise nothing.
const ANNOTATIONS: [&str; 4] = ["title", "description", "examples", "$comment"];

/// Each way in which `current` breaks a consumer of `promised`, with a JSON pointer to it.
#[must_use]
pub fn breaks(promised: &Value, current: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", promised, current, &mut found);
    found
}

fn compare(at: &str, promised: &Value, current: &Value, found: &mut Vec<String>) {
    let (Value::Object(old), Value::Object(new)) = (promised, current) else {
        if promised != current {
            found.push(format!("{at}: was {promised}, is {current}"));
        }
        return;
    };
    let keywords: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for keyword in keywords {
        let here = format!("{at}/{keyword}");
        match (keyword.as_str(), old.get(keyword), new.get(keyword)) {
            (annotation, ..) if ANNOTATIONS.contains(&annotation) => {}
            ("required", before, now) => required(&here, names(before), names(now), found),
            ("properties" | "$defs", Some(Value::Object(before)), Some(Value::Object(now))) => {
                members(&here, before, now, found);
            }
            (_, Some(before), Some(now)) => compare(&here, before, now, found),
            (_, Some(before), None) => found.push(format!("{here}: was {before}, is gone")),
            (_, None, now) => found.push(format!("{here}: is new: {}", now.unwrap_or(&Value::Null))),
        }
    }
}

/// Members may be added; those that were there stay what they were.
fn members(at: &str, old: &Map<String, Value>, new: &Map<String, Value>, found: &mut Vec<String>) {
    for (name, before) in old {
        match new.get(name) {
            Some(now) => compare(&format!("{at}/{name}"), before, now, found),
            None => found.push(format!("{at}/{name}: removed")),
        }
    }
}

fn required(at: &str, old: BTreeSet<&str>, new: BTreeSet<&str>, found: &mut Vec<String>) {
    found.extend(
        new.difference(&old)
            .map(|name| format!("{at}: `{name}` is newly required, and earlier events lack it")),
    );
    found.extend(
        old.difference(&new)
            .map(|name| format!("{at}: `{name}` is no longer required, and consumers read it")),
    );
}

fn names(required: Option<&Value>) -> BTreeSet<&str> {
    required.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn promised() -> Value {
        json!({
            "$id": "urn:orders:schema:order.created.v1",
            "description": "before",
            "type": "object",
            "properties": {
                "orderId": {"type": "string", "format": "uuid", "description": "The order."},
                "amountCents": {"type": "integer", "minimum": 1},
                "status": {"enum": ["created", "cancelled"]}
            },
            "required": ["orderId", "amountCents"]
        })
    }

    #[test]
    fn an_optional_field_and_other_words_break_nobody() {
        let mut current = promised();
        current["properties"]["note"] = json!({"type": "string"});
        current["properties"]["orderId"]["description"] = json!("Other words.");
        current["description"] = json!("after");
        current["required"] = json!(["amountCents", "orderId"]);
        assert_eq!(breaks(&promised(), &current), Vec::<String>::new());
    }

    #[test]
    fn everything_else_breaks_a_consumer_and_is_named() {
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 10] = [
            (
                |s| drop(s["properties"].as_object_mut().map(|p| p.remove("status"))),
                "/properties/status: removed",
            ),
            (
                |s| s["properties"]["amountCents"]["type"] = json!("string"),
                "/properties/amountCents/type: was",
            ),
            (
                |s| s["properties"]["amountCents"]["type"] = json!(["integer", "null"]),
                "/properties/amountCents/type",
            ),
            (
                |s| s["properties"]["amountCents"]["minimum"] = json!(0),
                "/properties/amountCents/minimum: was 1",
            ),
            (|s| s["properties"]["orderId"]["maxLength"] = json!(9), "/properties/orderId/maxLength: is new"),
            (
                |s| drop(s["properties"]["orderId"].as_object_mut().map(|p| p.remove("format"))),
                "/format: was",
            ),
            (
                |s| s["properties"]["status"]["enum"] = json!(["created", "cancelled", "paid"]),
                "/properties/status/enum",
            ),
            (|s| s["required"] = json!(["orderId", "amountCents", "status"]), "`status` is newly required"),
            (|s| s["required"] = json!(["orderId"]), "`amountCents` is no longer required"),
            (|s| s["additionalProperties"] = json!(false), "/additionalProperties: is new"),
        ];
        for (change, named) in changes {
            let mut current = promised();
            change(&mut current);
            let found = breaks(&promised(), &current);
            assert!(found.len() == 1 && found[0].contains(named), "{named}: {found:?}");
        }
    }
}
