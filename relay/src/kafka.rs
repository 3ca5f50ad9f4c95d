//! Kafka: how clients are configured, how an event is produced, and what a refusal means.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use events::{Attributes, EventId};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Statistics};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::metrics::{ClientMetrics, Counted, STATISTICS_INTERVAL};
use crate::publish::core::{Input, Verdict};
use crate::publish::gate::Due;
use crate::publish::row::Row;

/// Where Kafka is and how to talk to it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `host:port,host:port`.
    pub(crate) brokers: String,
    /// The topic of the order events.
    pub(crate) topic: String,
    /// CloudEvents `source` of every event.
    pub(crate) source: String,
    /// More librdkafka properties.
    pub(crate) properties: Properties,
}

/// Properties that would undo a guarantee, and what they are fixed to.
const FIXED: [(&str, &str); 5] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("message.timeout.ms", "0"),
    ("enable.auto.offset.store", "false"),
    ("partitioner", "murmur2_random"),
];

/// librdkafka properties, written `k=v,k=v`. Never printed: there are passwords among them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Properties(Vec<(String, String)>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

impl Properties {
    /// The names alone.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl FromStr for Properties {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut properties: Vec<(String, String)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match (part.split_once('='), properties.last_mut()) {
                (Some((key, value)), _) => {
                    properties.push((key.trim().to_owned(), value.trim().to_owned()));
                }
                // A value may be a list: `debug=broker,cgrp`.
                (None, Some((_, value))) => *value = format!("{value},{part}"),
                (None, None) => return Err("it must look like k=v,k=v".to_owned()),
            }
        }
        for (key, _) in &properties {
            if let Some((_, fixed)) = FIXED.iter().find(|(name, _)| name == key) {
                return Err(format!("`{key}` is fixed to `{fixed}`: the guarantees rest on it"));
            }
        }
        let config: ClientConfig = properties.iter().cloned().collect();
        // What librdkafka says of a value repeats it, and it may be a password.
        config.create_native_config().map_err(|error| match error {
            KafkaError::ClientConfig(_, _, key, _) => {
                format!("librdkafka knows no property `{key}`, or refuses its value")
            }
            _ => "librdkafka refuses it".to_owned(),
        })?;
        Ok(Self(properties))
    }
}

impl Settings {
    /// Configuration that every client of this process shares.
    #[must_use]
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "orders-relay")
            // A broker that comes back is noticed within a second.
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true");
        for (key, value) in &self.properties.0 {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn producer(&self, alone: bool) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("compression.type", "lz4")
            // Under load batches fill while requests are under way; idle, nothing waits.
            .set("linger.ms", "0")
            // Above what the publisher ever hands over, so the queue is never full.
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "262144")
            // One client fills the gauges; the one for suspects is seldom there.
            .set("statistics.interval.ms", if alone { "0" } else { STATISTICS_INTERVAL });
        for (key, value) in self.client().config_map() {
            config.set(key, value);
        }
        for (key, value) in FIXED.iter().filter(|(key, _)| *key != "enable.auto.offset.store") {
            config.set(*key, *value);
        }
        if alone {
            config.set("batch.num.messages", "1");
        }
        config
    }
}

/// Sends answers of Kafka to the publisher's loop.
struct Deliveries {
    answers: UnboundedSender<Answer>,
    metrics: ClientMetrics,
    counted: Mutex<Counted>,
}

impl Deliveries {
    fn new(answers: UnboundedSender<Answer>, metrics: ClientMetrics) -> Self {
        Self { answers, metrics, counted: Mutex::default() }
    }
}

/// What Kafka, or the client library, said.
#[derive(Debug)]
pub(crate) enum Answer {
    /// What became of an event.
    Event(Input),
    /// Trouble that concerns no single event: brokers are away, authentication fails.
    Trouble(String),
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        // The receiver is gone only when the producer is being thrown away.
        let _ = self.answers.send(Answer::Trouble(format!("{error}: {reason}")));
    }

    fn stats(&self, statistics: Statistics) {
        self.metrics.take(&statistics, &mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let seq = i64::try_from(opaque).unwrap_or(i64::MAX);
        let input = match result {
            Ok(_) => Input::Acknowledged(seq),
            Err((error, message)) => refused(seq, error, message.payload_len()),
        };
        let _ = self.answers.send(Answer::Event(input));
    }
}

