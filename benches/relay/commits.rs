//! Commits at a fixed rate, and how long after its commit a consumer has each event. Open loop: the
//! next commit does not wait for the events before it.
//!
//! Rows go straight into the outbox, each commit a transaction of its own, and the API's own bell
//! is rung. A latency begins when the commit has returned to the writer and ends when the
//! relay has Kafka's acknowledgement, as its log says, or when a consumer of this process has the
//! message in hand. The limit is a writer that produces itself what it has just committed: nothing is
//! read back, nobody is woken, and a crash in between loses the event.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use events::{Attributes, EventId};
use orders::bell::Bell;
use rdkafka::ClientContext;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Sample;
use crate::kafka::{self, Topic};
use crate::shared::Outcome;
use crate::shared::figures::Percentiles;

/// Before what is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long what was committed may take to arrive after the last commit.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections that commit one event at a time. Groups have one, as in the API.
const WRITERS: usize = 8;

/// Has the relay log each acknowledgement, and so tell when it had it.
pub(crate) const LOGGING: [(&str, &str); 2] =
    [("RUST_LOG", "warn,relay::publish=trace"), ("LOG_FORMAT", "json")];

pub(crate) struct Seen {
    /// Commits, or events in groups, that were really made.
    pub(crate) per_second: f64,
    pub(crate) to_ack: Option<Percentiles>,
    pub(crate) to_consumer: Percentiles,
    /// All events, warm-up included.
    pub(crate) events: u64,
    /// Events that did not come, or came more than once, or of which no acknowledgement is told.
    pub(crate) errors: u64,
}

impl Seen {
    /// Without what only who starts a relay can tell.
    pub(crate) fn sample(self) -> Sample {
        Sample {
            per_second: self.per_second,
            to_ack: self.to_ack,
            to_consumer: Some(self.to_consumer),
            cpu_per_event: None,
            cpu_share: None,
            memory: None,
            errors: self.errors,
        }
    }
}

/// When an event was committed, acknowledged and received, in microseconds; 0 is not yet.
#[derive(Default)]
struct Times {
    committed: AtomicU64,
    acknowledged: AtomicU64,
    received: AtomicU64,
}

/// Who brings events to Kafka.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A relay that runs beside, and is rung for.
    Relay,
    /// Who has committed them.
    Writer,
}

/// Everything that was committed, and what became of it.
pub(crate) struct Run {
    start: Instant,
    /// The same moment on the clock that the relay's log shows.
    start_time: DateTime<Utc>,
    per_second: u64,
    at_once: usize,
    /// The first event that nobody has taken to commit.
    next: Mutex<usize>,
    times: Arc<[Times]>,
    /// How many of them come before what is measured.
    warm_up: usize,
    repeats: AtomicU64,
    arrived: AtomicUsize,
    bell: Bell,
    /// Of a writer that produces itself, and where to.
    producer: Option<(ThreadedProducer<Acknowledge>, String)>,
}

/// Notes when Kafka has an event, by its number.
struct Acknowledge {
    start: Instant,
    times: Arc<[Times]>,
}

impl ClientContext for Acknowledge {}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if result.is_ok() {
            self.times[number].acknowledged.store(micros(self.start), Ordering::Relaxed);
        }
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

