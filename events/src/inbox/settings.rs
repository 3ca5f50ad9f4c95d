//! What a consumer may choose.

use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;

use crate::kafka::Event;

/// What is done with an event that comes out of the order of its versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfOrder {
    /// It is handled, counted and logged.
    #[default]
    Accept,
    /// It is taken aside, and its order is blocked.
    Refuse,
}

/// The settings of an inbox.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach Kafka. What the inbox rests on is set on top of it.
    pub kafka: ClientConfig,
    /// Consumer group.
    pub group: String,
    /// The topic of the events.
    pub topic: String,
    /// The dedup keys are kept under this name, so that two consumers of one database do not see
    /// each other's. By default the group.
    pub name: String,
    /// Gets what is taken aside; it must exist. By default `TOPIC.GROUP.dead`.
    pub dead_letter_topic: String,
    /// After so many refusals an event is taken aside; at least 1, by default 3. Counted in memory:
    /// a process that dies of an event starts again at none.
    pub attempts: u32,
    /// At most so many events share a transaction; at least 1, by default 256.
    pub batch: usize,
    /// When versions of the order are missing before the event.
    pub gaps: OutOfOrder,
    /// When a later version of the order was handled before the event.
    pub reorderings: OutOfOrder,
    /// The span in which an event is handled: by default none; `otel::span` (feature `otel`) is
    /// linked to the request that caused the event.
    pub span: fn(&Event) -> tracing::Span,
}

impl Settings {
    /// The defaults for a consumer group of a topic.
    pub fn new(kafka: ClientConfig, group: impl Into<String>, topic: impl Into<String>) -> Self {
        let (group, topic) = (group.into(), topic.into());
        Self {
            kafka,
            name: group.clone(),
            dead_letter_topic: format!("{topic}.{group}.dead"),
            group,
            topic,
            attempts: 3,
            batch: 256,
            gaps: OutOfOrder::Accept,
            reorderings: OutOfOrder::Accept,
            span: |_| tracing::Span::none(),
        }
    }

    /// A member of the group. The settings on which the inbox rests are set here: an offset is
    /// stored only after the commit, so no rebalance commits what was not handled.
    pub(super) fn consumer(&self) -> Result<StreamConsumer, KafkaError> {
        let consumer: StreamConsumer = self
            .kafka
            .clone()
            .set("group.id", &self.group)
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // The partitions of a killed member go to another one after 6 s, the least that brokers
            // allow by default, instead of 45 s.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "2000")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .create()?;
        consumer.subscribe(&[&self.topic])?;
        Ok(consumer)
    }
}
