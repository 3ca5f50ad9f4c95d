//! Clients and their keys.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::Output;
use std::time::Duration;

use demo::testing::Database;
use reqwest::Method;
use sqlx::Executor;
use support::{Answer, Api, ORDER, rows};
use tokio::time::Instant;

async fn keys(database: &Database, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_orders"));
    command.arg("keys").args(arguments).env("DATABASE_URL", database.url());
    command.output().await.unwrap()
}

async fn create_key(database: &Database, client: &str) -> String {
    let output = keys(database, &["create", "--client", client]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let token = String::from_utf8(output.stdout).unwrap();
    assert!(token.starts_with("ordk_") && token.lines().count() == 1, "the token alone");
    assert!(!String::from_utf8_lossy(&output.stderr).contains(token.trim()));
    token.trim().to_owned()
}

async fn call(api: &Api, token: &str, method: Method, path: &str) -> Answer {
    let authorization = format!("Bearer {token}");
    let headers: [(&str, &[u8]); 3] = [
        ("authorization", authorization.as_bytes()),
        ("idempotency-key", b"k-1"),
        ("content-type", b"application/json"),
    ];
    let body = if method == Method::POST { ORDER } else { "" };
    api.send(method, path, &headers, body).await
}

#[tokio::test]
async fn without_a_valid_key_nothing_is_told_and_nothing_is_written() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "keys"]).await;
    let missing = api.create("k-1", ORDER).await;
    missing.is_problem(401, "unauthorized");
    assert_eq!(missing.header("www-authenticate"), Some(r#"Bearer realm="orders""#));
    let unknown = format!("ordk_{}", "0".repeat(64));
    for token in [unknown.as_str(), "", "ordk_", "nonsense"] {
        for (method, path) in [(Method::POST, "/orders"), (Method::GET, "/orders")] {
            let answer = call(&api, token, method, path).await;
            answer.is_problem(401, "unauthorized");
            assert!(answer.header("www-authenticate").unwrap().contains("invalid_token"));
        }
    }
    assert_eq!((api.get("/healthz").await.status, api.get("/readyz").await.status), (200, 200));
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn orders_and_idempotency_keys_belong_to_their_client() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "keys"]).await;
    let (shop, bank) = (create_key(&database, "shop").await, create_key(&database, "bank").await);
    let second = create_key(&database, "shop").await;
    let order = call(&api, &shop, Method::POST, "/orders").await;
    assert_eq!((order.status, order.replayed()), (201, false));
    let path = format!("/orders/{}", order.order_id());
    call(&api, &bank, Method::GET, &path).await.is_problem(404, "order_not_found");
    assert_eq!(call(&api, &second, Method::GET, &path).await.status, 200, "another key of the same client");
    let other = call(&api, &bank, Method::POST, "/orders").await;
    assert_eq!((other.status, other.replayed()), (201, false));
    assert_ne!(other.order_id(), order.order_id());
    assert_eq!(rows(&database.pool().await).await, (2, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_revoked_key_stops_within_five_seconds_though_it_costs_no_query() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "keys"]).await;
    let token = create_key(&database, "shop").await;
    assert_eq!(call(&api, &token, Method::POST, "/orders").await.status, 201);

    // The key is remembered: a query for it would fail now.
    let pool = database.pool().await;
    pool.execute("alter table api_keys rename to hidden").await.unwrap();
    assert_eq!(call(&api, &token, Method::GET, "/orders").await.status, 200);
    pool.execute("alter table hidden rename to api_keys").await.unwrap();

    let list = keys(&database, &["list", "--json"]).await;
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list[0]["clientId"], "shop");
    assert!(list[0]["lastUsedAt"].is_string() && list[0]["revokedAt"].is_null());
    assert!(!list.to_string().contains(&token));

    let revoked = Instant::now();
    let id = list[0]["keyId"].as_str().unwrap();
    assert_eq!(keys(&database, &["revoke", id]).await.status.code(), Some(0));
    while call(&api, &token, Method::GET, "/orders").await.status != 401 {
        assert!(revoked.elapsed() < Duration::from_secs(6), "still in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(revoked.elapsed() < Duration::from_secs(5));
    let none = keys(&database, &["revoke", &uuid::Uuid::nil().to_string()]).await;
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(keys(&database, &["create", "--client", "no spaces"]).await.status.code(), Some(2));
    api.stop().await;
}