pub(crate) async fn measure(
    database: &PgConnectOptions,
    topic: &Topic,
    by: By,
    per_second: u64,
    at_once: usize,
    duration: Duration,
) -> Outcome<Arc<Run>> {
    let warm_up = usize::try_from(per_second * WARM_UP.as_secs())?;
    let events = warm_up + usize::try_from(per_second * duration.as_secs())?;
    let writers = if at_once == 1 { WRITERS } else { 1 };
    let mut connections = Vec::new();
    for _ in 0..writers {
        connections.push(database.connect().await?);
    }
    let (bell, ringing) = Bell::new(database.clone());
    let consumer = topic.consumer()?;

    let (start, start_time) = (Instant::now(), Utc::now());
    let times: Arc<[Times]> = (0..events).map(|_| Times::default()).collect();
    let producer = match by {
        By::Relay => None,
        By::Writer => {
            let context = Acknowledge { start, times: Arc::clone(&times) };
            let producer = kafka::producer(topic.brokers()).create_with_context(context)?;
            Some((producer, topic.name().to_owned()))
        }
    };
    let run = Arc::new(Run {
        start,
        start_time,
        per_second,
        at_once,
        next: Mutex::new(0),
        times,
        warm_up,
        repeats: AtomicU64::new(0),
        arrived: AtomicUsize::new(0),
        bell,
        producer,
    });
    let end = CancellationToken::new();
    let receiver = {
        let (run, end) = (Arc::clone(&run), end.clone());
        tokio::task::spawn_blocking(move || run.receive(&consumer, &end))
    };
    let mut writing = JoinSet::new();
    for connection in connections {
        let run = Arc::clone(&run);
        writing.spawn(async move { run.write(connection).await });
    }
    let all = async {
        while let Some(written) = writing.join_next().await {
            written??;
        }
        let until = Instant::now() + PATIENCE;
        while run.arrived.load(Ordering::Relaxed) < events && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    let outcome: Outcome<()> =
        tokio::select! { all = all => all, () = ringing => Err("the bell ended".into()) };
    end.cancel();
    receiver.await??;
    outcome?;
    Ok(run)
}

impl Run {
    /// The events to commit next: the one that is due next, or all that are due if they may go together.
    fn take(&self) -> Range<usize> {
        let due = (self.start.elapsed().as_secs_f64() * self.per_second as f64) as usize;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let end = due.clamp(*next + 1, *next + self.at_once).min(self.times.len());
        std::mem::replace(&mut *next, end)..end
    }

    async fn write(&self, mut connection: PgConnection) -> Outcome<()> {
        loop {
            let taken = self.take();
            if taken.is_empty() {
                return Ok(());
            }
            let due = Duration::from_secs_f64(taken.start as f64 / self.per_second as f64);
            tokio::time::sleep_until(self.start + due).await;
            let events: Vec<New> = taken.clone().map(New::of).collect();
            insert(&mut connection, &events).await?;
            let now = micros(self.start);
            for event in &self.times[taken.clone()] {
                event.committed.store(now, Ordering::Relaxed);
            }
            match &self.producer {
                None => self.bell.ring(),
                Some((producer, topic)) => {
                    for (number, event) in taken.zip(&events) {
                        event.produce(producer, topic, number)?;
                    }
                }
            }
        }
    }

    fn receive(&self, consumer: &BaseConsumer, end: &CancellationToken) -> Outcome<()> {
        while !end.is_cancelled() {
            match consumer.poll(Duration::from_millis(50)) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(message)) => {
                    let now = micros(self.start);
                    let key = message.key().and_then(|key| Uuid::try_parse_ascii(key).ok());
                    let event = self.event(key.ok_or("a message without the key of an order")?)?;
                    if event.received.swap(now, Ordering::Relaxed) == 0 {
                        self.arrived.fetch_add(1, Ordering::Relaxed);
                    } else {
                        self.repeats.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(())
    }

    /// The event of an order: its number is the second half of the order's id.
    fn event(&self, order: Uuid) -> Outcome<&Times> {
        let number = usize::try_from(order.as_u64_pair().1)?;
        Ok(self.times.get(number).ok_or("a foreign message")?)
    }

    /// From the log of a relay that runs with [`LOGGING`].
    fn read_acknowledgements(&self, log: &Path) -> Outcome<()> {
        for line in BufReader::new(File::open(log)?).lines() {
            let line: Value = serde_json::from_str(&line?)?;
            if line["fields"]["message"] != "acknowledged" {
                continue;
            }
            let time: DateTime<Utc> = serde_json::from_value(line["timestamp"].clone())?;
            let order: Uuid = serde_json::from_value(line["fields"]["order.id"].clone())?;
            let micros = (time - self.start_time).num_microseconds().ok_or("a strange clock")?;
            self.event(order)?.acknowledged.store(u64::try_from(micros)?, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What was seen, and told by the log of a relay that is gone.
    pub(crate) fn seen(&self, log: Option<&Path>) -> Outcome<Seen> {
        if let Some(log) = log {
            self.read_acknowledgements(log)?;
        }
        let (mut to_ack, mut to_consumer) = (Vec::new(), Vec::new());
        let (mut first, mut last) = (u64::MAX, 0);
        for event in &self.times[self.warm_up..] {
            let committed = event.committed.load(Ordering::Relaxed);
            (first, last) = (first.min(committed), last.max(committed));
            for (at, latencies) in [(&event.acknowledged, &mut to_ack), (&event.received, &mut to_consumer)] {
                match at.load(Ordering::Relaxed) {
                    0 => {}
                    // The relay may have seen the commit before the writer heard of it.
                    at => latencies.push(u32::try_from(at.saturating_sub(committed))?),
                }
            }
        }
        let measured = self.times.len() - self.warm_up;
        let missing = self.times.len() - self.arrived.load(Ordering::Relaxed);
        let told = log.is_some() || self.producer.is_some();
        let untold = if told { measured - to_ack.len() } else { 0 };
        Ok(Seen {
            per_second: measured as f64 / (last.saturating_sub(first).max(1) as f64 / 1e6),
            to_ack: told.then(|| Percentiles::of(to_ack)),
            to_consumer: Percentiles::of(to_consumer),
            events: self.times.len() as u64,
            errors: (missing + untold) as u64 + self.repeats.load(Ordering::Relaxed),
        })
    }
}

/// An event that is to be committed.
struct New {
    id: Uuid,
    order: Uuid,
    payload: String,
}

const KIND: &str = "order.created.v1";

impl New {
    /// The number of an event is the second half of its order's id.
    fn of(number: usize) -> Self {
        let id = Uuid::now_v7();
        let order = Uuid::from_u64_pair(id.as_u64_pair().0, number as u64);
        let payload = format!(
            r#"{{"orderId":"{order}","customerId":42,"amountCents":2599,"currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00.000000Z"}}"#
        );
        Self { id, order, payload }
    }

    fn produce(
        &self,
        producer: &ThreadedProducer<Acknowledge>,
        topic: &str,
        number: usize,
    ) -> Result<(), KafkaError> {
        let attributes = Attributes {
            id: EventId::from(self.id),
            source: "/orders",
            kind: KIND,
            subject: self.order,
            time: Utc::now(),
            version: 1,
            traceparent: None,
            tracestate: None,
        };
        let key = self.order.to_string();
        let record = BaseRecord::with_opaque_to(topic, number).key(&key).payload(&self.payload);
        let record = record.headers(events::kafka::headers(&attributes));
        producer.send(record).map_err(|(error, _)| error)
    }
}

async fn insert(connection: &mut PgConnection, events: &[New]) -> Result<(), sqlx::Error> {
    let column = |of: fn(&New) -> Uuid| events.iter().map(of).collect::<Vec<Uuid>>();
    let payloads: Vec<&str> = events.iter().map(|event| event.payload.as_str()).collect();
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select event_id, 'order', order_id, 1, $4, payload::json
         from unnest($1::uuid[], $2::uuid[], $3::text[]) as event(event_id, order_id, payload)",
    )
    .bind(column(|event| event.id))
    .bind(column(|event| event.order))
    .bind(payloads)
    .bind(KIND)
    .execute(connection)
    .await
    .map(drop)
}
