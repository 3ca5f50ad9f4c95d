//! Finding events on the topic itself, when no inbox remembers where they lie.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use uuid::Uuid;

use crate::kafka::Settings;
use crate::topic::blocking;
use crate::topic::partitioner::partition_of;
use crate::topic::read::{Reader, Span};

/// At most so many messages are read.
const MESSAGES: usize = 200_000;
/// And at most for so long.
const TIME: Duration = Duration::from_secs(15);
/// How far the relay's clock may be behind that of the database: messages carry the relay's.
const CLOCKS: i64 = 60_000;

/// What the search for an event gave.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// There it lies.
    At {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// When the relay handed it to Kafka.
        at: Option<DateTime<Utc>>,
    },
    /// It was not among the messages that were read.
    Not {
        /// How many were.
        read: usize,
        /// Whether that was all there is since the event was written.
        all: bool,
    },
    /// Kafka does not answer.
    Down(String),
}

pub(super) type Lookup = HashMap<Uuid, Found>;

/// Looks for events of one order, each with the time it was written: reads the partition of its key from
/// there on, and the others when one is not in it. It lies in another one when partitions were added
/// after it was published.
pub(super) async fn look_up(settings: Settings, order: Uuid, wanted: Vec<(Uuid, DateTime<Utc>)>) -> Lookup {
    blocking(move || {
        let ids = || wanted.iter().map(|(id, _)| *id);
        let mut search = Search::new(&wanted);
        match search.run(&settings, order) {
            Ok(()) => {
                let Search { mut found, read, all, .. } = search;
                for id in ids() {
                    found.entry(id).or_insert(Found::Not { read, all });
                }
                found
            }
            Err(error) => ids().map(|id| (id, Found::Down(error.to_string()))).collect(),
        }
    })
    .await
}

/// A search, and how far it is.
struct Search {
    /// When the oldest of them was written, milliseconds since 1970.
    oldest: i64,
    missing: HashMap<String, Uuid>,
    found: Lookup,
    /// Messages so far.
    read: usize,
    /// Whether nothing was left out.
    all: bool,
    started: Instant,
}

impl Search {
    fn new(wanted: &[(Uuid, DateTime<Utc>)]) -> Self {
        Self {
            oldest: wanted.iter().map(|(_, at)| at.timestamp_millis()).min().unwrap_or_default(),
            missing: wanted.iter().map(|(id, _)| (id.to_string(), *id)).collect(),
            found: Lookup::new(),
            read: 0,
            all: true,
            started: Instant::now(),
        }
    }

    fn run(&mut self, settings: &Settings, order: Uuid) -> Result<(), KafkaError> {
        let reader = Reader::new(settings)?;
        let spans = reader.spans()?;
        let partition = partition_of(order.to_string().as_bytes(), spans.len());
        let (of_key, others): (Vec<_>, Vec<_>) =
            spans.into_iter().partition(|span| span.partition == partition);
        self.look(&reader, &of_key)?;
        if !self.missing.is_empty() && self.all {
            self.look(&reader, &others)?;
        }
        Ok(())
    }

    fn look(&mut self, reader: &Reader, spans: &[Span]) -> Result<(), KafkaError> {
        let spans = reader.since(spans, self.oldest - CLOCKS)?;
        reader.read(&spans, |message| {
            self.read += 1;
            let id = message.headers().and_then(|headers| {
                let id = headers.iter().find(|header| header.key == events::header::ID)?;
                self.missing.remove(std::str::from_utf8(id.value?).ok()?)
            });
            if let Some(id) = id {
                let at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
                let (topic, partition, offset) =
                    (message.topic().to_owned(), message.partition(), message.offset());
                self.found.insert(id, Found::At { topic, partition, offset, at });
            }
            if self.missing.is_empty() {
                return ControlFlow::Break(());
            }
            if self.read >= MESSAGES || self.started.elapsed() > TIME {
                self.all = false;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
    }
}
