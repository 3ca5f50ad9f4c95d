//! The inbox: makes the effect of an event happen once, although the event may be delivered again.
//!
//! For each batch of events, in one transaction of PostgreSQL: insert the dedup keys, call the
//! handler for those that were not there before, commit; then store the Kafka offset. A crash
//! anywhere in between delivers the events again, and the keys are there or are not. Effects outside
//! that transaction (an e-mail, a call) are at-least-once, and only that: [`Handler::outside`].
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | a repeat (same event id) | skipped and counted |
//! | a gap or a reordering (by `ce_orderversion`) | handled and counted, or taken aside: [`Settings::gaps`], [`Settings::reorderings`] |
//! | another event with an order and version that were handled | taken aside |
//! | an event that the handler refuses, [`Settings::attempts`] times | taken aside |
//! | a message that is no event of the contract | taken aside |
//! | a later event of an order of which one was taken aside | taken aside behind it |
//!
//! What is taken aside is kept whole in `inbox_dead`, in the transaction that settles it, and then
//! forwarded to the dead-letter topic with the reason and its original headers. It blocks its own
//! order only, until [`release`]. An outage (PostgreSQL, Kafka, what the handler needs) spends
//! nothing: the partitions are paused, the same events are tried again.

mod db;
mod dead;
mod delivery;
mod judge;
#[cfg(feature = "otel")]
pub mod otel;
mod run;
mod settings;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::Message;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sqlx::{PgConnection, PgPool};
use tracing::Instrument;

pub use self::dead::{Release, release};
pub use self::settings::{OutOfOrder, Settings};

use self::delivery::Delivery;
use self::judge::{Arrival, Verdict};
use self::run::Condition;
use crate::kafka::Event;
use crate::{EventId, UnknownEvent};

/// The tables of the inbox as SQL, for a database that has them not from elsewhere. Safe to run
/// again.
pub const SCHEMA: &str = include_str!("schema.sql");

/// Between two attempts of an event; the second wait is twice as long, and so on.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// What a consumer does with an event.
pub trait Handler: Send {
    /// Whether [`Handler::outside`] does anything: only then is it called.
    const OUTSIDE: bool = false;

    /// Applies the event through `connection`, which is inside the transaction that also holds the
    /// dedup key: both are committed or neither is. Called once per event, as far as committed
    /// effects go. No call over the network here: the transaction would stay open for as long.
    ///
    /// # Errors
    /// [`HandleError`] says whether the event is at fault or something is away.
    fn handle(
        &mut self,
        event: &Event,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<(), HandleError>> + Send;

    /// Effects that are not in PostgreSQL, before the transaction begins. At-least-once: the effect happens
    /// again, for up to [`Settings::batch`] events, when the process ends between it and the commit, and when
    /// the partition goes to another member in between, which takes the same events. A release begins anew
    /// each time: what was done of its order before a refusal or an outage is done again. It should be
    /// idempotent by `event.attributes.id`.
    ///
    /// # Errors
    /// [`HandleError`] says whether the event is at fault or something is away.
    fn outside(&mut self, event: &Event) -> impl Future<Output = Result<(), HandleError>> + Send {
        let _ = event;
        std::future::ready(Ok(()))
    }

    /// Called after what was committed, or came again.
    fn committed(&mut self, pass: &Pass) -> impl Future<Output = ()> + Send {
        let _ = pass;
        std::future::ready(())
    }

    /// Called by [`Inbox::run`] after every pass, and when there was nothing to do for a second.
    /// [`InboxError::DeadLetters`] is told of passes that went well.
    fn condition(&mut self, condition: Result<(), &InboxError>) {
        match condition {
            Ok(()) => {}
            Err(error @ InboxError::DeadLetters { .. }) => {
                tracing::warn!(%error, "dead events are kept back")
            }
            Err(error) => tracing::warn!(%error, "no progress, and waiting"),
        }
    }
}

/// A handler could not apply an event.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The event cannot be handled. It is tried [`Settings::attempts`] times and then taken aside.
    #[error("{0}")]
    Refused(String),
    /// Something that the handler needs is away. Nothing is spent: the event is tried until it is back.
    #[error("{0}")]
    Unavailable(String),
    /// A statement failed. Its SQLSTATE tells which of the two it is; unknown means away.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<UnknownEvent> for HandleError {
    fn from(error: UnknownEvent) -> Self {
        match error {
            UnknownEvent::Data { kind, source } => {
                Self::Refused(format!("the data of a `{kind}` event is malformed: {source}"))
            }
            UnknownEvent::Type(_) => Self::Refused(error.to_string()),
        }
    }
}

