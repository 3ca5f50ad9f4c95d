//! What an operator measures: the counters that the stages move, what the database says when somebody
//! asks, and the text of both for Prometheus. Labels come from fixed sets only; the brokers of the
//! cluster are the one set that is not ours.

mod client;
mod database;
mod stages;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};
use sqlx::PgPool;

pub(crate) use self::client::{ClientMetrics, Counted, INTERVAL as STATISTICS_INTERVAL};
pub(crate) use self::database::Asks;
use self::database::Database;
use self::stages::circuits;
pub(crate) use self::stages::{
    MailMetrics, Notified, NotifyMetrics, PublishMetrics, RetentionMetrics, seconds_since,
};
use crate::config::Stage;
use crate::health::Health;

/// What the mail server is called among the sinks.
const MAIL_SINK: &str = "smtp";

/// Everything that is measured in this process. Counting costs a few atomic additions.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    stage_ready: IntGaugeVec,
    database: Arc<Database>,
    /// Of the `publish` stage.
    pub(crate) publish: PublishMetrics,
    /// Of retention.
    pub(crate) retention: RetentionMetrics,
    /// Of the `notify` stage.
    pub(crate) notify: NotifyMetrics,
    /// Of the `mail` stage.
    pub(crate) mail: MailMetrics,
}

impl Metrics {
    /// All at zero, for the stages that run in this process: what the others would show is left out.
    ///
    /// # Errors
    /// When two metrics have one name, which is a mistake in this folder.
    pub(crate) fn new(stages: &[Stage], pool: PgPool, asks: Asks) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        // What belongs to a stage that does not run is counted nowhere and shown nowhere.
        let (elsewhere, publish, notify, mail) =
            (&Registry::new(), Stage::Publish, Stage::Notify, Stage::Mail);
        let of = |stage| if stages.contains(&stage) { &registry } else { elsewhere };
        let build = IntGaugeVec::new(
            Opts::new("relay_build_info", "Always 1; the version of this program"),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registered(&registry, build)?;
        let (circuits, circuits_elsewhere) = (registered(&registry, circuits()?)?, circuits()?);
        let circuit = |stage, sink: &str| {
            let circuits = if stages.contains(&stage) { &circuits } else { &circuits_elsewhere };
            circuits.with_label_values(&[sink])
        };
        Ok(Self {
            stage_ready: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "relay_stage_ready",
                        "1 when the stage makes progress or has nothing to do, 0 when /readyz names a problem",
                    ),
                    &["stage"],
                )?,
            )?,
            publish: PublishMetrics::new(of(publish), circuit(publish, &asks.sink))?,
            retention: RetentionMetrics::new(of(publish))?,
            notify: NotifyMetrics::new(of(notify))?,
            mail: MailMetrics::new(of(mail), circuit(mail, MAIL_SINK))?,
            database: Arc::new(Database::new(pool, asks, stages)?),
            registry,
        })
    }

    /// The text that Prometheus reads. What only the database knows is left out while it is away.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub(crate) async fn render(&self, health: &Health) -> Result<String, prometheus::Error> {
        for (stage, ready) in health.ready() {
            self.stage_ready.with_label_values(&[stage]).set(i64::from(ready));
        }
        let mut families = self.registry.gather();
        families.extend(self.database.gather().await);
        TextEncoder::new().encode_to_string(&families)
    }
}

/// What a command's publisher counts: nobody asks for it.
///
/// # Errors
/// As [`Metrics::new`].
pub(crate) fn unseen(sink: &str) -> Result<PublishMetrics, prometheus::Error> {
    PublishMetrics::new(&Registry::new(), circuits()?.with_label_values(&[sink]))
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
