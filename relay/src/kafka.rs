//! Kafka: how clients are configured, how an event is produced, and what a refusal means.

mod polled;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use events::{Attributes, EventId};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Statistics};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

use self::polled::PolledProducer;
use crate::foreign::is_topic;
use crate::metrics::{ClientMetrics, Counted, STATISTICS_INTERVAL};
use crate::publish::core::{Input, Verdict};
use crate::publish::gate::Due;
use crate::publish::row::{Event, ForeignEvent, OrderEvent, Row};

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

/// What librdkafka sends at most when `message.max.bytes` is not set.
const DEFAULT_MESSAGE_BYTES: i64 = 1_000_000;

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
        self.client_with(&[])
    }

    /// The same with what a kind of client is given where nobody set anything else.
    fn client_with(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "orders-relay")
            // A broker that comes back is noticed within a second.
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true");
        let properties = self.properties.0.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in defaults.iter().copied().chain(properties) {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// The largest message that the producer sends, bytes.
    #[must_use]
    pub(crate) fn message_bytes(&self) -> i64 {
        let own = self.properties.0.iter().rev().find(|(name, _)| name == "message.max.bytes");
        own.and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(DEFAULT_MESSAGE_BYTES)
    }

    fn producer(&self, alone: bool) -> ClientConfig {
        let mut config = self.client_with(&[
            ("compression.type", "lz4"),
            // Under load batches fill while requests are under way; idle, nothing waits.
            ("linger.ms", "0"),
            // Above what the publisher ever hands over (`core::Limits`), so the queue is never full;
            // one more bound on memory all the same.
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "98304"),
            // One client fills the gauges; the one for suspects is seldom there.
            ("statistics.interval.ms", if alone { "0" } else { STATISTICS_INTERVAL }),
        ]);
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
        // Comes behind what was wrong with each of them, and names no cause.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let words = format!("{error}: {reason}");
        let answer = match verdict(&error) {
            // Events that are with the producer may never be answered now.
            Verdict::Fatal => Answer::Event(Input::BeyondUse(words)),
            Verdict::Transient | Verdict::Permanent => Answer::Trouble(words),
        };
        // The receiver is gone only when the producer is being thrown away.
        let _ = self.answers.send(answer);
    }

    fn stats(&self, statistics: Statistics) {
        self.metrics.take(&statistics, &mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Row>;

    fn delivery(&self, result: &DeliveryResult<'_>, event: Arc<Row>) {
        let input = match result {
            Ok(_) => Input::Acknowledged(event),
            Err((error, _)) => refused(event, error),
        };
        let _ = self.answers.send(Answer::Event(input));
    }
}

fn refused(event: Arc<Row>, error: &KafkaError) -> Input {
    let detail = format!("{error} ({} bytes)", event.payload_bytes());
    Input::Refused { event, verdict: verdict(error), detail }
}

/// Whether a refusal will pass. docs/relay.md shows the same as a table, and a test compares them.
///
/// For good is only what the broker says of the event itself, so that the same event could not be
/// taken tomorrow. Everything else is a state of Kafka, of the network, of somebody's rights or of
/// a clock: it is waited for, and health says so, because waiting loses nothing. That holds for
/// codes that a producer never hears, and for those that a later librdkafka may add.
#[must_use]
pub(crate) fn verdict(error: &KafkaError) -> Verdict {
    use RDKafkaErrorCode as Code;
    let Some(code) = error.rdkafka_error_code() else { return Verdict::Transient };
    match code {
        // Too large, by librdkafka's own `message.max.bytes` or by the topic's; not a valid record.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => Verdict::Permanent,
        Code::Fatal => Verdict::Fatal,
        // Unreachable, restarting, or electing a leader.
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::KafkaStorageError => Verdict::Transient,
        // No acknowledgement from all in-sync replicas in time, or too few of them.
        Code::RequestTimedOut
        | Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::TimedOutQueue
        | Code::ISRInsufficient
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend => Verdict::Transient,
        // The topic is not there, or not yet known everywhere.
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic => Verdict::Transient,
        // Rights, credentials and certificates.
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::SSL => Verdict::Transient,
        // The record's time is this machine's clock at the moment of sending, nothing of the event.
        Code::InvalidTimestamp => Verdict::Transient,
        // Settings of topic and producer that do not fit each other, whatever the event.
        Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::UnsupportedVersion
        | Code::InvalidRequiredAcks
        | Code::InvalidConfig
        | Code::PolicyViolation => Verdict::Transient,
        // A batch that was damaged on its way, and the idempotent producer's own bookkeeping.
        Code::InvalidMessage
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId
        | Code::InvalidProducerIdMapping => Verdict::Transient,
        // Too much at once, or thrown away by a producer that is being replaced.
        Code::QueueFull | Code::ThrottlingQuotaExceeded | Code::PurgeQueue | Code::PurgeInflight => {
            Verdict::Transient
        }
        _ => Verdict::Transient,
    }
}

/// Hands events to Kafka and gives the answers to a channel.
pub(crate) struct Producer {
    settings: Settings,
    many: PolledProducer<Deliveries>,
    /// Made when the first suspect has to travel in a batch of its own.
    alone: Option<PolledProducer<Deliveries>>,
    answers: UnboundedSender<Answer>,
    metrics: ClientMetrics,
    /// Whether events are marked as repeats that somebody asked for.
    replay: bool,
}

impl Producer {
    /// The same as [`Producer::new`] for events that were published before; they say so.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub(crate) fn for_replay(
        settings: Settings,
        metrics: &ClientMetrics,
    ) -> Result<(Self, UnboundedReceiver<Answer>), KafkaError> {
        let (producer, answers) = Self::new(settings, metrics)?;
        Ok((Self { replay: true, ..producer }, answers))
    }

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
        let many = PolledProducer::new(&settings.producer(false), context)?;
        Ok((Self { settings, many, alone: None, answers, metrics: metrics.clone(), replay: false }, receiver))
    }

    /// Hands an event over; its answer comes through the channel.
    pub(crate) fn send(&mut self, due: &Due) {
        if let Err(input) = self.try_send(due) {
            let _ = self.answers.send(Answer::Event(input));
        }
    }

    fn try_send(&mut self, due: &Due) -> Result<(), Input> {
        let row = &due.row;
        let refused = |error| refused(Arc::clone(row), &error);
        let producer = if due.alone {
            match &mut self.alone {
                Some(producer) => producer,
                none => {
                    let context = Deliveries::new(self.answers.clone(), self.metrics.clone());
                    let producer = PolledProducer::new(&self.settings.producer(true), context);
                    none.insert(producer.map_err(refused)?)
                }
            }
        } else {
            &self.many
        };
        let mut order = Uuid::encode_buffer();
        let (topic, key, payload, headers) = match &row.event {
            Event::Order(event) => {
                let attributes = attributes(event, row.aggregate_id, &self.settings.source);
                let headers = events::kafka::headers(&attributes);
                let headers = if self.replay { events::kafka::replayed(headers) } else { headers };
                let order = &*row.aggregate_id.hyphenated().encode_lower(&mut order);
                (&self.settings.topic, order, Some(event.payload.as_bytes()), headers)
            }
            Event::Foreign(event) if is_topic(&event.topic) => {
                (&event.topic, event.key.as_str(), event.payload.as_deref(), foreign_headers(event))
            }
            Event::Foreign(event) => {
                // The broker would call it a passing trouble of the whole producer.
                let detail = format!("`{}` is no name of a Kafka topic", event.topic);
                return Err(Input::Refused { event: Arc::clone(row), verdict: Verdict::Permanent, detail });
            }
        };
        let mut record: BaseRecord<'_, str, [u8], Arc<Row>> =
            BaseRecord::with_opaque_to(topic, Arc::clone(row)).key(key).headers(headers);
        record.payload = payload;
        producer.send(record).map_err(|(error, _)| refused(error))
    }

    /// Why it is beyond use, in librdkafka's words; of an event it only says that it is.
    #[must_use]
    pub(crate) fn fatal_reason(&self) -> Option<String> {
        let error = [Some(&self.many), self.alone.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|producer| producer.client().fatal_error());
        error.map(|(code, words)| format!("{code}: {words}"))
    }

    /// Throws away what is not answered yet and closes the connections. Blocks for up to a second.
    pub(crate) fn discard(self) {
        for producer in [Some(self.many), self.alone].into_iter().flatten() {
            producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        }
    }
}

