//! Dead events: forwarding them to the dead-letter topic, and bringing them back.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use sqlx::PgPool;
use tokio::sync::Notify;
use tracing::Instrument;
use uuid::Uuid;

use super::db::{self, Dead};
use super::delivery::Delivery;
use super::judge::Cause;
use super::{Fault, Handler, Inbox, InboxError, Settings};
use crate::OrderId;
use crate::kafka::Event;

/// At most so many dead events are forwarded at once.
const FORWARDED_AT_ONCE: i64 = 100;
/// Between two looks for something to forward that was not told of: others of the group forward it too.
const BETWEEN_LOOKS: Duration = Duration::from_secs(30);
/// Between two tries to forward what did not get through.
const BETWEEN_TRIES: Duration = Duration::from_secs(5);
/// How long the dead-letter topic may take.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);
/// What the topic has refused is sent again after so long: it may take larger messages by then.
const REFUSED: Duration = Duration::from_secs(60);

/// How a blocked order goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// All its dead events are handled again, in order.
    Retry,
    /// The first one is given up and counts as handled; the others are handled again.
    Skip,
}

/// Asks for the release of a blocked order. A running inbox of that name does it within five seconds,
/// in one transaction: if an event is refused again, those before it are handled, and the order stays
/// blocked from there on, with the new reason. False when the order is not blocked.
///
/// # Errors
/// When the database cannot be reached.
pub async fn release(pool: &PgPool, name: &str, order: OrderId, how: Release) -> Result<bool, sqlx::Error> {
    let how = match how {
        Release::Retry => "retry",
        Release::Skip => "skip",
    };
    db::ask_release(&mut *pool.acquire().await?, name, order.as_uuid(), how).await
}

/// Forwards dead events to the dead-letter topic: at once what this member took aside, and now and then what is
/// there. Nothing waits for it. Each member of the group does it and knows nothing of the others, so a dead event
/// may go there as often as there are members.
pub(super) struct Letters {
    pool: PgPool,
    consumer: String,
    config: ClientConfig,
    topic: String,
    /// Made when there is something to forward.
    producer: Option<FutureProducer>,
    refused: Refused,
    shared: Arc<Shared>,
}

/// What the loop of an inbox and its [`Letters`] tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Told when something was taken aside.
    pub(super) aside: Notify,
    /// Why something does not get through at present.
    pub(super) trouble: Mutex<Option<InboxError>>,
}

/// What the topic refuses because of the dead event itself: left out for a while, so that it holds up no other.
struct Refused {
    dead: Vec<i64>,
    last: Option<KafkaError>,
    since: Instant,
}

impl Refused {
    fn none() -> Self {
        Self { dead: Vec::new(), last: None, since: Instant::now() }
    }
}

impl Letters {
    pub(super) fn new(settings: &Settings, pool: PgPool, shared: Arc<Shared>) -> Self {
        let mut config = settings.kafka.clone();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            // A broker refuses a batch whole: one that is too large would take others with it.
            .set("batch.num.messages", "1")
            // A dead event is larger than it was, by its reason: what is too large the topic says.
            .set("message.max.bytes", "1000000000")
            .set("message.timeout.ms", ACKNOWLEDGED.as_millis().to_string());
        let (consumer, topic) = (settings.name.clone(), settings.dead_letter_topic.clone());
        Self { pool, consumer, config, topic, producer: None, refused: Refused::none(), shared }
    }

    /// Forwards what comes, for ever.
    pub(super) async fn run(mut self) {
        loop {
            if self.refused.since.elapsed() >= REFUSED {
                self.refused = Refused::none();
            }
            let trouble = match self.forward().await {
                Ok(()) => self.refused.last.clone().map(|source| self.dead_letters(source)),
                Err(error) => Some(error),
            };
            let well = trouble.is_none();
            *self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
            if well {
                // Told, or time for a look: either way there may be something.
                if tokio::time::timeout(BETWEEN_LOOKS, self.shared.aside.notified()).await.is_err() {
                    self.close().await;
                }
            } else {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        }
    }

    /// Forwards what lies aside and was not acknowledged yet. A crash in between forwards it again,
    /// with the same event id.
    async fn forward(&mut self) -> Result<(), InboxError> {
        loop {
            let mut connection = self.pool.acquire().await?;
            let dead =
                db::unforwarded(&mut connection, &self.consumer, &self.refused.dead, FORWARDED_AT_ONCE)
                    .await?;
            drop(connection);
            if dead.is_empty() {
                return Ok(());
            }
            let producer = match self.producer.take() {
                Some(producer) => producer,
                None => self.config.create().map_err(|source| self.dead_letters(source))?,
            };
            let sent =
                join_all(dead.iter().map(|dead| send(&producer, &self.topic, &self.consumer, dead))).await;
            self.producer = Some(producer);
            let (mut acknowledged, mut away) = (Vec::new(), None);
            for (dead, sent) in dead.iter().zip(sent) {
                match sent {
                    Ok(()) => acknowledged.push(dead.dead_id),
                    Err(error) if is_of_the_event(&error) => {
                        self.refused.dead.push(dead.dead_id);
                        self.refused.last = Some(error);
                    }
                    Err(error) => away = Some(error),
                }
            }
            db::forwarded(&mut *self.pool.acquire().await?, &acknowledged).await?;
            if let Some(error) = away {
                return Err(self.dead_letters(error));
            }
        }
    }

    /// Lets go of a producer that had nothing to do: idle, rdkafka's own thread takes 1 % of a core.
    async fn close(&mut self) {
        if let Some(producer) = self.producer.take() {
            // Its end is waited for, a tenth of a second or so.
            let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
        }
    }

    fn dead_letters(&self, source: KafkaError) -> InboxError {
        InboxError::DeadLetters { topic: self.topic.clone(), source }
    }
}

/// Whether Kafka refuses this dead event, and would take another one.
fn is_of_the_event(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidRecord, MessageBatchTooLarge, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | MessageBatchTooLarge | InvalidRecord))
}

