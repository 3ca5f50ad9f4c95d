//! The pipeline from outside: HTTP in, Kafka and mail out. Real PostgreSQL, real Kafka, a real
//! SMTP conversation, and processes that get killed.

#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::time::Duration;

use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::services::Kafka;
use demo::testing::{Database, Topic, eventually};
use demo::topic;
use futures_util::{StreamExt, stream};
use outbox::{compare, compare_with, settled};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::{Client, StatusCode};
use serde_json::json;
use sqlx::PgPool;

const SOON: Duration = Duration::from_secs(60);
/// How long a server is away in the tests of outages.
const AWAY: Duration = Duration::from_secs(10);

async fn started(mut server: Server) -> Server {
    server.ready(SOON).await.expect("ready");
    server
}

/// A relay that only publishes.
async fn publisher(database: &Database, topic: &Topic) -> Server {
    let settings = [("RELAY_LEASE_SECONDS", "2")];
    let no_mail = "smtp://127.0.0.1:1";
    let relay =
        Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), no_mail, &settings);
    started(relay.expect("the relay starts")).await
}

async fn post(http: &Client, api: &str, key: &str, email: bool) -> Option<serde_json::Value> {
    let mut order = json!({"customerId": 42, "amountCents": 2599});
    if email {
        order["customerEmail"] = json!(format!("{key}@example.com"));
    }
    let answer =
        http.post(format!("{api}/orders")).header("idempotency-key", key).json(&order).send().await.ok()?;
    if answer.status() != StatusCode::CREATED {
        return None;
    }
    answer.json().await.ok()
}

/// Posts as a careful client does: again, with the same key, until it is answered.
async fn order(http: &Client, api: &str, key: &str, email: bool) -> String {
    eventually("an order to be answered", SOON, async || post(http, api, key, email).await).await["orderId"]
        .as_str()
        .expect("an order id")
        .to_owned()
}

