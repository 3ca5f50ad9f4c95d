//! The limit: the messages of an outbox, ready in memory, produced by nothing but the client
//! library. Keeps no order that the producer does not keep by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::TryStreamExt;
use rdkafka::ClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::kafka::{self, Topic};
use crate::outbox::{COLUMNS, Event};
use crate::shared::Outcome;

const PATIENCE: Duration = Duration::from_secs(60);

/// The messages of an outbox.
pub(crate) struct Messages {
    header_names: Vec<&'static str>,
    messages: Vec<Message>,
}

/// Key, value and the values of the headers in one piece of memory: a million of them.
struct Message {
    text: Box<str>,
    ends: Box<[u16]>,
}

impl Message {
    fn of(parts: &[&str]) -> Outcome<Self> {
        let text = parts.concat();
        let mut end = 0;
        let ends = parts.iter().map(|part| {
            end += part.len();
            u16::try_from(end)
        });
        Ok(Self { ends: ends.collect::<Result<_, _>>()?, text: text.into() })
    }

    /// Key, value and the values of the headers.
    fn parts(&self) -> impl Iterator<Item = &str> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[usize::from(start)..usize::from(*end)])
    }
}

impl Messages {
    pub(crate) async fn read(connection: &mut PgConnection) -> Outcome<Self> {
        let all = format!("select {COLUMNS} from outbox order by seq");
        let mut rows = sqlx::query_as::<_, Event>(AssertSqlSafe(all)).fetch(connection);
        let mut read = Self { header_names: Vec::new(), messages: Vec::new() };
        while let Some(event) = rows.try_next().await? {
            let headers: Vec<(&'static str, String)> = event.attributes().headers().collect();
            let key = event.aggregate_id.to_string();
            let values = headers.iter().map(|(_, value)| value.as_str());
            let parts: Vec<&str> = [key.as_str(), &event.payload].into_iter().chain(values).collect();
            read.messages.push(Message::of(&parts)?);
            read.header_names = headers.iter().map(|(name, _)| *name).collect();
        }
        Ok(read)
    }

    pub(crate) fn count(&self) -> usize {
        self.messages.len()
    }

    /// Produces all of them and waits until each is acknowledged. Blocks.
    pub(crate) fn produce(&self, topic: &Topic) -> Outcome<()> {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let producer: ThreadedProducer<Count> =
            kafka::producer(topic.brokers()).create_with_context(Count(Arc::clone(&acknowledged)))?;
        for message in &self.messages {
            let mut parts = message.parts();
            let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let headers = OwnedHeaders::new_with_capacity(self.header_names.len());
            let headers =
                self.header_names.iter().zip(parts).fold(headers, |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                });
            let mut record = BaseRecord::to(topic.name()).key(key).payload(value).headers(headers);
            while let Err((error, refused)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                record = refused;
                thread::sleep(Duration::from_millis(1));
            }
        }
        producer.flush(PATIENCE)?;
        if acknowledged.load(Ordering::Relaxed) == self.count() {
            Ok(())
        } else {
            Err("Kafka refused messages of the bare loop".into())
        }
    }
}

/// Counts what is acknowledged.
struct Count(Arc<AtomicUsize>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }
}
