//! Topics, and how a producer is configured that the relay is compared with.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use crate::shared::Outcome;

const PARTITIONS: i32 = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings of the relay's producer.
pub(crate) fn producer(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("linger.ms", "0")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "98304");
    config
}

/// A topic of one visit. The broker stamps what it appends with its own clock.
pub(crate) struct Topic {
    brokers: String,
    name: String,
}

/// What lies on a topic.
pub(crate) struct Appended {
    /// How many events.
    pub(crate) events: u64,
    /// From the first append to the last.
    pub(crate) took: Duration,
}

impl Topic {
    pub(crate) fn existing(brokers: &str, name: &str) -> Self {
        Self { brokers: brokers.to_owned(), name: name.to_owned() }
    }

    pub(crate) async fn create(brokers: &str) -> Outcome<Self> {
        let topic = Self::existing(brokers, &format!("bench-{}", Uuid::now_v7().simple()));
        let new = NewTopic::new(&topic.name, PARTITIONS, TopicReplication::Fixed(1))
            .set("message.timestamp.type", "LogAppendTime")
            .set("file.delete.delay.ms", "100");
        for result in topic.admin()?.create_topics([&new], &AdminOptions::new()).await? {
            result.map_err(|(_, code)| KafkaError::AdminOp(code))?;
        }
        // Waits for the leaders.
        demo::topic::count(brokers, &topic.name).await?;
        Ok(topic)
    }

    pub(crate) async fn delete(self) -> Outcome<()> {
        for result in self.admin()?.delete_topics(&[&self.name], &AdminOptions::new()).await? {
            result.map_err(|(_, code)| KafkaError::AdminOp(code))?;
        }
        Ok(())
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A consumer of everything from the beginning, that gets each message as soon as there is one.
    pub(crate) fn consumer(&self) -> Outcome<BaseConsumer> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", "100")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assignment.add_partition_offset(&self.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(consumer)
    }

    /// Reads everything but the messages with a key of `except`.
    pub(crate) async fn appended(&self, except: Option<String>) -> Outcome<Appended> {
        let consumer = self.consumer()?;
        tokio::task::spawn_blocking(move || appended(&consumer, except.as_deref())).await?
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set_log_level(RDKafkaLogLevel::Critical);
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
        self.client().create()
    }
}

fn appended(consumer: &BaseConsumer, except: Option<&str>) -> Outcome<Appended> {
    let (mut events, mut first, mut last, mut ended) = (0, i64::MAX, i64::MIN, 0);
    while ended < PARTITIONS {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) => {
                if except.is_some() && message.key() == except.map(str::as_bytes) {
                    continue;
                }
                let at = message.timestamp().to_millis().ok_or("a message without a time")?;
                (events, first, last) = (events + 1, first.min(at), last.max(at));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => return Err(error.into()),
            None => return Err("the topic could not be read".into()),
        }
    }
    let millis = u64::try_from(last.saturating_sub(first)).unwrap_or_default();
    Ok(Appended { events, took: Duration::from_millis(millis.max(1)) })
}
