//! What only the database knows, asked when somebody reads the metrics and at most every five seconds:
//! an idle relay that nobody watches asks nothing.

use std::time::Duration;

use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, Registry};
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::registered;
use crate::config::Stage;
use crate::db::gauges::{self, MailState, SinkState};

/// Answers are this old at most.
const FRESH: Duration = Duration::from_secs(5);
/// How long a reader of the metrics waits for the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose state is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asks {
    /// The sink.
    pub(crate) sink: String,
    /// Whether it reads a foreign table.
    pub(crate) is_foreign: bool,
    /// The name under which this process holds its lease.
    pub(crate) holder: String,
}

/// The gauges, each with the time of its last look.
#[derive(Debug)]
pub(super) struct Database {
    pool: PgPool,
    asks: Asks,
    up: (Registry, IntGauge),
    sink: Option<SinkGauges>,
    mail: Option<MailGauges>,
    looked: Mutex<Option<Look>>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    answered: bool,
}

impl Database {
    pub(super) fn new(pool: PgPool, asks: Asks, stages: &[Stage]) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let up =
            IntGauge::new("relay_database_up", "1 when the database answered the last question for metrics")?;
        let up = registered(&registry, up)?;
        let sink = stages.contains(&Stage::Publish).then(|| SinkGauges::new(asks.is_foreign)).transpose()?;
        Ok(Self {
            pool,
            asks,
            up: (registry, up),
            sink,
            mail: stages.contains(&Stage::Mail).then(MailGauges::new).transpose()?,
            looked: Mutex::new(None),
        })
    }

    /// The gauges; without an answer of the database only `relay_database_up`, for an old value would
    /// be taken for a true one.
    pub(super) async fn gather(&self) -> Vec<MetricFamily> {
        let mut looked = self.looked.lock().await;
        if looked.as_ref().is_none_or(|look| look.at.elapsed() >= FRESH) {
            let answered = matches!(timeout(PATIENCE, self.look()).await, Ok(Ok(())));
            *looked = Some(Look { at: Instant::now(), answered });
        }
        let answered = looked.as_ref().is_some_and(|look| look.answered);
        drop(looked);
        self.up.1.set(i64::from(answered));
        let mut families = self.up.0.gather();
        if answered {
            families.extend(self.sink.iter().flat_map(|gauges| gauges.registry.gather()));
            families.extend(self.mail.iter().flat_map(|gauges| gauges.registry.gather()));
        }
        families
    }

    async fn look(&self) -> Result<(), sqlx::Error> {
        if let Some(gauges) = &self.sink {
            let Asks { sink, holder, .. } = &self.asks;
            gauges.set(&gauges::sink(&self.pool, sink, holder).await?);
        }
        if let Some(gauges) = &self.mail {
            gauges.set(&gauges::mail(&self.pool).await?);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SinkGauges {
    registry: Registry,
    pending: IntGauge,
    /// Not for a foreign table, whose rows tell no time.
    oldest: Option<Gauge>,
    holes: IntGauge,
    dead: IntGauge,
    leader: IntGauge,
    paused: IntGauge,
    epoch: IntGauge,
}

impl SinkGauges {
    fn new(is_foreign: bool) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        let oldest = || {
            let help = "Age of the oldest pending event, 0 without one";
            registered(&registry, Gauge::new("outbox_oldest_pending_age_seconds", help)?)
        };
        Ok(Self {
            pending: gauge("outbox_pending_events", "Committed events that are neither on Kafka nor parked")?,
            oldest: (!is_foreign).then(oldest).transpose()?,
            holes: gauge(
                "outbox_holes",
                "Numbers below the highest published one that are not visible: transactions still running, or rolled back",
            )?,
            dead: gauge("outbox_dead_events", "Dead letters that wait for an operator, 100,000 at most")?,
            leader: gauge("relay_leader", "1 when this process holds the lease of the publisher")?,
            paused: gauge("relay_paused", "1 while an operator has paused the sink")?,
            epoch: gauge("relay_lease_epoch", "Grows by one whenever the lease changes hands")?,
            registry,
        })
    }

    fn set(&self, state: &SinkState) {
        self.pending.set(state.pending);
        if let Some(oldest) = &self.oldest {
            oldest.set(state.oldest_pending_seconds);
        }
        self.holes.set(state.holes);
        self.dead.set(state.dead);
        self.leader.set(i64::from(state.leader));
        self.paused.set(i64::from(state.paused));
        self.epoch.set(state.epoch);
    }
}

#[derive(Debug)]
struct MailGauges {
    registry: Registry,
    pending: IntGauge,
    oldest_due: Gauge,
    unknown: IntGauge,
}

impl MailGauges {
    fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        Ok(Self {
            pending: gauge("mail_pending", "E-mails that are to be sent, 100,000 at most")?,
            oldest_due: registered(
                &registry,
                Gauge::new(
                    "mail_oldest_due_seconds",
                    "How long the oldest e-mail has been due, 0 when none is",
                )?,
            )?,
            unknown: gauge("mail_unknown", "E-mails whose outcome is unknown, 100,000 at most")?,
            registry,
        })
    }

    fn set(&self, state: &MailState) {
        self.pending.set(state.pending);
        self.oldest_due.set(state.oldest_due_seconds);
        self.unknown.set(state.unknown);
    }
}