fn refused(seq: i64, error: &KafkaError, bytes: usize) -> Input {
    Input::Refused { seq, verdict: verdict(error), detail: format!("{error} ({bytes} bytes)") }
}

/// Whether a refusal will pass. Exhaustive by its last arm: what is not known to be for good is
/// transient, because waiting loses nothing.
#[must_use]
pub(crate) fn verdict(error: &KafkaError) -> Verdict {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::Fatal) => Verdict::Fatal,
        Some(
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidRecord
            | Code::InvalidTimestamp,
        ) => Verdict::Permanent,
        _ => Verdict::Transient,
    }
}

/// Hands events to Kafka and gives the answers to a channel.
pub(crate) struct Producer {
    settings: Settings,
    many: ThreadedProducer<Deliveries>,
    /// Made when the first suspect has to travel in a batch of its own.
    alone: Option<ThreadedProducer<Deliveries>>,
    answers: UnboundedSender<Answer>,
    metrics: ClientMetrics,
}

impl Producer {
    /// A producer and the channel of its answers.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub(crate) fn new(
        settings: Settings,
        metrics: &ClientMetrics,
    ) -> Result<(Self, UnboundedReceiver<Answer>), KafkaError> {
        let (answers, receiver) = unbounded_channel();
        let context = Deliveries::new(answers.clone(), metrics.clone());
        let many = settings.producer(false).create_with_context(context)?;
        Ok((Self { settings, many, alone: None, answers, metrics: metrics.clone() }, receiver))
    }

    /// Hands an event over; its answer comes through the channel.
    pub(crate) fn send(&mut self, due: &Due) {
        if let Err(error) = self.try_send(due) {
            let _ = self.answers.send(Answer::Event(refused(due.row.seq, &error, due.row.payload.len())));
        }
    }

    fn try_send(&mut self, due: &Due) -> Result<(), KafkaError> {
        let producer = if due.alone {
            match &mut self.alone {
                Some(producer) => producer,
                none => none.insert(
                    self.settings
                        .producer(true)
                        .create_with_context(Deliveries::new(self.answers.clone(), self.metrics.clone()))?,
                ),
            }
        } else {
            &self.many
        };
        let key = due.row.aggregate_id.to_string();
        let record = BaseRecord::with_opaque_to(
            &self.settings.topic,
            usize::try_from(due.row.seq).unwrap_or(usize::MAX),
        )
        .key(&key)
        .payload(&due.row.payload)
        .headers(events::kafka::headers(&attributes(&due.row, &self.settings.source)));
        producer.send(record).map_err(|(error, _)| error)
    }

    /// Throws away what is not answered yet and closes the connections. Blocks for up to a second.
    pub(crate) fn discard(self) {
        for producer in [Some(self.many), self.alone].into_iter().flatten() {
            producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        }
    }
}

/// The CloudEvents attributes of a row.
fn attributes(row: &Row, source: &str) -> Attributes {
    Attributes {
        id: EventId::from(row.event_id),
        source: source.to_owned(),
        kind: row.kind.clone(),
        subject: row.aggregate_id,
        time: row.created_at,
        version: row.version,
        traceparent: row.traceparent.clone(),
        tracestate: row.tracestate.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_would_undo_a_guarantee_is_refused_and_says_why() {
        let refusal = "acks=1".parse::<Properties>().expect_err("refused");
        assert!(refusal.contains("fixed to `all`"), "{refusal}");
        let refusal = "no.such.thing=1".parse::<Properties>().expect_err("refused");
        assert!(refusal.contains("no.such.thing"), "{refusal}");
        let list = "debug=broker,cgrp, linger.ms=5".parse::<Properties>().expect("a list");
        assert_eq!(
            list.0,
            [("debug", "broker,cgrp"), ("linger.ms", "5")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
        assert!("linger.ms=5, security.protocol=ssl".parse::<Properties>().is_ok());
    }

    #[test]
    fn only_what_is_known_to_be_for_good_is_permanent() {
        let verdict = |code| super::verdict(&KafkaError::MessageProduction(code));
        assert_eq!(verdict(RDKafkaErrorCode::MessageSizeTooLarge), Verdict::Permanent);
        assert_eq!(verdict(RDKafkaErrorCode::Fatal), Verdict::Fatal);
        for passing in [
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::QueueFull,
            RDKafkaErrorCode::Unknown,
        ] {
            assert_eq!(verdict(passing), Verdict::Transient, "{passing:?}");
        }
    }
}