/// What passes did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Events whose effect is now committed.
    pub handled: usize,
    /// Events that had been handled before, or lay aside before.
    pub repeated: usize,
    /// Of the handled ones, those before which versions of their order are missing.
    pub gaps: usize,
    /// Of the handled ones, those that came after a later version of their order.
    pub reordered: usize,
    /// Messages that were taken aside.
    pub dead: usize,
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
    /// What the handler needs is away.
    #[error("{0}")]
    Unavailable(String),
    /// The dead-letter topic refuses; the dead events are kept meanwhile and hold nothing up.
    #[error("dead-letter topic {topic}: {source}")]
    DeadLetters {
        /// Its name.
        topic: String,
        /// What Kafka says.
        source: KafkaError,
    },
}

/// What a failed attempt says of the event.
enum Fault {
    /// The event is at fault.
    Event(String),
    /// Something is away.
    Away(InboxError),
}

impl From<HandleError> for Fault {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Refused(reason) => Self::Event(reason),
            HandleError::Unavailable(reason) => Self::Away(InboxError::Unavailable(reason)),
            HandleError::Database(error) => error.into(),
        }
    }
}

impl From<sqlx::Error> for Fault {
    /// Data exceptions (class 22), broken constraints (23), errors raised by functions (P0) and
    /// values that do not fit are the event's fault. What is not known to be is an outage, because
    /// waiting loses nothing.
    fn from(error: sqlx::Error) -> Self {
        let of_the_event = match &error {
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| ["22", "23", "P0"].iter().any(|class| code.starts_with(class))),
            sqlx::Error::RowNotFound
            | sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. } => true,
            _ => false,
        };
        if of_the_event { Self::Event(error.to_string()) } else { Self::Away(InboxError::Database(error)) }
    }
}

/// A consumer of the topic with its dedup keys in PostgreSQL.
pub struct Inbox<H> {
    consumer: StreamConsumer,
    pool: PgPool,
    settings: Settings,
    handler: H,
    /// Taken from Kafka and not yet settled: tried again first.
    taken: Vec<Delivery>,
    /// The next offset to store per partition, once nothing is taken any more.
    next: HashMap<(String, i32), i64>,
    /// What was committed and not yet told.
    pass: Pass,
    condition: Condition,
}

