//! The example consumers in Rust, Python and Java: killed in the middle, with every event delivered
//! twice, they end with the totals of the orders.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::time::Duration;

use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use futures_util::{StreamExt, stream};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 3;
const ORDERS: usize = 600;

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
    // In the middle of a stream of events: SIGKILL for the consumer and for the relay, which has
    // forgotten when it comes back what it had published, and publishes everything again.
    let killed = async {
        consumer.kill().await.expect("killed");
        relay.kill().expect("killed");
        sqlx::raw_sql("update relay_sinks set published = '{}'").execute(&pool).await.unwrap();
        relay.start_again().expect("started again");
        program.start(&theirs, &topic, &group)
    };
    let ((), _consumer) = tokio::join!(place(ORDERS / 2..ORDERS), killed);

    let events: i64 = sqlx::query_scalar("select count(*) from outbox").fetch_one(&pool).await.unwrap();
    eventually("every event to be published", SOON, async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from outbox, relay_sinks where sink = 'kafka' and not published @> seq",
        )
        .fetch_one(&pool)
        .await
        .ok()?;
        (open == 0).then_some(())
    })
    .await;
    let published = topic.read().await.len();
    assert!(
        published > usize::try_from(events).unwrap(),
        "{published} messages of {events} events: no repeat"
    );
    consumed(&topic, &group).await;

    let expected: Totals = sqlx::query_as(
        "select customer_id, currency, count(*) filter (where status = 'created'),
           (coalesce(sum(amount_cents) filter (where status = 'created'), 0))::bigint
         from orders group by customer_id, currency order by customer_id, currency",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(totals(&their_pool).await.expect("totals"), expected);
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
