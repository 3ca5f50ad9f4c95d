//! The servers' outages and restarts, and the topics on them. Servers of their own: the ones that
//! a run shares are not to be killed.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use demo::services::{Kafka, Postgres};
use demo::testing::Topic;
use demo::topic;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{Connection, PgConnection};

const LIMIT: Duration = Duration::from_secs(30);

async fn produce(brokers: &str, topic: &str, key: &str) {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(key) });
    let record = FutureRecord::to(topic).key(key).payload("{}").headers(headers);
    producer.send(record, LIMIT).await.unwrap();
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_through_kill_and_stop() {
    let mut postgres = Postgres::start().await.unwrap();
    let url = postgres.url();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("create table kept (id int)").execute(&mut connection).await.unwrap();
    sqlx::query("insert into kept values (1)").execute(&mut connection).await.unwrap();

    postgres.kill().unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    postgres.start_again().await.unwrap();
    postgres.stop().await.unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    postgres.start_again().await.unwrap();

    let mut connection = PgConnection::connect(&url).await.unwrap();
    let kept: i64 = sqlx::query_scalar("select count(*) from kept").fetch_one(&mut connection).await.unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn kafka_keeps_what_was_acknowledged_through_kill_and_stop() {
    let mut kafka = Kafka::start().await.unwrap();
    let brokers = kafka.brokers();
    topic::create(&brokers, "kept", 2).await.unwrap();
    produce(&brokers, "kept", "before").await;

    kafka.kill().unwrap();
    kafka.start_again().await.unwrap();
    produce(&brokers, "kept", "between").await;
    kafka.stop().await.unwrap();
    kafka.start_again().await.unwrap();

    let messages = topic::read(&brokers, "kept", LIMIT).await.unwrap();
    let mut keys: Vec<_> = messages.iter().filter_map(|m| m.key.as_deref()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [&b"before"[..], b"between"]);
}

#[tokio::test]
async fn a_topic_is_read_whole_with_its_headers() {
    let topic = Topic::create(3).await;
    assert!(topic.read().await.is_empty());
    for key in ["a", "b", "c", "d", "e"] {
        produce(topic.brokers(), topic.name(), key).await;
    }
    let messages = topic.read().await;
    assert_eq!(messages.len(), 5);
    assert_eq!(topic::count(topic.brokers(), topic.name()).await.unwrap(), 5);
    for message in messages {
        assert_eq!(message.header("ce_id").unwrap().as_bytes(), message.key.as_deref().unwrap());
        assert_eq!(message.value.as_deref().unwrap(), b"{}");
    }
}
