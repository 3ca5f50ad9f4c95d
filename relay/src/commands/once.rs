//! `relay once`: publishes what is there now and exits; for cron jobs and CI.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CommandError, Ended, print, print_json, stop_signal};
use crate::backoff::Backoff;
use crate::config::OnceArgs;
use crate::db::foreign::Unreadable;
use crate::db::lease::{self, SinkState};
use crate::db::{self, dead};
use crate::health::{Health, StageHealth};
use crate::publish::core::Limits;
use crate::publish::{Bells, Outcome, PublishError, Publisher};
use crate::traces::Traces;
use crate::{metrics, telemetry};

/// How often it is looked whether a dependency is away.
const LOOK: Duration = Duration::from_millis(200);
/// How long it may take to let go: more than a publisher waits for what is with Kafka.
const LETTING_GO: Duration = Duration::from_secs(15);

pub(super) async fn once(args: &OnceArgs) -> Result<Ended, CommandError> {
    telemetry::init(&args.log).map_err(|error| CommandError::Usage(format!("RUST_LOG: {error}")))?;
    let health = Health::default();
    let publisher = Publisher {
        pool: db::pool(args.database.options()?, 6),
        sink: args.sink.relay_sink.clone(),
        outbox: args.outbox.outbox(&args.sink.relay_sink)?,
        kafka: args.kafka.settings()?,
        limits: Limits::default(),
        lease: args.lease(),
        holder: crate::holder(),
        once: true,
        health: health.stage("publish"),
        metrics: metrics::unseen(args.sink.relay_sink.as_str())?,
        traces: Traces::default(),
    };
    let shutdown = CancellationToken::new();
    let term = term(&publisher, &shutdown);
    tokio::pin!(term);
    let interrupted = tokio::select! {
        outcome = &mut term => return match outcome {
            Ok(outcome) => ended(args, &publisher, outcome).await,
            Err(error) => gave_up(args, &publisher, error),
        },
        reason = away(&publisher.health, args.patience()) => CommandError::Down(reason),
        () = stop_signal() => CommandError::Failed("stopped before everything was published".to_owned()),
    };
    // What is with Kafka is finished and the lease given up, as far as that is possible.
    shutdown.cancel();
    let _ = tokio::time::timeout(LETTING_GO, term).await;
    gave_up(args, &publisher, interrupted)
}

fn gave_up(args: &OnceArgs, publisher: &Publisher, error: CommandError) -> Result<Ended, CommandError> {
    told(args, &Report::new(publisher, None, None, Some(error.to_string())))?;
    Err(error)
}

/// What is printed as JSON, whatever came of it.
#[derive(Serialize)]
struct Report {
    /// Events that Kafka has acknowledged, repeats included.
    published: u64,
    /// Dead letters that there are; none when the database was not asked.
    dead: Option<i64>,
    /// Who publishes instead.
    holder: Option<String>,
    /// Why not everything that was there is published.
    reason: Option<String>,
}

impl Report {
    fn new(publisher: &Publisher, dead: Option<i64>, holder: Option<String>, reason: Option<String>) -> Self {
        Self { published: publisher.metrics.published.get(), dead, holder, reason }
    }
}

fn told(args: &OnceArgs, report: &Report) -> Result<(), CommandError> {
    if args.output.json { print_json(report) } else { Ok(()) }
}

/// One term of publishing; tried again for as long as PostgreSQL is away.
async fn term(publisher: &Publisher, shutdown: &CancellationToken) -> Result<Outcome, CommandError> {
    let (bells, mut backoff) = (Bells::new(), Backoff::for_outage());
    loop {
        let error = match publisher.run_once(&bells, shutdown).await {
            Ok(outcome) => return Ok(outcome),
            Err(PublishError::Database(error) | PublishError::Source(Unreadable::Database(error))) => {
                CommandError::from(error)
            }
            Err(error) => return Err(CommandError::Failed(error.to_string())),
        };
        let CommandError::Down(reason) = error else { return Err(error) };
        publisher.health.trouble(reason);
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => return Ok(Outcome::Stopped),
        }
    }
}

/// Waits until the publisher has been in trouble for so long, and gives the reason.
async fn away(health: &StageHealth, patience: Duration) -> String {
    let mut since = None;
    loop {
        tokio::time::sleep(LOOK).await;
        match health.problem() {
            None => since = None,
            Some(reason) if since.get_or_insert_with(Instant::now).elapsed() >= patience => return reason,
            Some(_) => {}
        }
    }
}

async fn ended(args: &OnceArgs, publisher: &Publisher, outcome: Outcome) -> Result<Ended, CommandError> {
    let state = lease::state(&publisher.pool, &publisher.sink).await?;
    let dead: i64 =
        dead::groups(&publisher.pool, &publisher.sink).await?.iter().map(|group| group.events).sum();
    let (holder, reason) = match (outcome, state) {
        (_, Some(SinkState { pause_reason: Some(reason), .. })) => {
            (None, format!("paused: {reason}; `relay resume` ends it"))
        }
        (Outcome::Stopped, _) => {
            told(args, &Report::new(publisher, Some(dead), None, None))?;
            if !args.output.json {
                print(&match dead {
                    0 => "everything that was there is published\n".to_owned(),
                    dead => format!(
                        "everything that was there is published, but for {dead} dead letters (`relay dead list`)\n"
                    ),
                })?;
            }
            return Ok(Ended::Done);
        }
        (Outcome::Standby(_) | Outcome::Lost, state) => {
            let holder = state.and_then(|state| state.holder);
            let who = holder.as_deref().unwrap_or("another relay");
            let reason = format!("{who} publishes {} already", publisher.sink);
            (holder, reason)
        }
    };
    told(args, &Report::new(publisher, Some(dead), holder, Some(reason.clone())))?;
    Err(CommandError::Failed(reason))
}
