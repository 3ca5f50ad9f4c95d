//! The relay: everything that happens after an order is committed.
//!
//! Three stages, each reading one store and writing the next: `publish` moves the outbox to
//! Kafka, `notify` turns order events into notifications, `mail` sends them.

mod backoff;
mod bell;
pub mod commands;
pub mod config;
mod db;
pub mod foreign;
mod health;
mod kafka;
mod mail;
mod metrics;
mod notify;
mod publish;
mod retention;
pub mod sink;
pub mod telemetry;
mod topic;
mod traces;

use std::io;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::config::{InvalidSetting, RunArgs, Stage};
use self::health::Health;
use self::mail::{Letterhead, Mailer};
use self::metrics::{Asks, Metrics};
use self::notify::Notifier;
use self::publish::Publisher;
use self::publish::core::Limits;
use self::publish::source::Outbox;
use self::retention::Retention;

/// Why the relay cannot start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address of the health pages is taken or not ours.
    #[error("cannot listen on RELAY_LISTEN={address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The metrics contradict each other.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] prometheus::Error),
    /// A stage panicked or ended by itself.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// The name under which this process holds leases.
fn holder() -> String {
    format!("relay-{}-{:08x}", std::process::id(), fastrand::u32(..))
}

/// Runs the stages until shutdown. The first to end ends the others.
///
/// # Errors
/// [`RunError`] when a stage cannot start or ends without being asked to.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> Result<(), RunError> {
    let health = Health::default();
    let (database, kafka, mail_server) =
        (args.database.options()?, args.kafka.settings()?, args.smtp.server()?);
    let outbox = args.outbox()?;
    let traces = args.traces()?;
    let holder = holder();
    let listener = TcpListener::bind(args.relay_listen)
        .await
        .map_err(|source| RunError::Listen { address: args.relay_listen, source })?;

    let asks = Asks {
        sink: args.sink.relay_sink.to_string(),
        is_foreign: matches!(outbox, Outbox::Foreign(_)),
        holder: holder.clone(),
    };
    let metrics = Metrics::new(&args.stages(), db::pool(database.clone(), 1), asks)?;

    // Each task names itself when it ends.
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    for stage in args.stages() {
        let shutdown = shutdown.clone();
        match stage {
            Stage::Publish => {
                // A foreign table is its application's to empty, and the orders' tables are not this relay's.
                if matches!(outbox, Outbox::Orders) {
                    let retention = Retention {
                        pool: db::pool(database.clone(), 1),
                        sink: args.sink.relay_sink.clone(),
                        ages: args.retention.ages(),
                        metrics: metrics.retention.clone(),
                    };
                    let stop = shutdown.clone();
                    tasks.spawn(async move {
                        retention.run(stop).await;
                        "retention"
                    });
                }
                let publisher = Publisher {
                    pool: db::pool(database.clone(), 6),
                    sink: args.sink.relay_sink.clone(),
                    outbox: outbox.clone(),
                    kafka: kafka.clone(),
                    limits: Limits::default(),
                    lease: args.lease(),
                    holder: holder.clone(),
                    once: false,
                    health: health.stage("publish"),
                    metrics: metrics.publish.clone(),
                    traces: traces.clone(),
                };
                tasks.spawn(async move {
                    Box::pin(publisher.run(shutdown)).await;
                    "publish"
                });
            }
            Stage::Notify => {
                let notifier = Notifier {
                    pool: db::pool(database.clone(), 2),
                    kafka: kafka.clone(),
                    group: args.notify.notify_group.clone(),
                    dead_topic: args.notify.dead_topic(&args.kafka.kafka_topic),
                    mail_domain: args.smtp.mail_from.email.domain().to_owned(),
                    health: health.stage("notify"),
                    metrics: metrics.notify.clone(),
                    traces: traces.clone(),
                };
                tasks.spawn(async move {
                    notifier.run(shutdown).await;
                    "notify"
                });
            }
            Stage::Mail => {
                let mailer = Mailer {
                    // The desk, the bell and the eraser; the senders need none.
                    pool: db::pool(database.clone(), 3),
                    server: mail_server.clone(),
                    letterhead: Letterhead {
                        from: args.smtp.mail_from.clone(),
                        unsubscribe: args.mail.mail_list_unsubscribe.clone(),
                    },
                    connections: usize::from(args.mail.mail_connections),
                    rate: args.mail.mail_rate,
                    holder: holder.clone(),
                    on_unknown: args.mail.mail_on_unknown,
                    keep_addresses: args.mail.keep_addresses(),
                    health: health.stage("mail"),
                    metrics: metrics.mail.clone(),
                    traces: traces.clone(),
                };
                tasks.spawn(async move {
                    mailer.run(shutdown).await;
                    "mail"
                });
            }
        }
    }
    let pages = health::serve(listener, health, metrics, shutdown.clone());
    tasks.spawn(async move {
        if let Err(error) = pages.await {
            tracing::error!(%error, "the health pages ended");
        }
        "health"
    });

    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        if !shutdown.is_cancelled() {
            result = Err(RunError::Ended(ended.unwrap_or("stage that panicked")));
            shutdown.cancel();
        }
    }
    // Exporting blocks; a collector that is away delays the end by one export.
    if tokio::task::spawn_blocking(move || traces.flush()).await.is_err() {
        tracing::error!("exporting the last traces failed");
    }
    result
}