async fn cancel(http: &Client, api: &str, order: &str) {
    let url = format!("{api}/orders/{order}/cancel");
    let answer =
        http.post(url).header("idempotency-key", format!("cancel-{order}")).send().await.expect("answered");
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("counted")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_of_the_relay_during_5000_orders_lose_nothing_and_keep_each_order_in_order() {
    const ORDERS: usize = 5_000;
    const KILLS: usize = 10;
    let database = Database::create().await;
    let topic = Topic::create(6).await;
    let pool = database.pool().await;
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let mut relay = publisher(&database, &topic).await;

    let http = Client::new();
    let url = api.url().to_owned();
    for kill in 1..=KILLS {
        let part = ORDERS / KILLS;
        let orders = stream::iter(0..part).map(async |n| {
            let order = order(&http, &url, &format!("{kill}-{n}"), false).await;
            if n % 3 == 0 {
                cancel(&http, &url, &order).await;
            }
        });
        let ahead = count(&pool, "select coalesce(max(seq), 0) from outbox").await + 100;
        let killer = async {
            // In the middle of the part: when the relay publishes what this part wrote.
            eventually("the relay to be in the middle", SOON, async || {
                let settled: i64 =
                    sqlx::query_scalar("select coalesce(upper(published), 0) from relay_sinks")
                        .fetch_optional(&pool)
                        .await
                        .expect("read")?;
                (settled > ahead).then_some(())
            })
            .await;
            relay.kill().expect("killed");
        };
        tokio::join!(orders.buffer_unordered(32).collect::<Vec<_>>(), killer);
        relay.start_again().expect("started again");
    }
    settled(&pool, SOON).await;
    assert_eq!(count(&pool, "select count(*) from orders").await, i64::try_from(ORDERS).expect("fits"));
    let repeats = compare(&pool, &topic, &HashSet::new()).await;
    println!("{repeats} repeats, each with the id of its first occurrence");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_kafka_and_one_of_the_mail_server_cost_no_event_no_mail_and_no_attempt() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut kafka = Kafka::start().await.expect("a Kafka of our own");
    let brokers = kafka.brokers();
    topic::create(&brokers, "orders", 3).await.expect("topic created");
    let mut mailbox = Mailbox::start(0).await.expect("a mailbox");
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let start = Server::relay(database.url(), &brokers, "orders", &mailbox.smtp_url(), &[]);
    let relay = started(start.expect("the relay starts")).await;
    let http = Client::new();
    let mut orders = 0;
    let mut place = async |n: usize| {
        for _ in 0..n {
            orders += 1;
            order(&http, api.url(), &format!("key-{orders}"), true).await;
        }
        orders
    };

    let placed = place(20).await;
    mailbox.wait_for(placed, SOON).await.expect("mailed");

    kafka.kill().expect("Kafka killed");
    place(100).await;
    unready(&http, &relay, "publish").await;
    no_transaction_is_open(&pool).await;
    tokio::time::sleep(AWAY).await;
    kafka.start_again().await.expect("Kafka is back");
    settled(&pool, SOON).await;
    let placed = place(0).await;
    mailbox.wait_for(placed, SOON).await.expect("mailed");

    mailbox.stop().await;
    let placed = place(100).await;
    unready(&http, &relay, "mail").await;
    no_transaction_is_open(&pool).await;
    tokio::time::sleep(AWAY).await;
    mailbox.start_again().await.expect("the mailbox is back");
    mailbox.wait_for(placed, SOON).await.expect("mailed");
    settled(&pool, SOON).await;
    eventually("every mail to be recorded as sent", SOON, async || {
        (count(&pool, "select count(*) from notifications where state <> 'sent'").await == 0).then_some(())
    })
    .await;

    let messages = topic::read(&brokers, "orders", SOON).await.expect("the topic is read");
    compare_with(&pool, &messages, &HashSet::new()).await;
    assert_eq!(mailbox.message_ids().len(), placed, "one mail an order");
    assert_eq!(mailbox.count(), placed, "and none twice");
    assert_eq!(count(&pool, "select coalesce(sum(attempts), 0)::int8 from notifications").await, 0);
    assert_eq!(count(&pool, "select count(*) from relay_dead").await, 0);
}

/// Waits until the relay says that `stage` makes no progress.
async fn unready(http: &Client, relay: &Server, stage: &str) {
    eventually("the relay to say that it makes no progress", SOON, async || {
        let answer = http.get(format!("{}/readyz", relay.url())).send().await.ok()?;
        let status = answer.status();
        let page: serde_json::Value = answer.json().await.ok()?;
        let told = page["stages"][stage]["problem"].is_string();
        (status == StatusCode::SERVICE_UNAVAILABLE && told).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_delivered_twice_makes_one_mail_whose_message_id_is_the_dedup_key() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let group = format!("notify-{}", topic.name());
    let settings = [("NOTIFY_GROUP", group.as_str())];
    let start = Server::relay(database.url(), topic.brokers(), topic.name(), &mailbox.smtp_url(), &settings);
    let _relay = started(start.expect("the relay starts")).await;
    let http = Client::new();

    let first = order(&http, api.url(), "first", true).await;
    mailbox.wait_for(1, SOON).await.expect("mailed");
    let message = topic.read().await.remove(0);
    let mut headers = OwnedHeaders::new();
    for (key, value) in &message.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    for _ in 0..2 {
        let again = FutureRecord::to(topic.name())
            .key(message.key.as_deref().expect("a key"))
            .payload(message.value.as_deref().expect("a value"))
            .headers(headers.clone());
        producer.send(again, SOON).await.expect("delivered again");
    }
    // One partition: when the mail of a later order is there, the repeats were handled.
    let second = order(&http, api.url(), "second", true).await;
    mailbox.wait_for(2, SOON).await.expect("mailed");

    let ids: HashSet<String> = mailbox.messages().into_iter().map(|mail| mail.message_id).collect();
    let expected = [first, second].map(|order| format!("confirmation.{order}.1@localhost"));
    assert_eq!(ids, HashSet::from(expected));
    assert_eq!(mailbox.count(), 2);
    assert_eq!(topic.read().await.len(), 4, "two orders and two repeats");
}

/// No network I/O inside a database transaction: none of the relay's is left open while it waits.
async fn no_transaction_is_open(pool: &PgPool) {
    for _ in 0..50 {
        let open = count(
            pool,
            "select count(*) from pg_stat_activity where datname = current_database()
             and application_name = 'relay' and state like 'idle in transaction%'
             and clock_timestamp() - state_change > interval '200 ms'",
        )
        .await;
        assert_eq!(open, 0, "a transaction waits for something outside the database");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_never_answers_is_waited_for_outside_any_transaction() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(1).await;
    // Takes connections into its backlog and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let smtp = format!("smtp://{}", silent.local_addr().expect("its address"));
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let group = format!("notify-{}", topic.name());
    let settings = [("NOTIFY_GROUP", group.as_str())];
    let start = Server::relay(database.url(), topic.brokers(), topic.name(), &smtp, &settings);
    let _relay = started(start.expect("the relay starts")).await;
    order(&Client::new(), api.url(), "key", true).await;
    eventually("the mail to be on its way", SOON, async || {
        (count(&pool, "select count(*) from notifications where state = 'sending'").await == 1).then_some(())
    })
    .await;
    no_transaction_is_open(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mailer_loses_no_mail_and_what_it_repeats_has_the_same_message_id() {
    const ORDERS: usize = 300;
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let group = format!("notify-{}", topic.name());
    let settings = [("NOTIFY_GROUP", group.as_str()), ("RELAY_LEASE_SECONDS", "2")];
    let start = Server::relay(database.url(), topic.brokers(), topic.name(), &mailbox.smtp_url(), &settings);
    let mut relay = started(start.expect("the relay starts")).await;
    let (http, url) = (Client::new(), api.url().to_owned());
    let orders = stream::iter(0..ORDERS).map(async |n| order(&http, &url, &format!("key-{n}"), true).await);
    let killer = async {
        mailbox.wait_for(ORDERS / 4, SOON).await.expect("some mails");
        relay.kill().expect("killed");
    };
    let (orders, ()) = tokio::join!(orders.buffer_unordered(16).collect::<Vec<_>>(), killer);
    relay.start_again().expect("started again");
    eventually("every mail to be sent", SOON, async || {
        let sent = count(&pool, "select count(*) from notifications where state = 'sent'").await;
        (sent == i64::try_from(ORDERS).expect("fits")).then_some(())
    })
    .await;
    let expected: HashSet<String> =
        orders.iter().map(|order| format!("confirmation.{order}.1@localhost")).collect();
    let arrived: HashSet<String> = mailbox.message_ids().into_keys().collect();
    assert_eq!(arrived, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_reaches_kafka() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(1).await;
    let api = started(Server::orders(database.url(), &[]).expect("the API starts")).await;
    let _relay = publisher(&database, &topic).await;
    let http = Client::new();
    let placed = order(&http, api.url(), "key", true).await;
    cancel(&http, api.url(), &placed).await;
    settled(&pool, SOON).await;
    let messages = topic.read().await;
    assert_eq!(messages.len(), 2);
    for message in messages {
        let values = message.headers.iter().map(|(_, value)| value.as_slice());
        for bytes in values.chain(message.value.as_deref()) {
            assert!(!bytes.contains(&b'@'), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
