//! Whether Kafka lets us produce, asked without producing anything: an idempotent producer gets its id from
//! the broker before its first event, and is refused there when it has no right to write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::{ClientContext, Statistics};

use super::{ANSWER, blocking};
use crate::kafka::Settings;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// What Kafka said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Produce {
    /// It gave a producer id.
    Allowed,
    /// It refused, in these words.
    Refused(String),
    /// It said nothing in time.
    Silent,
}

/// Learns from librdkafka's statistics that the producer has its id.
#[derive(Default)]
struct Watch {
    has_id: AtomicBool,
}

impl ClientContext for Watch {
    fn stats(&self, statistics: Statistics) {
        let state = statistics.eos.map(|eos| eos.idemp_state);
        self.has_id.fetch_or(state.as_deref() == Some("Assigned"), Ordering::Relaxed);
    }

    // A refusal is fatal for the producer, and asked for below.
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Watch {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Asks Kafka for a producer id.
///
/// # Errors
/// When librdkafka refuses the configuration.
pub(crate) async fn may_produce(settings: &Settings) -> Result<Produce, KafkaError> {
    let mut config = settings.client();
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("statistics.interval.ms", LOOK.as_millis().to_string());
    blocking(move || {
        let producer: BaseProducer<Watch> = config.create_with_context(Watch::default())?;
        let until = Instant::now() + ANSWER;
        while Instant::now() < until {
            producer.poll(LOOK);
            if let Some((_, words)) = producer.client().fatal_error() {
                return Ok(Produce::Refused(words));
            }
            if producer.context().has_id.load(Ordering::Relaxed) {
                return Ok(Produce::Allowed);
            }
        }
        Ok(Produce::Silent)
    })
    .await
}
