//! Following a topic while it grows: what came and when it was seen.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Message, TopicError, consumer, refused, watermarks};

/// How long a start waits for the fetching to begin.
const SETTLES: Duration = Duration::from_secs(5);

/// A message and when it was seen here.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The message.
    pub message: Message,
    /// When this process had it in hand.
    pub at: Instant,
}

/// Collects what comes to a topic from now on; dropping it ends that.
#[derive(Debug)]
pub struct Follower {
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Receiver<usize>,
    _end: DropGuard,
}

impl Follower {
    /// Starts behind what lies on the topic now.
    ///
    /// # Errors
    /// [`TopicError::Kafka`] when the broker does not answer or there is no such topic.
    pub async fn start(brokers: &str, topic: &str) -> Result<Self, TopicError> {
        let (asked, name) = (brokers.to_owned(), topic.to_owned());
        let (consumer, since) = super::blocking(move || assigned(&asked, &name)).await?;
        let (counter, count) = watch::channel(since.len());
        let seen = Arc::new(Mutex::new(since));
        let cancel = CancellationToken::new();
        let (store, ended) = (Arc::clone(&seen), cancel.clone());
        thread::spawn(move || {
            while !ended.is_cancelled() {
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => {
                        let seen = Seen { message: message.into(), at: Instant::now() };
                        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
                        store.push(seen);
                        counter.send_replace(store.len());
                    }
                    // librdkafka reconnects; whoever waits has a deadline.
                    None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                    Some(Err(error)) => tracing::debug!(%error, "following a topic"),
                }
            }
        });
        Ok(Self { seen, count, _end: cancel.drop_guard() })
    }

    /// Looks at everything seen so far.
    pub fn read<T>(&self, read: impl FnOnce(&[Seen]) -> T) -> T {
        read(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first message that `wanted` takes; `None` past the limit.
    pub async fn find(&self, wanted: impl Fn(&Message) -> bool, limit: Duration) -> Option<Seen> {
        let mut count = self.count.clone();
        let found = async {
            loop {
                count.borrow_and_update();
                let found = self.read(|seen| seen.iter().find(|seen| wanted(&seen.message)).cloned());
                if found.is_some() || count.changed().await.is_err() {
                    return found;
                }
            }
        };
        tokio::time::timeout(limit, found).await.ok().flatten()
    }
}

/// A consumer that stands at the end of every partition, and the messages that have come since.
fn assigned(brokers: &str, topic: &str) -> Result<(BaseConsumer, Vec<Seen>), TopicError> {
    let start = Instant::now();
    let consumer = consumer(brokers)?;
    let mut ends = watermarks(&consumer, brokers, topic)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, _, high) in &ends {
        assignment
            .add_partition_offset(topic, *partition, Offset::Offset(*high))
            .map_err(refused(brokers, topic))?;
    }
    consumer.assign(&assignment).map_err(refused(brokers, topic))?;
    // librdkafka takes up to a second to begin fetching: the times of what comes later must not
    // have that in them. A partition whose end was reached is being fetched.
    let mut seen = Vec::new();
    while !ends.is_empty() && start.elapsed() < SETTLES {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => seen.push(Seen { message: message.into(), at: Instant::now() }),
            Some(Err(KafkaError::PartitionEOF(partition))) => ends.retain(|(p, ..)| *p != partition),
            None | Some(Err(_)) => {}
        }
    }
    Ok((consumer, seen))
}
