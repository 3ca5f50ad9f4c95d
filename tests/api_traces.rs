//! Traces, as a collector sees them.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use demo::programs::Server;
use demo::testing::{Database, eventually};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Takes OTLP over HTTP.
async fn collector(tasks: &mut JoinSet<()>, exports: UnboundedSender<Bytes>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let take = async |State(exports): State<UnboundedSender<Bytes>>, body: Bytes| {
        let _ = exports.send(body);
    };
    let app = Router::new().route("/v1/traces", post(take)).with_state(exports);
    tasks.spawn(async move { axum::serve(listener, app).await.expect("served") });
    format!("http://{address}")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

async fn place(api: &Server, key: &str) {
    let answer = reqwest::Client::new()
        .post(format!("{}/orders", api.url()))
        .header("idempotency-key", key)
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .json(&serde_json::json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"}))
        .send()
        .await
        .expect("answered");
    assert_eq!(answer.status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_from_the_caller_through_request_and_batch_to_the_event() {
    let (sender, mut received) = unbounded_channel();
    let mut tasks = JoinSet::new();
    let endpoint = collector(&mut tasks, sender).await;
    let database = Database::create().await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut api = Server::orders(database.url(), &settings).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    place(&api, "traced-key").await;
    api.terminate().await.expect("a soft stop exports what is left");

    let mut exported = Vec::new();
    let trace = u128::from_str_radix(TRACE, 16).expect("hex").to_be_bytes();
    let wanted: [&[u8]; 4] = [b"orders", b"POST /orders", b"batch", &trace];
    eventually("the spans to be exported", SOON, async || {
        while let Ok(export) = received.try_recv() {
            exported.extend(export);
        }
        wanted.iter().all(|part| contains(&exported, part)).then_some(())
    })
    .await;
    for secret in ["traced-key", "ada@example.com", "2599"] {
        assert!(!contains(&exported, secret.as_bytes()), "{secret} was exported");
    }

    let handed_on: String = sqlx::query_scalar("select headers ->> 'traceparent' from outbox")
        .fetch_one(&database.pool().await)
        .await
        .expect("one event");
    let parts: Vec<&str> = handed_on.split('-').collect();
    assert_eq!(parts[1], TRACE);
    assert_ne!(parts[2], PARENT, "the event is a child of the request's span");
    let span = u64::from_str_radix(parts[2], 16).expect("hex").to_be_bytes();
    assert!(contains(&exported, &span), "and that span was exported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_order() {
    let database = Database::create().await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let mut api = Server::orders(database.url(), &settings).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    for n in 0..20 {
        place(&api, &format!("key-{n}")).await;
    }
    api.terminate().await.expect("ends with exit code 0");
    let orders: i64 = sqlx::query_scalar("select count(*) from orders")
        .fetch_one(&database.pool().await)
        .await
        .expect("counted");
    assert_eq!(orders, 20);
}
