//! The `notify` stage: a subscriber of the topic like any other, through the same inbox that is
//! offered to everybody. An order event becomes a notification, in the transaction of its dedup
//! key; sending it is the business of `mail`.

use std::time::SystemTime;

use events::inbox::{HandleError, Handler, Inbox, InboxError, Pass, Settings};
use events::kafka::Event;
use events::{OrderEvent, UnknownEvent};
use rdkafka::error::KafkaError;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::bell;
use crate::db::notifications::{self, Inserted};
use crate::health::StageHealth;
use crate::kafka;
use crate::mail::Kind;
use crate::metrics::{Notified, NotifyMetrics};
use crate::traces::Traces;

/// The name of this consumer's dedup keys.
pub(crate) const CONSUMER: &str = "notify";
/// What it does when all is well.
const SUBSCRIBED: &str = "subscribed";

/// The stage.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// Its connections.
    pub pool: PgPool,
    /// Where to subscribe.
    pub kafka: kafka::Settings,
    /// Consumer group.
    pub group: String,
    /// Gets what cannot be handled.
    pub dead_topic: String,
    /// Right side of the `@` in every Message-ID.
    pub mail_domain: String,
    /// Where it says how it is.
    pub health: StageHealth,
    /// What it counts.
    pub metrics: NotifyMetrics,
    /// The spans of its events.
    pub traces: Traces,
}

/// Turns an event into a notification.
struct Notify {
    pool: PgPool,
    mail_domain: String,
    health: StageHealth,
    metrics: NotifyMetrics,
    traces: Traces,
}

impl Notify {
    async fn notify(&self, event: &Event, connection: &mut PgConnection) -> Result<Notified, HandleError> {
        let order_event = match event.order_event() {
            // Types may be added within v1; they have no mail.
            Err(UnknownEvent::Type(_)) => return Ok(Notified::Foreign),
            order_event => order_event?,
        };
        let kind = match order_event {
            OrderEvent::Created(_) => Kind::Confirmation,
            OrderEvent::Cancelled(_) => Kind::Cancellation,
        };
        let (order, version) = (order_event.order_id(), event.attributes.version);
        // Fixed here, from the dedup key: whoever resends the mail resends this id.
        let message_id = format!("<{kind}.{order}.{version}@{}>", self.mail_domain);
        let traceparent = event.attributes.traceparent.as_deref();
        let inserted =
            notifications::insert(connection, kind, order, version, &message_id, &event.data, traceparent)
                .await?;
        Ok(match inserted {
            Inserted::Made => Notified::Made,
            // The event was handled before, and its dedup key is gone.
            Inserted::Exists => Notified::Repeated,
            Inserted::NoAddress => Notified::NoAddress,
        })
    }
}

impl Handler for Notify {
    async fn handle(&mut self, event: &Event, connection: &mut PgConnection) -> Result<(), HandleError> {
        let began = SystemTime::now();
        let outcome = self.notify(event, connection).await?;
        // Counted before the commit: a batch that fails counts again when it is tried again.
        self.metrics.handled(outcome, event.position.timestamp_millis);
        self.traces.notified(event, began);
        Ok(())
    }

    async fn committed(&mut self, pass: &Pass) {
        self.metrics.passed(pass);
        // After the commit, never inside it: a NOTIFY takes a database-wide lock at commit.
        if pass.handled > 0
            && let Err(error) = bell::ring(&self.pool, bell::MAIL).await
        {
            tracing::debug!(%error, "the bell was not rung; the mailer looks by itself");
        }
    }

    fn condition(&mut self, condition: Result<(), &InboxError>) {
        match condition {
            Ok(()) => self.health.well(SUBSCRIBED),
            // Dead letters wait in the database, and notifications are made all the same.
            Err(error @ InboxError::DeadLetters { .. }) => {
                self.health.well_but(SUBSCRIBED, error.to_string());
            }
            Err(error) => self.health.trouble(error.to_string()),
        }
    }
}

impl Notifier {
    /// Subscribes and handles events until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::for_outage();
        let inbox = loop {
            match self.inbox() {
                Ok(inbox) => break inbox,
                Err(error) => self.health.trouble(format!("Kafka: {error}")),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait()) => {}
                () = shutdown.cancelled() => return,
            }
        };
        inbox.run(shutdown).await;
    }

    fn inbox(&self) -> Result<Inbox<Notify>, KafkaError> {
        let mut settings = Settings::new(self.kafka.client(), &self.group, &self.kafka.topic);
        settings.name = CONSUMER.to_owned();
        settings.dead_letter_topic.clone_from(&self.dead_topic);
        let handler = Notify {
            pool: self.pool.clone(),
            mail_domain: self.mail_domain.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            traces: self.traces.clone(),
        };
        Inbox::start(settings, self.pool.clone(), handler)
    }
}
