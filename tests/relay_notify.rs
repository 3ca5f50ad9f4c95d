//! Deliveries that are repeated, to notifiers that come and go: one notification, one mail.

use std::collections::HashSet;
use std::time::Duration;

use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use futures_util::{StreamExt, stream};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::PgPool;

const SOON: Duration = Duration::from_secs(120);
const NO_MAIL: &str = "smtp://127.0.0.1:1";

async fn started(server: Result<Server, demo::process::ProcessError>) -> Server {
    let mut server = server.expect("it starts");
    server.ready(SOON).await.expect("ready");
    server
}

fn notifier(database: &Database, topic: &Topic, group: &str) -> Result<Server, demo::process::ProcessError> {
    let settings = [("NOTIFY_GROUP", group)];
    Server::relay_stages(&["notify"], database.url(), topic.brokers(), topic.name(), NO_MAIL, &settings)
}

async fn order(http: &reqwest::Client, api: &str, key: &str) -> Option<String> {
    let body = serde_json::json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"});
    let request = http.post(format!("{api}/orders")).header("idempotency-key", key).json(&body);
    let answer: serde_json::Value = request.send().await.ok()?.json().await.ok()?;
    answer["orderId"].as_str().map(str::to_owned)
}

async fn rows(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("counted")
}

/// Waits until the group has handled everything that lies on the topic.
async fn caught_up(topic: &Topic, group: &str, partitions: i32) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", topic.brokers())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    eventually("the group to have handled everything", SOON, async || {
        tokio::task::block_in_place(|| {
            let mut asked = TopicPartitionList::new();
            for partition in 0..partitions {
                asked.add_partition(topic.name(), partition);
            }
            let committed = consumer.committed_offsets(asked, Duration::from_secs(5)).ok()?;
            for partition in 0..partitions {
                let (_, high) =
                    consumer.fetch_watermarks(topic.name(), partition, Duration::from_secs(5)).ok()?;
                let at = committed.find_partition(topic.name(), partition)?.offset();
                if high > 0 && at != Offset::Offset(high) {
                    return None;
                }
            }
            Some(())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_deliveries_of_an_event_to_two_notifiers_through_a_rebalance_make_one_notification() {
    const PARTITIONS: i32 = 4;
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(PARTITIONS).await;
    let group = format!("notify-{}", topic.name());
    let api = started(Server::orders(database.url(), &[])).await;
    let publisher =
        Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), NO_MAIL, &[]);
    let _publisher = started(publisher).await;
    order(&reqwest::Client::new(), api.url(), "key").await.expect("an order");
    let event = eventually("the event", SOON, async || topic.read().await.pop()).await;
    let mut headers = OwnedHeaders::new();
    for (key, value) in &event.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    // To every partition, so that two notifiers have it at the same time.
    let deliver = async |numbers: std::ops::Range<i32>| {
        for number in numbers {
            let again = FutureRecord::to(topic.name())
                .partition(number % PARTITIONS)
                .key(event.key.as_deref().expect("a key"))
                .payload(event.value.as_deref().expect("a value"))
                .headers(headers.clone());
            producer.send(again, SOON).await.expect("delivered");
        }
    };
    deliver(0..40).await;
    let _one = started(notifier(&database, &topic, &group)).await;
    let (other, ()) = tokio::join!(started(notifier(&database, &topic, &group)), deliver(40..100));
    caught_up(&topic, &group, PARTITIONS).await;
    assert_eq!(topic.read().await.len(), 101);
    assert_eq!(rows(&pool, "select count(*) from notifications").await, 1);
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_notifiers_through_five_rebalances_under_load_make_one_mail_per_order() {
    const ORDERS: usize = 1_000;
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(6).await;
    let group = format!("notify-{}", topic.name());
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let api = started(Server::orders(database.url(), &[])).await;
    let settings = [("NOTIFY_GROUP", group.as_str())];
    let url = mailbox.smtp_url();
    let all = Server::relay(database.url(), topic.brokers(), topic.name(), &url, &settings);
    let _relay = started(all).await;
    let mut other = started(notifier(&database, &topic, &group)).await;

    let http = reqwest::Client::new();
    let api_url = api.url().to_owned();
    let load = stream::iter(0..ORDERS).map(async |n| {
        let key = format!("key-{n}");
        eventually("an order", SOON, async || order(&http, &api_url, &key).await).await
    });
    let load = load.buffer_unordered(2).collect::<Vec<String>>();
    // It leaves in good order or dies, and comes back: each is a rebalance, while events flow.
    let comings = async {
        for round in 1..=5_usize {
            let ahead = i64::try_from(round * ORDERS / 8).expect("a number");
            eventually("events to flow", SOON, async || {
                (rows(&pool, "select count(*) from notifications").await >= ahead).then_some(())
            })
            .await;
            if round % 2 == 0 {
                other.kill().expect("killed");
            } else {
                other.terminate().await.expect("stopped");
            }
            other.start_again().expect("started again");
            other.ready(SOON).await.expect("ready");
        }
    };
    let (orders, ()) = tokio::join!(load, comings);

    eventually("every mail to be sent", SOON, async || {
        let sent = rows(&pool, "select count(*) from notifications where state = 'sent'").await;
        (sent == i64::try_from(ORDERS).expect("a number")).then_some(())
    })
    .await;
    caught_up(&topic, &group, 6).await;
    let expected: HashSet<String> =
        orders.iter().map(|order| format!("confirmation.{order}.1@localhost")).collect();
    assert_eq!(mailbox.message_ids().into_keys().collect::<HashSet<_>>(), expected);
    assert_eq!(mailbox.count(), ORDERS, "one mail per order");
}