/// Sends one dead event with its original headers and why it is dead.
async fn send(producer: &FutureProducer, topic: &str, consumer: &str, dead: &Dead) -> Result<(), KafkaError> {
    let message = &dead.message;
    let (partition, offset) = (message.partition().to_string(), message.offset().to_string());
    let why = [
        ("dead_consumer", consumer),
        ("dead_cause", &dead.cause),
        ("dead_reason", &dead.reason),
        ("dead_topic", message.topic()),
        ("dead_partition", &partition),
        ("dead_offset", &offset),
    ];
    let original = message.headers().cloned().unwrap_or_else(OwnedHeaders::new);
    let headers = why
        .into_iter()
        .fold(original, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    let mut record = FutureRecord::<[u8], [u8]>::to(topic).headers(headers);
    record.key = message.key();
    record.payload = message.payload();
    producer.send(record, Timeout::After(ACKNOWLEDGED)).await.map(drop).map_err(|(error, _)| error)
}

impl<H: Handler> Inbox<H> {
    /// Releases the orders for which somebody has asked.
    pub(super) async fn release_asked(&mut self) -> Result<(), InboxError> {
        let asked = db::to_release(&mut *self.pool.acquire().await?, &self.settings.name).await?;
        for (order, skip) in asked {
            self.release_order(order, skip).await?;
        }
        Ok(())
    }

    async fn release_order(&mut self, order: Uuid, skip: bool) -> Result<(), InboxError> {
        let outside = if H::OUTSIDE { self.release_outside(order, skip).await? } else { HashSet::new() };
        let name = self.settings.name.clone();
        let mut handled = 0;
        let mut transaction = self.pool.begin().await?;
        if !db::lock_blocked(&mut transaction, &name, order).await? {
            return Ok(());
        }
        let mut refused = false;
        for (position, dead) in db::dead_of(&mut transaction, &name, order).await?.into_iter().enumerate() {
            let (dead_id, reason) = (dead.dead_id, dead.reason);
            let delivery = Delivery::new(dead.message);
            let given_up = skip && position == 0;
            let result = match &delivery.event {
                Err(_) if given_up => Ok(()),
                Err(error) => Err(Fault::Event(error.to_string())),
                Ok(event) => {
                    let new = !db::claim(&mut transaction, &name, &[event]).await?.new.is_empty();
                    if !new || given_up {
                        Ok(())
                    } else if H::OUTSIDE && !outside.contains(&dead_id) {
                        // Refused by `outside`, or come aside after it.
                        Err(Fault::Event(reason))
                    } else {
                        self.handle_alone(event, &mut transaction).await.map(|()| handled += 1)
                    }
                }
            };
            match result {
                Ok(()) => db::unbury(&mut transaction, dead_id).await?,
                Err(Fault::Away(error)) => return Err(error),
                Err(Fault::Event(reason)) => {
                    if let Ok(event) = &delivery.event {
                        db::unclaim(&mut transaction, &name, &[event.attributes.id]).await?;
                    }
                    delivery.tell_dead(Cause::Refused, &reason);
                    db::refused_again(&mut transaction, &name, order, dead_id, &reason).await?;
                    refused = true;
                    break;
                }
            }
        }
        if !refused {
            db::unblock(&mut transaction, &name, order).await?;
        }
        transaction.commit().await?;
        self.pass.handled += handled;
        Ok(())
    }

    /// In a savepoint: what a refusing handler has written is undone.
    async fn handle_alone(
        &mut self,
        event: &Event,
        connection: &mut sqlx::PgConnection,
    ) -> Result<(), Fault> {
        let mut savepoint = sqlx::Connection::begin(connection).await?;
        let span = (self.settings.span)(event);
        self.handler.handle(event, &mut savepoint).instrument(span).await?;
        // What is checked at commit would fail the whole release.
        db::check_constraints(&mut savepoint).await?;
        savepoint.commit().await.map_err(Fault::from)
    }

    /// The outside effects of an order's dead events, up to the first refusal. Gives the dead events
    /// whose effects are done.
    async fn release_outside(&mut self, order: Uuid, skip: bool) -> Result<HashSet<i64>, InboxError> {
        let dead = db::dead_of(&mut *self.pool.acquire().await?, &self.settings.name, order).await?;
        let mut done = HashSet::new();
        for dead in dead.into_iter().skip(usize::from(skip)) {
            let Ok(event) = Event::from_message(&dead.message) else { break };
            match self.handler.outside(&event).await.map_err(Fault::from) {
                Ok(()) => done.insert(dead.dead_id),
                Err(Fault::Event(_)) => break,
                Err(Fault::Away(error)) => return Err(error),
            };
        }
        Ok(done)
    }
}
