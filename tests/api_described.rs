//! What the API answers, held against its own description.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use demo::testing::Database;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Answer, Api, ORDER};

/// Asserts that the description knows this answer: its status, its headers and its body.
#[track_caller]
fn is_described(document: &Value, method: &str, path: &str, answer: &Answer) {
    let response = &document["paths"][path][method]["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{method} {path}: {} is not described", answer.status);
    for name in answer
        .headers
        .keys()
        .filter(|name| !["content-type", "content-length", "date", "allow"].contains(&name.as_str()))
    {
        let known =
            response["headers"].as_object().unwrap().keys().any(|k| k.eq_ignore_ascii_case(name.as_str()));
        assert!(known, "{method} {path} {}: {name} is not described", answer.status);
    }
    let Some(media) = answer.header("content-type") else { return };
    let schema = &response["content"][media]["schema"];
    let whole = json!({"allOf": [schema], "components": document["components"]});
    let schema = jsonschema::options().should_validate_formats(true).build(&whole).unwrap();
    let error = schema.validate(&answer.json()).err().map(|error| error.to_string());
    assert!(schema_is_ref(&whole) && error.is_none(), "{method} {path} {}: {error:?}", answer.status);
}

fn schema_is_ref(whole: &Value) -> bool {
    whole["allOf"][0]["$ref"].is_string()
}

#[tokio::test]
async fn every_answer_is_as_the_description_says() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "off", "--rate-limit", "1,22"]).await;
    let document = api.get("/openapi.json").await.json();
    let described = |method: &str, path: &str, answer: &Answer| is_described(&document, method, path, answer);
    let json_type: (&str, &[u8]) = ("content-type", b"application/json");
    let key: (&str, &[u8]) = ("idempotency-key", b"k-9");

    let order = api.create("k-1", ORDER).await;
    described("post", "/orders", &order);
    let replay = api.create("k-1", ORDER).await;
    assert!(replay.replayed());
    described("post", "/orders", &replay);
    let other =
        api.create("k-1", r#"{"customerId": 1, "amountCents": 1, "customerEmail": "ada@example.com"}"#).await;
    described("post", "/orders", other.is_problem(409, "idempotency_key_reused"));
    described("post", "/orders", &api.create("k-2", "{}").await);
    described("post", "/orders", &api.create("k-2", "{").await);
    described("post", "/orders", &api.create("a b", ORDER).await);
    let send = async |headers: &[(&str, &[u8])], body: String| {
        api.send(Method::POST, "/orders", headers, body).await
    };
    described("post", "/orders", &send(&[json_type], ORDER.to_owned()).await);
    described(
        "post",
        "/orders",
        send(&[key], ORDER.to_owned()).await.is_problem(415, "unsupported_media_type"),
    );
    described("post", "/orders", &send(&[json_type, key], " ".repeat(70_000)).await);

    let path = format!("/orders/{}", order.order_id());
    let shown = api.get(&path).await;
    described("get", "/orders/{orderId}", &shown);
    let tag = shown.header("etag").unwrap().as_bytes();
    let unchanged = api.send(Method::GET, &path, &[("if-none-match", tag)], "").await;
    assert_eq!(unchanged.status, 304);
    described("get", "/orders/{orderId}", &unchanged);
    described("get", "/orders/{orderId}", &api.get("/orders/nonsense").await);
    described("post", "/orders/{orderId}/cancel", &api.cancel(&order.order_id(), "c-1").await);
    let refused = api.cancel(&order.order_id(), "c-2").await;
    described("post", "/orders/{orderId}/cancel", refused.is_problem(409, "order_not_cancellable"));
    described("post", "/orders/{orderId}/cancel", &api.cancel(&order.order_id(), "c-2").await);
    described("get", "/orders/{orderId}/events", &api.get(&format!("{path}/events")).await);
    described("get", "/orders", &api.get("/orders?limit=1").await);
    described("get", "/orders", api.get("/orders?limit=x").await.is_problem(400, "invalid_parameter"));
    let mut last = api.get("/orders").await;
    while last.status == 200 {
        last = api.get("/orders").await;
    }
    described("get", "/orders", last.is_problem(429, "rate_limited"));
    api.stop().await;
}

#[tokio::test]
async fn an_answer_without_a_key_or_a_database_is_described_too() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let document = api.get("/openapi.json").await.json();
    api.stop().await;
    let api = Api::start_with("postgres://127.0.0.1:1/none", &["--auth", "off"]).await;
    is_described(
        &document,
        "post",
        "/orders",
        api.create("k-1", ORDER).await.is_problem(503, "database_unavailable"),
    );
    api.stop().await;
    let api = Api::start_with(database.url(), &["--auth", "keys"]).await;
    is_described(
        &document,
        "post",
        "/orders",
        api.create("k-1", ORDER).await.is_problem(401, "unauthorized"),
    );
    is_described(&document, "get", "/orders", api.get("/orders").await.is_problem(401, "unauthorized"));
    api.stop().await;
}

#[tokio::test]
async fn the_page_and_the_printed_description_are_there() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let page = api.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    let served = api.get("/openapi.json").await.json();
    let command =
        tokio::process::Command::new(env!("CARGO_BIN_EXE_orders")).arg("openapi").output().await.unwrap();
    assert_eq!(command.status.code(), Some(0));
    assert_eq!(serde_json::from_slice::<Value>(&command.stdout).unwrap(), served);
    api.stop().await;
}
