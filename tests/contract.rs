//! The published contract beside what the programs do: the writer's events, the relay's messages,
//! and what the CloudEvents SDKs of other languages read from them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use demo::topic::Message;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(60);
const KINDS: [&str; 2] = ["order.created.v1", "order.cancelled.v1"];

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn contract(path: &str) -> Value {
    let path = root("contract").join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

fn samples() -> Vec<Value> {
    KINDS.iter().map(|kind| contract(&format!("samples/{kind}.json"))).collect()
}

/// The committed order and events of the samples, as the API would have left them.
async fn commit(pool: &PgPool, samples: &[Value]) {
    let order: Uuid = samples[0]["key"].as_str().unwrap().parse().unwrap();
    sqlx::query(
        "insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email, status,
           version, created_at, cancelled_at)
         values ($1, 'shop', 42, 2599, 'USD', 'ada@example.com', 'cancelled', 2, now(), now())",
    )
    .bind(order)
    .execute(pool)
    .await
    .unwrap();
    for sample in samples {
        let header = |name: &str| sample["headers"][name].as_str();
        let trace: BTreeMap<_, _> = ["traceparent", "tracestate"]
            .into_iter()
            .filter_map(|name| Some((name, header(name)?)))
            .collect();
        sqlx::query(
            "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at)
             values ($1, 'order', $2, $3, $4, $5::json, $6, $7)",
        )
        .bind(header("ce_id").unwrap().parse::<Uuid>().unwrap())
        .bind(order)
        .bind(header("ce_orderversion").unwrap().parse::<i32>().unwrap())
        .bind(header("ce_type").unwrap())
        .bind(sample["value"].to_string())
        .bind(json!(trace))
        .bind(header("ce_time").unwrap().parse::<DateTime<Utc>>().unwrap())
        .execute(pool)
        .await
        .unwrap();
    }
}

async fn relay(stage: &str, database: &Database, topic: &Topic) -> Server {
    let group = format!("notify-{}", topic.name());
    let settings = [("NOTIFY_GROUP", group.as_str())];
    let mut relay = Server::relay_stages(
        &[stage],
        database.url(),
        topic.brokers(),
        topic.name(),
        "smtp://127.0.0.1:1",
        &settings,
    )
    .expect("the relay starts");
    relay.ready(SOON).await.expect("ready");
    relay
}

/// The samples as the relay publishes them from committed rows.
async fn published(topic: &Topic) -> (Database, Vec<Message>) {
    let database = Database::create().await;
    commit(&database.pool().await, &samples()).await;
    let _relay = relay("publish", &database, topic).await;
    let messages = eventually("the samples to be published", SOON, async || {
        let messages = topic.read().await;
        (messages.len() == KINDS.len()).then_some(messages)
    })
    .await;
    (database, messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_publishes_the_samples_exactly_and_notify_understands_them() {
    let topic = Topic::create(1).await;
    let (database, messages) = published(&topic).await;
    for (message, sample) in messages.iter().zip(samples()) {
        let headers: serde_json::Map<String, Value> = message
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), String::from_utf8(value.clone()).unwrap().into()))
            .collect();
        assert_eq!(headers.len(), message.headers.len(), "no header twice");
        assert_eq!(Value::from(headers), sample["headers"]);
        assert_eq!(message.key.as_deref(), sample["key"].as_str().map(str::as_bytes));
        let value: Value = serde_json::from_slice(message.value.as_deref().unwrap()).unwrap();
        assert_eq!(value, sample["value"]);
    }

    let _relay = relay("notify", &database, &topic).await;
    let pool = database.pool().await;
    eventually("two notifications", SOON, async || {
        let kinds: Vec<String> = sqlx::query_scalar("select kind from notifications order by order_version")
            .fetch_all(&pool)
            .await
            .ok()?;
        (kinds == ["confirmation", "cancellation"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_makes_events_of_the_shape_of_the_samples_that_the_schemas_allow() {
    let database = Database::create().await;
    let mut api = Server::orders(database.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let http = reqwest::Client::new();
    let order = json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"});
    let post = |path: String, key: &'static str| {
        http.post(format!("{}{path}", api.url())).header("idempotency-key", key)
    };
    let answer = post("/orders".to_owned(), "create").json(&order).send().await.unwrap();
    let order = answer.json::<Value>().await.unwrap()["orderId"].as_str().unwrap().to_owned();
    let answer = post(format!("/orders/{order}/cancel"), "cancel").send().await.unwrap();
    assert_eq!(answer.status(), 200);

    let rows: Vec<(String, String)> = sqlx::query_as("select type, payload::text from outbox order by seq")
        .fetch_all(&database.pool().await)
        .await
        .unwrap();
    assert_eq!(rows.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), KINDS);
    for ((kind, payload), sample) in rows.iter().zip(samples()) {
        let data: Value = serde_json::from_str(payload).unwrap();
        let schema = contract(&format!("schemas/{kind}.json"));
        let validator =
            jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap();
        validator.validate(&data).expect("the schema allows it");
        let mut expected = sample["value"].clone();
        for volatile in ["orderId", "createdAt", "cancelledAt"] {
            if expected[volatile].is_string() {
                expected[volatile] = data[volatile].clone();
            }
        }
        assert_eq!(data, expected, "{kind}");
    }
}

/// Runs a program that prints events in CloudEvents' JSON format, one a line.
async fn read_back(program: PathBuf, args: &[String]) -> Vec<Value> {
    assert!(
        program.is_absolute() && program.exists() || program.ends_with("java"),
        "run `make consumers` first"
    );
    let run = Command::new(program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(SOON * 2, run).await.expect("ends").expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A sample in CloudEvents' JSON format.
fn cloud_event(sample: &Value) -> Value {
    let mut event = json!({"data": sample["value"], "datacontenttype": "application/json"});
    for (name, value) in sample["headers"].as_object().unwrap() {
        if let Some(attribute) = name.strip_prefix("ce_") {
            event[attribute] = value.clone();
        }
    }
    event
}

fn assert_read_back(read: &[Value]) {
    let samples = samples();
    assert_eq!(read.len(), samples.len());
    for (read, sample) in read.iter().zip(&samples) {
        let (mut read, mut expected) = (read.clone(), cloud_event(sample));
        // How many digits a time has is the SDK's choice.
        for event in [&mut read, &mut expected] {
            event["time"] = json!(event["time"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap());
        }
        assert_eq!(read, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloudevents_sdk_of_python_reads_back_what_the_relay_published() {
    let topic = Topic::create(1).await;
    published(&topic).await;
    let script = root("contract/readback/readback.py").display().to_string();
    let args = [script, topic.brokers().to_owned(), topic.name().to_owned(), "2".to_owned()];
    assert_read_back(&read_back(root("target/consumers/python/bin/python"), &args).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloudevents_sdk_of_java_reads_back_what_the_relay_published() {
    let topic = Topic::create(1).await;
    published(&topic).await;
    let folder = root("target/consumers/readback");
    let classes = format!("{0}/classes:{0}/lib/*", folder.display());
    let args = ["-cp", &classes, "Readback", topic.brokers(), topic.name(), "2"].map(str::to_owned);
    assert_read_back(&read_back(PathBuf::from("java"), &args).await);
}
