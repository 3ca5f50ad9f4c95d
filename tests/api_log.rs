//! What the log says, and what it must never say.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::Stdio;
use std::time::Duration;

use demo::testing::Database;
use reqwest::Client;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

#[tokio::test]
async fn the_log_has_no_keys_no_addresses_no_bodies_and_no_secrets() {
    let database = Database::create().await;
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let password = database.url().replacen("postgres@", "postgres:hunter2-secret@", 1);
    assert!(password.contains("hunter2-secret"), "the server trusts any password: {password}");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_orders"))
        .args(["serve", "--auth", "off", "--listen", &address.to_string()])
        .envs([("DATABASE_URL", password.as_str()), ("RUST_LOG", "debug")])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        log.push(line);
        if log.last().unwrap().contains("listening") {
            break;
        }
    }
    let client = Client::new();
    let url = format!("http://{address}/orders");
    let post = async |key: &str, body: &str| {
        let request =
            client.post(&url).header("idempotency-key", key).header("content-type", "application/json");
        let authorised = request.header("authorization", "Bearer ordk_secret-token").body(body.to_owned());
        authorised.timeout(Duration::from_secs(20)).send().await.unwrap().status().as_u16()
    };
    let order = |amount: u64| {
        format!(r#"{{"customerId":77001,"amountCents":{amount},"customerEmail":"ada.private@example.com"}}"#)
    };
    assert_eq!(post("key-private-1", &order(88_002)).await, 201);
    assert_eq!(post("key-private-1", &order(88_002)).await, 201);
    assert_eq!(post("key-private-1", &order(88_003)).await, 409);
    assert_eq!(post("key-private-2", r#"{"customerEmail":"ada.private@"}"#).await, 422);
    // The database refuses: its error message repeats the row.
    let pool = database.pool().await;
    sqlx::raw_sql("alter table orders add constraint trap check (amount_cents <> 88004)")
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(post("key-private-3", &order(88_004)).await, 500);
    sqlx::raw_sql("alter table orders drop constraint trap; alter table orders rename to gone")
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().status().as_u16(), 500);

    let pid = child.id().unwrap().to_string();
    assert!(tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    while let Some(line) = lines.next_line().await.unwrap() {
        log.push(line);
    }
    let text = log.join("\n");
    for secret in ["key-private", "ada.private", "77001", "88002", "88004", "hunter2", "ordk_secret"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let failures: Vec<_> =
        log.iter().filter(|line| line.contains("ERROR") || line.contains(" WARN ")).collect();
    let of = |words: &str| failures.iter().filter(|line| line.contains(words)).count();
    assert_eq!(
        (of("an order could not be written"), of("a read failed"), failures.len()),
        (1, 1, 3),
        "{failures:#?}"
    );
}
