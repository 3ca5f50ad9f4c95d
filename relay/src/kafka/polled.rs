//! A producer whose answers are heard by a thread of its own.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, ProducerContext};

/// How long the thread listens at a time, and so how long its end may take.
///
/// rdkafka 0.39 waits for whole milliseconds and spins through what is left of one, and its own
/// `ThreadedProducer`, which asks for 100 ms, begins with the 99 that are left a moment later: nearly
/// a whole millisecond of each tenth of a second, which is most of what an idle relay costs. The tenth
/// of a millisecond is for that moment.
const LISTEN: Duration = Duration::from_micros(100_100);

/// Like rdkafka's `ThreadedProducer`, and idle when nothing happens.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// # Errors
    /// When librdkafka refuses the configuration, or there is no thread to be had.
    pub(super) fn new(config: &ClientConfig, context: C) -> Result<Self, KafkaError> {
        let producer: Arc<BaseProducer<C>> = Arc::new(config.create_with_context(context)?);
        let ends = Arc::new(AtomicBool::new(false));
        let listen = {
            let (producer, ends) = (Arc::clone(&producer), Arc::clone(&ends));
            move || {
                while !ends.load(Ordering::Relaxed) {
                    producer.poll(LISTEN);
                }
            }
        };
        let thread = thread::Builder::new().name("kafka answers".to_owned()).spawn(listen);
        let thread = thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self { producer, ends, thread: Some(thread) })
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that hears Kafka's answers has panicked");
        }
    }
}
