//! Reading what lies on a topic, from given places up to an end that was fixed before. Blocks; to
//! be called off the async threads.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::ANSWER;
use crate::kafka::Settings;

/// Kafka counts as gone when it has nothing to say for so long though there is more to read.
const SILENCE: Duration = Duration::from_secs(30);

/// What there is of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its number.
    pub partition: i32,
    /// The first offset that is there.
    pub low: i64,
    /// One more than the last offset that is there.
    pub high: i64,
}

/// A reader of one topic.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    topic: String,
}

impl Reader {
    /// A reader of the topic of `settings`.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub(crate) fn new(settings: &Settings) -> Result<Self, KafkaError> {
        let consumer = settings
            .client()
            // librdkafka assigns partitions only with a group; this one is never joined.
            .set("group.id", "orders-relay-look")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .create()?;
        Ok(Self { consumer, topic: settings.topic.clone() })
    }

    /// The ids of the partitions.
    ///
    /// # Errors
    /// When Kafka does not answer or does not know the topic.
    pub(crate) fn partitions(&self) -> Result<Vec<i32>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), ANSWER)?;
        let topic =
            metadata.topics().first().ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic))?;
        match topic.error() {
            Some(error) => Err(KafkaError::MetadataFetch(error.into())),
            None => Ok(topic.partitions().iter().map(|partition| partition.id()).collect()),
        }
    }

    /// What there is now.
    ///
    /// # Errors
    /// When Kafka does not answer or does not know the topic.
    pub(crate) fn spans(&self) -> Result<Vec<Span>, KafkaError> {
        let span = |partition| {
            let (low, high) = self.consumer.fetch_watermarks(&self.topic, partition, ANSWER)?;
            Ok(Span { partition, low, high })
        };
        self.partitions()?.into_iter().map(span).collect()
    }

    /// The same spans, each beginning at the first message that is not older than `millis` (since
    /// 1970, the message's timestamp).
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub(crate) fn since(&self, spans: &[Span], millis: i64) -> Result<Vec<Span>, KafkaError> {
        let mut times = TopicPartitionList::new();
        for span in spans {
            times.add_partition_offset(&self.topic, span.partition, Offset::Offset(millis.max(0)))?;
        }
        let found = self.consumer.offsets_for_times(times, ANSWER)?;
        Ok(spans
            .iter()
            .map(|span| {
                let place = found.find_partition(&self.topic, span.partition).map(|place| place.offset());
                let low = match place {
                    Some(Offset::Offset(offset)) => offset.clamp(span.low, span.high),
                    // Nothing is that young.
                    _ => span.high,
                };
                Span { low, ..*span }
            })
            .collect())
    }

    /// Reads the spans and hands every message on, in the order of each partition, until all are
    /// read or `each` has seen enough.
    ///
    /// # Errors
    /// When Kafka fails for good, or is silent for 30 s though there is more to read.
    pub(crate) fn read(
        &self,
        spans: &[Span],
        mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let mut open: HashMap<i32, i64> = spans
            .iter()
            .filter(|span| span.low < span.high)
            .map(|span| (span.partition, span.high))
            .collect();
        let mut places = TopicPartitionList::new();
        for span in spans.iter().filter(|span| open.contains_key(&span.partition)) {
            places.add_partition_offset(&self.topic, span.partition, Offset::Offset(span.low))?;
        }
        self.consumer.assign(&places)?;
        let mut heard = Instant::now();
        while !open.is_empty() {
            let (partition, next) = match self.consumer.poll(Duration::from_millis(500)) {
                None if heard.elapsed() > SILENCE => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                }
                None => continue,
                // Also at the end of a partition whose last offsets are no messages.
                Some(Err(KafkaError::PartitionEOF(partition))) => (partition, i64::MAX),
                Some(Err(error)) if is_passing(&error) => continue,
                Some(Err(error)) => return Err(error),
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let wanted = open.get(&partition).is_some_and(|high| offset < *high);
                    if wanted && each(&message).is_break() {
                        break;
                    }
                    (partition, offset + 1)
                }
            };
            heard = Instant::now();
            if open.get(&partition).is_some_and(|high| next >= *high) {
                open.remove(&partition);
            }
        }
        self.consumer.unassign()
    }
}

/// librdkafka goes on by itself after these.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}
