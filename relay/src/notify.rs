//! The `notify` stage: a subscriber of the topic like any other, through the same inbox that is
//! offered to everybody. An order event becomes a notification, in the transaction of its dedup
//! key; sending it is the business of `mail`.

use std::time::{Duration, SystemTime};

use events::OrderEvent;
use events::inbox::{self, Handler, Inbox, InboxError};
use events::kafka::Event;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::bell;
use crate::db::notifications;
use crate::health::StageHealth;
use crate::kafka;
use crate::mail::Kind;
use crate::metrics::{Notified, NotifyMetrics};
use crate::traces::Traces;

/// The name of this consumer's dedup keys.
pub(crate) const CONSUMER: &str = "notify";
/// A pass that waits longer than this has simply nothing to do.
const QUIET: Duration = Duration::from_secs(1);
/// Kafka is well when it has not failed for so long; while it is away it fails more often.
const SETTLED: Duration = Duration::from_secs(10);

/// The stage.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// Its connections.
    pub pool: PgPool,
    /// Where to subscribe.
    pub kafka: kafka::Settings,
    /// Consumer group.
    pub group: String,
    /// Right side of the `@` in every Message-ID.
    pub mail_domain: String,
    /// Where it says how it is.
    pub health: StageHealth,
    /// What it counts.
    pub metrics: NotifyMetrics,
    /// The spans of its events.
    pub traces: Traces,
}

/// What has failed since the last success.
struct Trouble {
    backoff: Backoff,
    kafka_failed: Option<Instant>,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { backoff: Backoff::for_outage(), kafka_failed: None }
    }
}

/// Turns an event into a notification.
struct Notify {
    mail_domain: String,
    metrics: NotifyMetrics,
    traces: Traces,
}

impl Notify {
    async fn notify(&self, event: &Event, connection: &mut PgConnection) -> Result<Notified, sqlx::Error> {
        let order_event = match event.order_event() {
            Ok(order_event) => order_event,
            Err(error) => {
                tracing::error!(event.id = %event.attributes.id, %error, "no notification for an event that cannot be read");
                return Ok(Notified::Unreadable);
            }
        };
        let kind = match order_event {
            OrderEvent::Created(_) => Kind::Confirmation,
            OrderEvent::Cancelled(_) => Kind::Cancellation,
        };
        let (order, version) = (order_event.order_id(), event.attributes.version);
        // Fixed here, from the dedup key: whoever resends the mail resends this id.
        let message_id = format!("<{kind}.{order}.{version}@{}>", self.mail_domain);
        let traceparent = event.attributes.traceparent.as_deref();
        let made =
            notifications::insert(connection, kind, order, version, &message_id, &event.data, traceparent)
                .await?;
        Ok(if made { Notified::Made } else { Notified::NoAddress })
    }
}

impl Handler for Notify {
    async fn handle(&mut self, event: &Event, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let began = SystemTime::now();
        let outcome = self.notify(event, connection).await?;
        // Counted before the commit: a batch that fails counts again when it is tried again.
        self.metrics.handled(outcome, event.position.timestamp_millis);
        self.traces.notified(event, began);
        Ok(())
    }
}

impl Notifier {
    /// Subscribes and handles events until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut trouble = Trouble::default();
        let mut inbox = loop {
            match inbox::consumer(self.kafka.client(), &self.group, &self.kafka.topic) {
                Ok(consumer) => {
                    let handler = Notify {
                        mail_domain: self.mail_domain.clone(),
                        metrics: self.metrics.clone(),
                        traces: self.traces.clone(),
                    };
                    break Inbox::new(consumer, self.pool.clone(), CONSUMER, handler);
                }
                Err(error) => self.health.trouble(format!("Kafka: {error}")),
            }
            tokio::select! {
                () = tokio::time::sleep(trouble.backoff.next_wait()) => {}
                () = shutdown.cancelled() => return,
            }
        };
        while !shutdown.is_cancelled() {
            tokio::select! {
                // A pass that is cut off by shutdown has not committed: its events come again.
                () = self.pass(&mut inbox, &mut trouble) => {}
                () = shutdown.cancelled() => {}
            }
        }
        if tokio::task::spawn_blocking(move || inbox.close()).await.is_err() {
            tracing::error!("leaving the consumer group failed");
        }
    }

    async fn pass(&self, inbox: &mut Inbox<Notify>, trouble: &mut Trouble) {
        let passed = match tokio::time::timeout(QUIET, inbox.wait()).await {
            // Nothing came. After a failure only time tells that Kafka is well again.
            Err(_) if trouble.kafka_failed.is_some_and(|at| at.elapsed() < SETTLED) => return,
            Err(_) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => self.run_once(inbox).await,
        };
        match passed {
            Ok(()) => {
                *trouble = Trouble::default();
                self.health.well("subscribed");
            }
            // The client library connects again by itself and must be listened to meanwhile.
            Err(error @ InboxError::Kafka(_)) => {
                trouble.kafka_failed = Some(Instant::now());
                self.health.trouble(error.to_string());
            }
            Err(error @ InboxError::Database(_)) => {
                self.health.trouble(error.to_string());
                tokio::time::sleep(trouble.backoff.next_wait()).await;
            }
        }
    }

    async fn run_once(&self, inbox: &mut Inbox<Notify>) -> Result<(), InboxError> {
        let pass = inbox.run_once().await?;
        self.metrics.repeated(pass.repeated);
        if pass.handled > 0 {
            // After the commit, never inside it: a NOTIFY takes a database-wide lock at commit.
            bell::ring(&self.pool, bell::MAIL).await?;
        }
        Ok(())
    }
}
