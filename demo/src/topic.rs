//! Topics from outside: making one, and reading everything that lies on it.

mod follow;

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

pub use self::follow::{Follower, Seen};

/// How long a new topic may take until every partition has a leader.
const LEADERS: Duration = Duration::from_secs(20);

/// A message as it lies on a topic.
#[derive(Clone, Debug)]
pub struct Message {
    /// Partition number.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// Milliseconds since 1970, the producer's or the broker's.
    pub timestamp_millis: Option<i64>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The headers in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

impl Message {
    /// The first header of that name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
    }
}

impl From<BorrowedMessage<'_>> for Message {
    fn from(message: BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_millis: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            value: message.payload().map(<[u8]>::to_vec),
        }
    }
}

/// Why a topic could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// Kafka does not answer, or refuses.
    #[error("Kafka at {brokers} refused {what}")]
    Kafka {
        /// The brokers asked.
        brokers: String,
        /// What was asked of them.
        what: String,
        /// librdkafka's reason.
        #[source]
        source: Box<KafkaError>,
    },
    /// There was more to read than could be read in time.
    #[error("{read} messages of {topic} were read after {} s, and there are more", waited.as_secs())]
    Late {
        /// The topic.
        topic: String,
        /// How many were read.
        read: usize,
        /// For how long.
        waited: Duration,
    },
}

fn refused<'a>(brokers: &'a str, what: impl Into<String> + 'a) -> impl FnOnce(KafkaError) -> TopicError + 'a {
    move |source| TopicError::Kafka {
        brokers: brokers.to_owned(),
        what: what.into(),
        source: Box::new(source),
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set_log_level(RDKafkaLogLevel::Critical);
    config
}

/// Creates a topic with one replica; one that is there already stays as it is.
///
/// # Errors
/// [`TopicError::Kafka`] when the broker does not answer or refuses.
pub async fn create(brokers: &str, topic: &str, partitions: i32) -> Result<(), TopicError> {
    create_with(brokers, topic, partitions, 1, &[]).await
}

/// The same with settings of the topic.
///
/// # Errors
/// As [`create`].
pub async fn create_with(
    brokers: &str,
    topic: &str,
    partitions: i32,
    replicas: i32,
    settings: &[(&str, &str)],
) -> Result<(), TopicError> {
    let what = || format!("topic {topic}");
    let admin: AdminClient<DefaultClientContext> =
        config(brokers).create().map_err(refused(brokers, what()))?;
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let results = admin.create_topics([&new], &options).await.map_err(refused(brokers, what()))?;
    for (_, code) in results.into_iter().filter_map(Result::err) {
        if code != RDKafkaErrorCode::TopicAlreadyExists {
            return Err(refused(brokers, what())(KafkaError::AdminOp(code)));
        }
    }
    let (asked, name) = (brokers.to_owned(), topic.to_owned());
    // Done is when every partition answers, not when the controller has noted the topic down.
    blocking(move || watermarks(&consumer(&asked)?, &asked, &name)).await.map(drop)
}

/// Everything that lies on a topic now, partition by partition in order of offset. Joins no group
/// and commits nothing.
///
/// # Errors
/// [`TopicError::Kafka`] when the broker does not answer, [`TopicError::Late`] past the limit.
pub async fn read(brokers: &str, topic: &str, limit: Duration) -> Result<Vec<Message>, TopicError> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || read_blocking(&brokers, &topic, limit)).await
}

/// How many messages lie on a topic now, transaction markers included.
///
/// # Errors
/// [`TopicError::Kafka`] when the broker does not answer.
pub async fn count(brokers: &str, topic: &str) -> Result<i64, TopicError> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let consumer = consumer(&brokers)?;
        Ok(watermarks(&consumer, &brokers, &topic)?.iter().map(|(_, low, high)| high - low).sum())
    })
    .await
}

/// Whether a consumer group has its partitions. A group that is not there has none.
///
/// # Errors
/// [`TopicError::Kafka`] when the broker does not answer.
pub async fn group_is_stable(brokers: &str, group: Option<&str>) -> Result<bool, TopicError> {
    let (brokers, group) = (brokers.to_owned(), group.map(str::to_owned));
    blocking(move || {
        let groups = consumer(&brokers)?
            .fetch_group_list(group.as_deref(), Duration::from_secs(10))
            .map_err(refused(&brokers, "its groups"))?;
        Ok(groups.groups().iter().any(|group| group.state() == "Stable" && !group.members().is_empty()))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TopicError> + Send + 'static,
) -> Result<T, TopicError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn consumer(brokers: &str) -> Result<BaseConsumer, TopicError> {
    config(brokers)
        // Without a group id librdkafka logs a complaint; nothing is ever committed with this one.
        .set("group.id", "demo-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .map_err(refused(brokers, "a consumer"))
}

/// Partition, first and next offset. Waits for the leaders of a topic that was just made.
fn watermarks(
    consumer: &BaseConsumer,
    brokers: &str,
    topic: &str,
) -> Result<Vec<(i32, i64, i64)>, TopicError> {
    let start = Instant::now();
    loop {
        match watermarks_now(consumer, topic) {
            Err(error) if is_passing(&error) && start.elapsed() < LEADERS => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result.map_err(refused(brokers, topic)),
        }
    }
}

fn watermarks_now(consumer: &BaseConsumer, topic: &str) -> Result<Vec<(i32, i64, i64)>, KafkaError> {
    let limit = Duration::from_secs(10);
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let topics = metadata.topics();
    if let Some(error) = topics.iter().find_map(MetadataTopic::error) {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    topics
        .iter()
        .flat_map(MetadataTopic::partitions)
        .map(|partition| {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), limit)?;
            Ok((partition.id(), low, high))
        })
        .collect()
}

/// What a topic answers while its leaders are not known everywhere yet.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
        )
    )
}

fn read_blocking(brokers: &str, topic: &str, limit: Duration) -> Result<Vec<Message>, TopicError> {
    let start = Instant::now();
    let consumer = consumer(brokers)?;
    let mut unread = watermarks(&consumer, brokers, topic)?;
    unread.retain(|(_, low, high)| low < high);
    let mut assignment = TopicPartitionList::new();
    for (partition, low, _) in &unread {
        assignment
            .add_partition_offset(topic, *partition, Offset::Offset(*low))
            .map_err(refused(brokers, topic))?;
    }
    consumer.assign(&assignment).map_err(refused(brokers, topic))?;
    let mut messages: Vec<Message> = Vec::new();
    while !unread.is_empty() {
        if start.elapsed() > limit {
            return Err(TopicError::Late { topic: topic.to_owned(), read: messages.len(), waited: limit });
        }
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => {
                // What came after the start of the reading is not asked for.
                let high = unread.iter().find(|(partition, ..)| *partition == message.partition());
                if high.is_some_and(|(_, _, high)| message.offset() < *high) {
                    let (partition, offset) = (message.partition(), message.offset());
                    messages.push(message.into());
                    unread.retain(|(p, _, high)| *p != partition || offset + 1 < *high);
                }
            }
            // A partition may end with a transaction's marker, which is no message.
            Some(Err(KafkaError::PartitionEOF(partition))) => unread.retain(|(p, ..)| *p != partition),
            // Connections come and go while a broker restarts; the limit ends the waiting.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
            ))) => {}
            Some(Err(error)) => return Err(refused(brokers, topic)(error)),
        }
    }
    messages.sort_by_key(|message| (message.partition, message.offset));
    Ok(messages)
}
