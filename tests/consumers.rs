//! The example consumers in Rust, Python and Java: killed inside a transaction, and with every event delivered
//! twice, they end with the totals of the orders; and they understand the samples of the contract.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use futures_util::{StreamExt, stream};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 3;
const ORDERS: usize = 600;
/// Longer than any of the consumers would wait before it commits an offset by itself, if that were left on.
const HELD: Duration = Duration::from_secs(6);

/// Customer, currency, orders in force, amount in minor units.
type Totals = Vec<(i64, String, i64, i64)>;

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// How a consumer is started: program, and arguments before group and topic.
struct Program {
    file: PathBuf,
    args: Vec<String>,
}

impl Program {
    fn rust() -> Self {
        // Beside the folder `deps` in which this test lies.
        let mut file = std::env::current_exe().unwrap();
        file.pop();
        file.set_file_name("examples");
        Self::checked(file.join("consumer"), vec![], "cargo build --example consumer")
    }

    fn python() -> Self {
        let script = root("examples/consumer-python/consumer.py").display().to_string();
        Self::checked(root("target/consumers/python/bin/python"), vec![script], "make consumers")
    }

    fn java() -> Self {
        let folder = root("target/consumers/java");
        let schema = root("examples/consumer.sql").display().to_string();
        let classes = format!("{0}/classes:{0}/lib/*", folder.display());
        let args = ["-cp", &classes, "Consumer", &schema].map(str::to_owned).to_vec();
        let checked = Self::checked(folder.join("classes/Consumer.class"), args, "make consumers");
        Self { file: "java".into(), ..checked }
    }

    fn checked(file: PathBuf, args: Vec<String>, made_by: &str) -> Self {
        assert!(file.exists(), "{} is missing: run `{made_by}` first", file.display());
        Self { file, args }
    }

    fn start(&self, database: &Database, topic: &Topic, group: &str) -> Child {
        let options: PgConnectOptions = database.url().parse().unwrap();
        let (user, name) = (options.get_username(), options.get_database().unwrap());
        let url = options.to_url_lossy();
        let password = url.password().unwrap_or_default();
        let server = format!("{}:{}/{name}", options.get_host(), options.get_port());
        Command::new(&self.file)
            .args(&self.args)
            .args([group, topic.name()])
            // Without what only sqlx understands.
            .env("DATABASE_URL", format!("postgres://{user}:{password}@{server}"))
            .env("JDBC_URL", format!("jdbc:postgresql://{server}?user={user}&password={password}"))
            .env("KAFKA_BROKERS", topic.brokers())
            .kill_on_drop(true)
            .spawn()
            .expect("the consumer starts")
    }
}

/// Places an order as a careful client does, and cancels every fifth.
async fn order(http: &Client, api: &str, number: usize) {
    let body = json!({
        "customerId": 1 + number % 7,
        "amountCents": 100 + number,
        "currency": if number.is_multiple_of(3) { "EUR" } else { "USD" },
    });
    let post = async |path: &str, key: String, body: Option<&Value>| {
        eventually("an answer of the API", SOON, async || {
            let request = http.post(format!("{api}{path}")).header("idempotency-key", &key);
            let request = match body {
                Some(body) => request.json(body),
                None => request,
            };
            let answer = request.send().await.ok()?;
            answer.status().is_success().then_some(answer)
        })
        .await
        .json::<Value>()
        .await
        .unwrap()
    };
    let placed = post("/orders", format!("order-{number}"), Some(&body)).await;
    if number.is_multiple_of(5) {
        let path = format!("/orders/{}/cancel", placed["orderId"].as_str().unwrap());
        post(&path, format!("cancel-{number}"), None).await;
    }
}

async fn totals(pool: &PgPool) -> Option<Totals> {
    sqlx::query_as(
        "select customer_id, currency, orders, amount_cents from order_totals order by customer_id, currency",
    )
    .fetch_all(pool)
    .await
    .ok()
}

/// Waits until the group has committed everything that lies on the topic.
async fn consumed(topic: &Topic, group: &str) {
    let (brokers, name, group) = (topic.brokers().to_owned(), topic.name().to_owned(), group.to_owned());
    let lag = move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &group).create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&name, 0, PARTITIONS - 1);
        let committed = consumer.committed_offsets(partitions, SOON).unwrap();
        (0..PARTITIONS)
            .map(|partition| {
                let (_, high) = consumer.fetch_watermarks(&name, partition, SOON).unwrap();
                match committed.find_partition(&name, partition).unwrap().offset() {
                    Offset::Offset(offset) => high - offset,
                    _ => high,
                }
            })
            .sum::<i64>()
    };
    eventually("the consumer to be through", SOON, async || {
        let lag = lag.clone();
        (tokio::task::spawn_blocking(lag).await.unwrap() == 0).then_some(())
    })
    .await;
}

/// Customer, currency, orders in force and their amount, from the orders themselves.
async fn of_the_orders(pool: &PgPool) -> Totals {
    sqlx::query_as(
        "select customer_id, currency, count(*) filter (where status = 'created'),
           (coalesce(sum(amount_cents) filter (where status = 'created'), 0))::bigint
         from orders group by customer_id, currency order by customer_id, currency",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

/// Waits until every committed event is published.
async fn published(pool: &PgPool) {
    eventually("every event to be published", SOON, async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from outbox, relay_sinks where sink = 'kafka' and not published @> seq",
        )
        .fetch_one(pool)
        .await
        .ok()?;
        (open == 0).then_some(())
    })
    .await;
}