impl<H: Handler> Inbox<H> {
    /// Joins the consumer group. Blocks for a moment, connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn start(settings: Settings, pool: PgPool, handler: H) -> Result<Self, KafkaError> {
        Ok(Self {
            consumer: settings.consumer()?,
            pool,
            settings,
            handler,
            taken: Vec::new(),
            next: HashMap::new(),
            pass: Pass::default(),
            condition: Condition::default(),
        })
    }

    /// Waits until there is something for [`Inbox::run_once`] to do. Cancelling loses nothing.
    async fn wait(&mut self) -> Result<(), InboxError> {
        if self.taken.is_empty() && self.next.is_empty() {
            self.take_one().await?;
        }
        Ok(())
    }

    /// Waits until something is there, takes it, and settles it. After an error, what was taken is
    /// tried again by the next call.
    async fn run_once(&mut self) -> Result<Pass, InboxError> {
        self.wait().await?;
        // What has arrived meanwhile shares the transaction.
        while self.taken.len() < self.settings.batch {
            match self.take_one().now_or_never() {
                Some(taken) => taken?,
                None => break,
            }
        }
        self.settle().await?;
        self.store_offsets()?;
        Ok(std::mem::take(&mut self.pass))
    }

    async fn take_one(&mut self) -> Result<(), InboxError> {
        let message = self.consumer.recv().await?.detach();
        self.next.insert((message.topic().to_owned(), message.partition()), message.offset() + 1);
        self.taken.push(Delivery::new(message));
        Ok(())
    }

    /// All together; when one is refused, one by one, so that it harms no other.
    async fn settle(&mut self) -> Result<(), InboxError> {
        let mut together = self.taken.len();
        while !self.taken.is_empty() {
            match self.attempt(together).await {
                Ok(pass) => {
                    self.pass += pass;
                    self.taken.drain(..together);
                    together = self.taken.len().min(1);
                }
                Err(Fault::Away(error)) => return Err(error),
                Err(Fault::Event(_)) if together > 1 => together = 1,
                Err(Fault::Event(reason)) => {
                    let delivery = &mut self.taken[0];
                    delivery.refused(reason);
                    if delivery.attempts < self.settings.attempts {
                        tokio::time::sleep(BETWEEN_ATTEMPTS * 2_u32.pow(delivery.attempts.min(8) - 1)).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Settles the first `count` of what is taken in one transaction.
    async fn attempt(&mut self, count: usize) -> Result<Pass, Fault> {
        if H::OUTSIDE {
            self.outside(count).await?;
        }
        let settings = &self.settings;
        let taken = &self.taken[..count];
        let events: Vec<&Event> = taken.iter().filter_map(|delivery| delivery.event.as_ref().ok()).collect();
        let mut transaction = self.pool.begin().await?;
        let mut facts = db::claim(&mut transaction, &settings.name, &events).await?;
        let mut pass = Pass::default();
        let mut unhandled: Vec<EventId> = Vec::new();
        for delivery in taken {
            match delivery.verdict(&facts, settings) {
                Verdict::Repeat => pass.repeated += 1,
                Verdict::Handle(arrival) => {
                    // Only what is readable is to be handled.
                    let Ok(event) = &delivery.event else { continue };
                    if H::OUTSIDE && !delivery.outside_done {
                        // Another member, or a release, has changed what is known since we looked.
                        let reason = "what is known of the order has changed".to_owned();
                        return Err(Fault::Away(InboxError::Unavailable(reason)));
                    }
                    let span = (settings.span)(event);
                    self.handler.handle(event, &mut transaction).instrument(span).await?;
                    facts.handled(&event.attributes);
                    pass.handled += 1;
                    pass.count(arrival, event);
                }
                Verdict::Bury(cause, reason) => {
                    if db::bury(&mut transaction, &settings.name, delivery, cause, &reason).await? {
                        delivery.tell_dead(cause, &reason);
                        pass.dead += 1;
                    } else {
                        pass.repeated += 1;
                    }
                    unhandled.extend(delivery.event_id().filter(|id| facts.new.contains(id)));
                    facts.block(delivery.order());
                }
            }
        }
        if !unhandled.is_empty() {
            db::unclaim(&mut transaction, &settings.name, &unhandled).await?;
        }
        transaction.commit().await?;
        Ok(pass)
    }

    /// The effects outside PostgreSQL of those events among the first `count` that will be handled.
    async fn outside(&mut self, count: usize) -> Result<(), Fault> {
        let settings = &self.settings;
        let taken = &mut self.taken[..count];
        let events: Vec<&Event> = taken.iter().filter_map(|delivery| delivery.event.as_ref().ok()).collect();
        let mut connection = self.pool.acquire().await?;
        let mut facts = db::look(&mut connection, &settings.name, &events).await?;
        drop(connection);
        for delivery in taken {
            match (delivery.verdict(&facts, settings), &delivery.event) {
                (Verdict::Handle(_), Ok(event)) => {
                    if !delivery.outside_done {
                        self.handler.outside(event).instrument((settings.span)(event)).await?;
                        delivery.outside_done = true;
                    }
                    facts.handled(&event.attributes);
                }
                (Verdict::Bury(..), _) => facts.block(delivery.order()),
                _ => {}
            }
        }
        Ok(())
    }

    fn store_offsets(&mut self) -> Result<(), InboxError> {
        let mut failed = None;
        for ((topic, partition), next) in self.next.drain() {
            match self.consumer.store_offset(&topic, partition, next - 1) {
                // The partition went to another member meanwhile; it recognises the repeats.
                Ok(()) | Err(KafkaError::StoreOffset(RDKafkaErrorCode::State)) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Leaves the group in good order: what is settled is committed, so that nothing is repeated.
    /// Blocks while Kafka answers; to be called off the async threads.
    fn close(self) {
        // Nothing stored, or Kafka away: the events come again and are recognised.
        let _ = self.consumer.commit_consumer_state(CommitMode::Sync);
        self.consumer.unsubscribe();
    }
}

impl Pass {
    /// Counts, and says once, what came out of order.
    fn count(&mut self, arrival: Arrival, event: &Event) {
        let (order, version) = (event.attributes.subject, event.attributes.version);
        match arrival {
            Arrival::Next => {}
            Arrival::Gap { after } => {
                self.gaps += 1;
                tracing::warn!(order.id = %order, version, after, "a gap: versions of the order are missing");
            }
            Arrival::Reordered { after } => {
                self.reordered += 1;
                tracing::warn!(order.id = %order, version, after, "a reordering: a later version came before");
            }
        }
    }
}

impl std::ops::AddAssign for Pass {
    fn add_assign(&mut self, other: Self) {
        self.handled += other.handled;
        self.repeated += other.repeated;
        self.gaps += other.gaps;
        self.reordered += other.reordered;
        self.dead += other.dead;
    }
}
