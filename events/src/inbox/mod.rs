//! The inbox: makes the effect of an event happen once, although the event may be delivered again.
//!
//! For each batch of events, in one transaction of PostgreSQL: insert the dedup keys, call the
//! handler for those that were not there before, commit; then store the Kafka offset. A crash
//! anywhere in between delivers the events again, and the keys are there or are not. An effect of
//! the handler outside the transaction (an e-mail, a call) is at-least-once, and only that.

mod db;

use std::collections::{HashMap, HashSet};

use futures_util::FutureExt;
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sqlx::{PgConnection, PgPool};

use crate::kafka::Event;

/// At most so many events share a transaction.
const BATCH: usize = 256;

/// What a consumer does with an event.
pub trait Handler {
    /// Applies the event through `connection`, which is inside the transaction that also holds the
    /// dedup key: both are committed or neither is. Called once per event, as far as committed
    /// effects go; after a failure the same event comes again.
    ///
    /// # Errors
    /// A database error: the whole batch is rolled back and tried again.
    fn handle(
        &mut self,
        event: &Event,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// A consumer of the topic with its dedup keys in PostgreSQL.
pub struct Inbox<H> {
    consumer: StreamConsumer,
    pool: PgPool,
    name: String,
    handler: H,
    /// Taken from Kafka and not yet committed: tried again first.
    taken: Vec<Event>,
    /// The next offset to store per partition, unreadable messages included.
    next: HashMap<(String, i32), i64>,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Events whose effect is now committed.
    pub handled: usize,
    /// Events that had been handled before.
    pub repeated: usize,
}

/// A pass that did not work out. Nothing is lost: the next pass tries the same events again.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The consumer reports trouble.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The transaction failed.
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
}

/// Creates the consumer group member `group` of `topic`. `config` says how to reach Kafka; the
/// settings on which the inbox rests are set here: an offset is stored only after the commit.
///
/// # Errors
/// When librdkafka refuses the configuration.
pub fn consumer(mut config: ClientConfig, group: &str, topic: &str) -> Result<StreamConsumer, KafkaError> {
    let consumer: StreamConsumer = config
        .set("group.id", group)
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
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

impl<H: Handler> Inbox<H> {
    /// An inbox named `name`: the dedup keys are kept under this name, so two consumers of one
    /// database do not see each other's.
    pub fn new(consumer: StreamConsumer, pool: PgPool, name: impl Into<String>, handler: H) -> Self {
        Self { consumer, pool, name: name.into(), handler, taken: Vec::new(), next: HashMap::new() }
    }

    /// Waits until there is something for [`Inbox::run_once`] to do. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`InboxError::Kafka`]; call it again after a while.
    pub async fn wait(&mut self) -> Result<(), InboxError> {
        if self.taken.is_empty() && self.next.is_empty() {
            self.take_one().await?;
        }
        Ok(())
    }

    /// Waits until something is there, takes it, and handles it.
    ///
    /// # Errors
    /// [`InboxError`]; call it again after a while: what was taken is tried again.
    pub async fn run_once(&mut self) -> Result<Pass, InboxError> {
        self.wait().await?;
        // What has arrived meanwhile shares the transaction.
        while self.taken.len() < BATCH {
            match self.take_one().now_or_never() {
                Some(taken) => taken?,
                None => break,
            }
        }
        let pass = self.commit().await?;
        self.taken.clear();
        self.store_offsets()?;
        Ok(pass)
    }

    async fn take_one(&mut self) -> Result<(), InboxError> {
        let message = self.consumer.recv().await?;
        match Event::from_message(&message) {
            Ok(event) => self.taken.push(event),
            Err(error) => tracing::error!(
                kafka.topic = message.topic(),
                kafka.partition = message.partition(),
                kafka.offset = message.offset(),
                %error,
                "skipping a message that is not an event of the contract"
            ),
        }
        self.next.insert((message.topic().to_owned(), message.partition()), message.offset() + 1);
        Ok(())
    }

    async fn commit(&mut self) -> Result<Pass, InboxError> {
        if self.taken.is_empty() {
            return Ok(Pass::default());
        }
        let mut transaction = self.pool.begin().await?;
        let mut new: HashSet<_> =
            db::insert(&mut transaction, &self.name, &self.taken).await?.into_iter().collect();
        let mut pass = Pass::default();
        for event in &self.taken {
            if new.remove(&event.attributes.id) {
                self.handler.handle(event, &mut transaction).await?;
                pass.handled += 1;
            } else {
                pass.repeated += 1;
            }
        }
        transaction.commit().await?;
        Ok(pass)
    }

    fn store_offsets(&mut self) -> Result<(), InboxError> {
        for ((topic, partition), next) in self.next.drain() {
            match self.consumer.store_offset(&topic, partition, next - 1) {
                // The partition went to another member meanwhile; it recognises the repeats.
                Ok(()) | Err(KafkaError::StoreOffset(RDKafkaErrorCode::State)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Leaves the group in good order: what is handled is committed, so that nothing is repeated.
    /// Blocks while Kafka answers; to be called off the async threads.
    pub fn close(self) {
        // Nothing stored, or Kafka away: the events come again and are recognised.
        let _ = self.consumer.commit_consumer_state(CommitMode::Sync);
        self.consumer.unsubscribe();
    }
}
