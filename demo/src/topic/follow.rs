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
        let consumer = super::blocking(move || assigned(&asked, &name)).await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (counter, count) = watch::channel(0);
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

fn assigned(brokers: &str, topic: &str) -> Result<BaseConsumer, TopicError> {
    let consumer = consumer(brokers)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, _, high) in watermarks(&consumer, brokers, topic)? {
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(high))
            .map_err(refused(brokers, topic))?;
    }
    consumer.assign(&assignment).map_err(refused(brokers, topic))?;
    Ok(consumer)
}
