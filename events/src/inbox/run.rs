//! The loop around the passes: pausing in an outage, going on after it, and the looks for orders to release.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead::{Letters, Shared};
use super::{Handler, Inbox, InboxError, Pass};

/// A pass that waits longer than this has simply nothing to do.
const QUIET: Duration = Duration::from_secs(1);
/// Between two looks for orders to release: a statement each, also when nothing else is to be done.
const LOOKS: Duration = Duration::from_secs(5);
/// Kafka is well when it has not failed for so long; while it is away it fails more often.
const SETTLED: Duration = Duration::from_secs(10);
/// The waits in an outage: the first, doubling up to the last, jittered.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What has failed since the last success.
#[derive(Debug, Default)]
pub(super) struct Condition {
    failures: u32,
    kafka_failed: Option<Instant>,
    letters: Arc<Shared>,
    looked: Option<Instant>,
}

impl Condition {
    fn next_wait(&mut self) -> Duration {
        let step = (WAITS.0 * 2_u32.pow(self.failures.min(10))).min(WAITS.1);
        self.failures += 1;
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

impl<H: Handler + 'static> Inbox<H> {
    /// Handles events until shutdown, through outages of Kafka, of PostgreSQL and of what the
    /// handler needs, and leaves the group in good order.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let letters = Letters::new(&self.settings, self.pool.clone(), Arc::clone(&self.condition.letters));
        let turns = async {
            loop {
                self.turn().await;
            }
        };
        tokio::select! {
            // What is cut off by shutdown has not committed: its events come again.
            () = turns => {}
            () = letters.run() => {}
            () = shutdown.cancelled() => {}
        }
        if tokio::task::spawn_blocking(move || self.close()).await.is_err() {
            tracing::error!("leaving the consumer group failed");
        }
    }

    async fn turn(&mut self) {
        match self.look_and_pass().await {
            Ok(pass) => {
                if pass.dead > 0 {
                    self.condition.letters.aside.notify_one();
                }
                if pass != Pass::default() {
                    self.handler.committed(&pass).await;
                }
                // When nothing came, only time tells that Kafka is well again.
                let settled = pass != Pass::default()
                    || self.condition.kafka_failed.is_none_or(|at| at.elapsed() >= SETTLED);
                if settled {
                    self.condition.kafka_failed = None;
                    let trouble =
                        self.condition.letters.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    self.handler.condition(trouble.as_ref().map_or(Ok(()), Err));
                }
                if self.condition.failures > 0 {
                    self.condition.failures = 0;
                    if let Err(error) = self.consumer.assignment().and_then(|all| self.consumer.resume(&all))
                    {
                        self.handler.condition(Err(&error.into()));
                    }
                }
            }
            Err(error) => {
                self.handler.condition(Err(&error));
                match error {
                    // The client library connects again by itself and must be listened to meanwhile.
                    InboxError::Kafka(_) => self.condition.kafka_failed = Some(Instant::now()),
                    _ => self.wait_out().await,
                }
            }
        }
    }

    async fn look_and_pass(&mut self) -> Result<Pass, InboxError> {
        if self.condition.looked.is_none_or(|at| at.elapsed() >= LOOKS) {
            self.condition.looked = Some(Instant::now());
            self.release_asked().await?;
        }
        match tokio::time::timeout(QUIET, self.wait()).await {
            Err(_) => Ok(std::mem::take(&mut self.pass)),
            Ok(waited) => {
                waited?;
                self.run_once().await
            }
        }
    }

    /// Waits for a while with all partitions paused, so that nothing more is fetched. The client
    /// library is polled meanwhile: a consumer that does not poll is thrown out of its group.
    async fn wait_out(&mut self) {
        let end = Instant::now() + self.condition.next_wait();
        if let Err(error) = self.pause_until(end).await {
            self.handler.condition(Err(&error.into()));
            tokio::time::sleep_until(end).await;
        }
    }

    async fn pause_until(&mut self, end: Instant) -> Result<(), KafkaError> {
        loop {
            self.consumer.pause(&self.consumer.assignment()?)?;
            if tokio::time::timeout_at(end, self.take_one()).await.is_err() {
                return Ok(());
            }
            // Something of a partition that came to us after the pause; or Kafka is away too, which
            // the next pass will tell.
        }
    }
}
