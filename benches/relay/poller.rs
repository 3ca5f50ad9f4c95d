//! What people write themselves: a loop that locks the oldest unpublished rows, produces them,
//! waits for the acknowledgements and marks the rows. One of it; several would change the order.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::kafka::{self, Topic};
use crate::outbox::{COLUMNS, Event};
use crate::shared::Outcome;

/// Its table: the rows of the outbox, and the usual index of what is left to do.
pub(crate) const TABLE: &[&str] = &[
    "drop table if exists polled",
    "create table polled as select *, null::timestamptz as published_at from outbox",
    "alter table polled add primary key (seq)",
    "create index on polled (seq) where published_at is null",
    "vacuum (freeze, analyze) polled",
    "checkpoint",
];

struct Acknowledge(UnboundedSender<bool>);

impl ClientContext for Acknowledge {}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let _ = self.0.send(result.is_ok());
    }
}

/// Publishes until nothing is left or the time is up. Gives how many it has published.
pub(crate) async fn run(connection: &mut PgConnection, topic: &Topic, limit: Duration) -> Outcome<u64> {
    let (sender, mut acknowledged) = unbounded_channel();
    let producer: ThreadedProducer<Acknowledge> =
        kafka::producer(topic.brokers()).create_with_context(Acknowledge(sender))?;
    let select = format!(
        "select {COLUMNS} from polled where published_at is null order by seq limit 1000 for update skip locked"
    );
    let (start, mut published) = (Instant::now(), 0);
    while start.elapsed() < limit {
        let mut transaction = connection.begin().await?;
        let rows: Vec<Event> =
            sqlx::query_as(AssertSqlSafe(select.as_str())).fetch_all(&mut *transaction).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let key = row.aggregate_id.to_string();
            let headers = events::kafka::headers(&row.attributes());
            let record = BaseRecord::to(topic.name()).key(&key).payload(&row.payload).headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        for _ in &rows {
            if acknowledged.recv().await != Some(true) {
                return Err("Kafka refused a message of the poller".into());
            }
        }
        let numbers: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        sqlx::query("update polled set published_at = now() where seq = any($1)")
            .bind(numbers)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        published += rows.len() as u64;
    }
    Ok(published)
}
