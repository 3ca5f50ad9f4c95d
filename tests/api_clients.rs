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
        let cancel = format!("/orders/{}/cancel", uuid::Uuid::nil());
        for (method, path) in
            [(Method::POST, "/orders"), (Method::GET, "/orders"), (Method::POST, cancel.as_str())]
        {
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

#[tokio::test]
async fn a_client_that_asks_too_often_gets_429_and_the_refusal_is_not_stored() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "keys", "--rate-limit", "1,3"]).await;
    let (shop, bank) = (create_key(&database, "shop").await, create_key(&database, "bank").await);
    let first = call(&api, &shop, Method::GET, "/orders").await;
    assert_eq!(first.header("ratelimit-policy"), Some(r#""default";q=3;w=3"#));
    assert_eq!((first.status, first.header("ratelimit")), (200, Some(r#""default";r=2;t=1"#)));

    let began = Instant::now();
    let mut refused = call(&api, &shop, Method::POST, "/orders?x=1").await;
    while refused.status != 429 {
        refused.is_problem(400, "invalid_parameter");
        refused = call(&api, &shop, Method::POST, "/orders?x=1").await;
        assert!(began.elapsed() < Duration::from_secs(10), "never refused");
    }
    refused.is_problem(429, "rate_limited");
    assert_eq!(refused.json()["retryable"], true);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("ratelimit"), Some(r#""default";r=0;t=1"#));

    // Each client has its own; what needs no client has none.
    assert_eq!(call(&api, &bank, Method::GET, "/orders").await.status, 200);
    assert_eq!((api.get("/healthz").await.status, api.get("/metrics").await.status), (200, 200));
    let stranger = api.get("/orders").await;
    stranger.is_problem(401, "unauthorized");
    assert_eq!(stranger.header("ratelimit"), None);

    let mut created = call(&api, &shop, Method::POST, "/orders").await;
    while created.status == 429 {
        assert!(began.elapsed() < Duration::from_secs(20), "never let through again");
        tokio::time::sleep(Duration::from_millis(100)).await;
        created = call(&api, &shop, Method::POST, "/orders").await;
    }
    assert_eq!((created.status, created.replayed()), (201, false), "the same key is free");
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_refused_with_401_or_429_is_not_stored() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "keys", "--rate-limit", "1,2"]).await;
    let token = create_key(&database, "shop").await;
    let order = call(&api, &token, Method::POST, "/orders").await.order_id();
    let cancel = async |token: &str| {
        let authorization = format!("Bearer {token}");
        let headers: [(&str, &[u8]); 2] =
            [("authorization", authorization.as_bytes()), ("idempotency-key", b"c-1")];
        api.send(Method::POST, &format!("/orders/{order}/cancel"), &headers, "").await
    };
    cancel(&format!("ordk_{}", "0".repeat(64))).await.is_problem(401, "unauthorized");
    let began = Instant::now();
    while call(&api, &token, Method::GET, "/orders").await.status != 429 {
        assert!(began.elapsed() < Duration::from_secs(10), "never refused");
    }
    let mut answer = cancel(&token).await;
    answer.is_problem(429, "rate_limited");
    assert_eq!(rows(&database.pool().await).await, (1, 1, 1));
    while answer.status == 429 {
        assert!(began.elapsed() < Duration::from_secs(20), "never let through again");
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = cancel(&token).await;
    }
    assert_eq!((answer.status, answer.replayed()), (200, false), "the same key is free");
    api.stop().await;
}

#[tokio::test]
async fn without_a_limit_nobody_is_refused_and_no_limit_is_told() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    for _ in 0..50 {
        let answer = api.get("/orders").await;
        assert_eq!((answer.status, answer.header("ratelimit")), (200, None));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    api.stop().await;
}

const SHOP: (&str, &[u8]) = ("origin", b"https://shop.example");

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_call_and_read_what_the_answer_says() {
    let database = Database::create().await;
    let arguments = ["--auth", "keys", "--cors-origins", "https://shop.example,http://localhost:3000"];
    let api = Api::start_with(database.url(), &arguments).await;
    let preflight = [
        SHOP,
        ("access-control-request-method", b"POST".as_slice()),
        ("access-control-request-headers", b"authorization,content-type,idempotency-key"),
    ];
    let allowed = api.send(Method::OPTIONS, "/orders", &preflight, "").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(allowed.header("access-control-allow-credentials"), None);
    let list = |answer: &Answer, name: &str| -> Vec<String> {
        answer.header(name).unwrap().split(',').map(|part| part.trim().to_lowercase()).collect()
    };
    for header in
        ["authorization", "content-type", "idempotency-key", "if-none-match", "traceparent", "tracestate"]
    {
        assert!(list(&allowed, "access-control-allow-headers").contains(&header.into()), "{header}");
    }
    assert_eq!(list(&allowed, "access-control-allow-methods"), ["get", "post"]);

    // The simple request: a refusal too must be readable for the page.
    let refused = api.send(Method::GET, "/orders", &[SHOP], "").await;
    refused.is_problem(401, "unauthorized");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://shop.example"));
    for header in [
        "idempotent-replayed",
        "idempotency-key",
        "location",
        "retry-after",
        "etag",
        "ratelimit",
        "ratelimit-policy",
    ] {
        assert!(list(&refused, "access-control-expose-headers").contains(&header.into()), "{header}");
    }
    assert!(list(&refused, "vary").contains(&"origin".into()));

    for (method, headers) in
        [(Method::GET, vec![("origin", b"https://evil.example".as_slice())]), (Method::GET, vec![])]
    {
        let answer = api.send(method, "/orders", &headers, "").await;
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    api.stop().await;
}

#[tokio::test]
async fn every_page_may_call_when_the_origin_is_a_star() {
    let database = Database::create().await;
    let api = Api::start_with(database.url(), &["--auth", "off", "--cors-origins", "*"]).await;
    let answer = api.send(Method::GET, "/orders", &[SHOP], "").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    api.stop().await;
}