/// How often each event lies on the topic, by `ce_id`.
async fn deliveries(topic: &Topic) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for message in topic.read().await {
        *times.entry(message.header("ce_id").expect("an event").to_owned()).or_default() += 1;
    }
    times
}

async fn ends_with_the_totals_of_the_orders(program: Program) {
    let (orders, theirs) = (Database::create().await, Database::empty().await);
    let topic = Topic::create(PARTITIONS).await;
    let group = format!("totals-{}", topic.name());
    let (pool, their_pool) = (orders.pool().await, theirs.pool().await);
    let mut api = Server::orders(orders.url(), &[]).expect("the API starts");
    let settings = [("RELAY_LEASE_SECONDS", "2")];
    let mut relay = Server::relay_stages(
        &["publish"],
        orders.url(),
        topic.brokers(),
        topic.name(),
        "smtp://127.0.0.1:1",
        &settings,
    )
    .expect("the relay starts");
    api.ready(SOON).await.expect("ready");
    relay.ready(SOON).await.expect("ready");
    let mut consumer = program.start(&theirs, &topic, &group);

    let http = Client::new();
    let place = |range: std::ops::Range<usize>| {
        stream::iter(range).for_each_concurrent(20, |number| order(&http, api.url(), number))
    };
    place(0..ORDERS / 2).await;
    eventually("the consumer to be in the middle", SOON, async || {
        totals(&their_pool).await.is_some_and(|totals| !totals.is_empty()).then_some(())
    })
    .await;

    // It cannot write its totals, so it is inside its transaction when SIGKILL comes. If it committed an offset
    // before the effect, these events would be lost to it.
    let mut lock = their_pool.begin().await.unwrap();
    sqlx::query("lock table order_totals in share row exclusive mode").execute(&mut *lock).await.unwrap();
    place(ORDERS / 2..ORDERS).await;
    eventually("the consumer to be inside its transaction", SOON, async || {
        let sql = "select count(*) from pg_locks where relation = 'order_totals'::regclass and not granted";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&their_pool).await.ok()?;
        (waiting > 0).then_some(())
    })
    .await;
    // That it commits nothing shows in time only.
    tokio::time::sleep(HELD).await;
    consumer.kill().await.expect("killed");
    lock.rollback().await.unwrap();
    let _consumer = program.start(&theirs, &topic, &group);
    published(&pool).await;
    consumed(&topic, &group).await;
    let expected = of_the_orders(&pool).await;
    assert_eq!(totals(&their_pool).await.expect("totals"), expected, "after the kill");

    // The relay has forgotten when it comes back what it had published, and publishes everything again.
    relay.kill().expect("killed");
    sqlx::raw_sql("update relay_sinks set published = '{}'").execute(&pool).await.unwrap();
    relay.start_again().expect("started again");
    published(&pool).await;
    let events: Vec<String> =
        sqlx::query_scalar("select event_id::text from outbox").fetch_all(&pool).await.unwrap();
    let times = deliveries(&topic).await;
    assert_eq!((times.len(), events.len()), (events.len(), ORDERS + ORDERS / 5));
    for event in events {
        assert!(times.get(&event).is_some_and(|times| *times >= 2), "{event} was delivered once at most");
    }
    consumed(&topic, &group).await;
    assert_eq!(totals(&their_pool).await.expect("totals"), expected, "after the repeats");
}

/// The samples of the contract, as they lie on a topic: the order that they create, and cancel again.
async fn understands_the_samples(program: Program) {
    let theirs = Database::empty().await;
    let their_pool = theirs.pool().await;
    let topic = Topic::create(1).await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().unwrap();
    let _consumer = program.start(&theirs, &topic, &format!("totals-{}", topic.name()));
    for (kind, expected) in [("order.created.v1", (1, 2599)), ("order.cancelled.v1", (0, 0))] {
        let file = root(&format!("contract/samples/{kind}.json"));
        let sample: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut headers = OwnedHeaders::new();
        for (key, value) in sample["headers"].as_object().unwrap() {
            headers = headers.insert(Header { key, value: value.as_str() });
        }
        let (key, value) = (sample["key"].as_str().unwrap(), sample["value"].to_string());
        let record = FutureRecord::to(topic.name()).key(key).payload(&value).headers(headers);
        producer.send(record, SOON).await.expect("delivered");
        let expected = [(42, "USD".to_owned(), expected.0, expected.1)];
        eventually(&format!("the totals after {kind}"), SOON, async || {
            (totals(&their_pool).await? == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_consumer_ends_with_the_totals_of_the_orders() {
    ends_with_the_totals_of_the_orders(Program::rust()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_consumer_ends_with_the_totals_of_the_orders() {
    ends_with_the_totals_of_the_orders(Program::python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_consumer_ends_with_the_totals_of_the_orders() {
    ends_with_the_totals_of_the_orders(Program::java()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_consumer_understands_the_samples_of_the_contract() {
    understands_the_samples(Program::rust()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_consumer_understands_the_samples_of_the_contract() {
    understands_the_samples(Program::python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_consumer_understands_the_samples_of_the_contract() {
    understands_the_samples(Program::java()).await;
}