/// The CloudEvents attributes of an order's event.
pub(crate) fn attributes<'a>(event: &'a OrderEvent, order: Uuid, source: &'a str) -> Attributes<&'a str> {
    Attributes {
        id: EventId::from(event.event_id),
        source,
        kind: &event.kind,
        subject: order,
        time: event.created_at,
        version: event.version,
        traceparent: event.traceparent.as_deref(),
        tracestate: event.tracestate.as_deref(),
    }
}

/// The headers of a foreign table's event: `id`, and what was asked for.
fn foreign_headers(event: &ForeignEvent) -> OwnedHeaders {
    let id = Header { key: "id", value: Some(event.id.as_str()) };
    let headers = OwnedHeaders::new_with_capacity(1 + event.headers.len()).insert(id);
    event
        .headers
        .iter()
        .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use uuid::Uuid;

    use super::*;
    use crate::publish::row::testing::row;

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
    fn a_producer_has_the_properties_as_they_were_given_passwords_too_and_defaults_beside_them() {
        let settings = Settings {
            brokers: "localhost:9092".into(),
            topic: "orders".into(),
            source: "/orders".into(),
            properties: "sasl.password=hunter2,linger.ms=5,client.id=ours".parse().expect("properties"),
        };
        for config in [settings.producer(false), settings.producer(true), settings.client()] {
            let native = config.create_native_config().expect("a configuration");
            assert_eq!(native.get("sasl.password").expect("set"), "hunter2");
            assert_eq!(native.get("client.id").expect("set"), "ours");
        }
        assert_eq!(settings.producer(false).get("linger.ms"), Some("5"));
        assert_eq!(settings.producer(false).get("compression.type"), Some("lz4"));
        assert_eq!(settings.producer(false).get("acks"), Some("all"));
    }

    /// Every code that librdkafka has.
    fn codes() -> impl Iterator<Item = RDKafkaErrorCode> {
        (-200..=200).filter_map(|number| RDKafkaRespErr::try_from(number).ok()).map(RDKafkaErrorCode::from)
    }

    /// The codes and verdicts of the table in the documentation.
    fn documented() -> BTreeMap<String, String> {
        let page = include_str!("../../docs/relay.md");
        let (_, section) = page.split_once("## What a refusal means").expect("the section");
        let mut table = BTreeMap::new();
        for row in
            section.lines().skip_while(|l| !l.starts_with('|')).skip(2).take_while(|l| l.starts_with('|'))
        {
            let [_, _, codes, verdict, ..] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            for code in codes.split(',').map(|code| code.trim().trim_matches('`')) {
                let before = table.insert(code.to_owned(), verdict.to_owned());
                assert_eq!(before, None, "{code} stands twice in the table");
            }
        }
        table
    }

    #[test]
    fn the_documentation_says_of_every_code_what_the_function_says() {
        let mut table = documented();
        let rest = table.remove("every other").expect("a row for every other code");
        let mut known = 0;
        for code in codes() {
            let verdict = super::verdict(&KafkaError::MessageProduction(code));
            let told = table.remove(&format!("{code:?}")).unwrap_or_else(|| rest.clone());
            assert_eq!(told, format!("{verdict:?}").to_lowercase(), "{code:?}");
            known += 1;
        }
        assert!(known > 150, "{known} codes");
        assert!(table.is_empty(), "no codes of librdkafka: {table:?}");
    }

    /// What the publisher hears of one event when the broker answers as told. librdkafka repeats by
    /// itself what it takes for passing; `answers` are used up by that.
    async fn heard_when_the_broker_says(answers: &[RDKafkaRespErr]) -> Input {
        let cluster = MockCluster::<DefaultProducerContext>::new(1).expect("a mock cluster");
        cluster.create_topic("orders", 1, 1).expect("a topic");
        cluster.request_errors(RDKafkaApiKey::Produce, answers);
        let settings = Settings {
            brokers: cluster.bootstrap_servers(),
            topic: "orders".into(),
            source: "/orders".into(),
            properties: "retry.backoff.ms=1,retry.backoff.max.ms=10".parse().expect("properties"),
        };
        let metrics = ClientMetrics::new(&prometheus::Registry::new()).expect("metrics");
        let (mut producer, mut heard) = Producer::new(settings, &metrics).expect("a producer");
        producer.send(&Due { row: Arc::new(row(7, Uuid::from_u128(1))), alone: false });
        let input = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                match heard.recv().await.expect("the producer is there") {
                    Answer::Event(input) => return input,
                    Answer::Trouble(_) => {}
                }
            }
        });
        let input = input.await.expect("an answer");
        tokio::task::spawn_blocking(move || producer.discard()).await.expect("closed");
        input
    }

    #[tokio::test]
    async fn what_a_broker_says_arrives_as_the_verdict_of_the_table() {
        use RDKafkaRespErr as Said;
        for (said, verdict) in [
            (Said::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Verdict::Permanent),
            (Said::RD_KAFKA_RESP_ERR_INVALID_RECORD, Verdict::Permanent),
            (Said::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Verdict::Transient),
            (Said::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, Verdict::Transient),
            (Said::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Verdict::Transient),
            (Said::RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE, Verdict::Transient),
        ] {
            let heard = heard_when_the_broker_says(&[said]).await;
            assert!(
                matches!(&heard, Input::Refused { event, verdict: heard, .. } if event.seq == 7 && *heard == verdict),
                "{said:?}: {heard:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_restart_a_new_leader_and_late_acknowledgements_pass_without_a_refusal() {
        use RDKafkaRespErr as Said;
        let heard = heard_when_the_broker_says(&[
            Said::RD_KAFKA_RESP_ERR__TRANSPORT,
            Said::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            Said::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            Said::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            Said::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            Said::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ])
        .await;
        assert!(matches!(&heard, Input::Acknowledged(event) if event.seq == 7), "{heard:?}");
    }
}
