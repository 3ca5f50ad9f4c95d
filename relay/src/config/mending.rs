//! Settings of the commands that change something.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use super::{Bound, DatabaseArgs, KafkaArgs, LogArgs, OperatorArgs, OutboxArgs, OutputArgs, SinkArgs};

/// Settings of `relay pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Why; `/readyz` and `relay changes` show it.
    #[arg(long, value_parser = reason)]
    pub reason: String,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Settings of `relay resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Why.
    #[arg(long, value_parser = reason)]
    pub reason: Option<String>,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What a change is made to, and by whom.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// Who.
    #[command(flatten)]
    pub operator: OperatorArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What to do with the dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List them by cause; those of some orders one by one.
    #[command(
        after_help = "Example:\n  relay dead list\n  relay dead list --order 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21 --json"
    )]
    List(DeadListArgs),
    /// Show everything about one event, or about all of an order.
    #[command(after_help = "Example:\n  relay dead show 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21")]
    Show(DeadShowArgs),
    /// Have the publisher publish them again, in version order.
    #[command(
        after_help = "Example:\n  relay dead retry --cause MessageSizeTooLarge --dry-run\n  relay dead retry --all --reason 'max.message.bytes raised to 8 MiB'"
    )]
    Retry(DeadRetryArgs),
    /// Give them up for good; they are kept as a record.
    #[command(
        after_help = "Example:\n  relay dead discard --event 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21 --reason 'a test order'"
    )]
    Discard(DeadDiscardArgs),
}

/// Settings of `relay dead list`.
#[derive(Debug, Args)]
pub struct DeadListArgs {
    /// Only those of these orders, one by one.
    #[arg(long = "order", value_name = "ORDER", num_args = 1..)]
    pub orders: Vec<Uuid>,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay dead show`.
#[derive(Debug, Args)]
pub struct DeadShowArgs {
    /// Id of an event or of an order.
    #[arg(value_name = "EVENT|ORDER")]
    pub id: Uuid,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which dead letters are meant.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct DeadSelectionArgs {
    /// Those of these orders.
    #[arg(long = "order", value_name = "ORDER", num_args = 1..)]
    pub orders: Vec<Uuid>,
    /// This event.
    #[arg(long, value_name = "EVENT")]
    pub event: Option<Uuid>,
    /// Those of the orders of which an event was refused with these words (any part of them).
    #[arg(long, value_name = "WORDS")]
    pub cause: Option<String>,
    /// All of them.
    #[arg(long)]
    pub all: bool,
}

/// Settings of `relay dead retry`.
#[derive(Debug, Args)]
pub struct DeadRetryArgs {
    /// Which. With an event the earlier ones of its order go first: without them it would be out of order.
    #[command(flatten)]
    pub which: DeadSelectionArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Why; not asked for by --dry-run.
    #[arg(long, value_parser = reason, required_unless_present = "dry_run")]
    pub reason: Option<String>,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Settings of `relay dead discard`.
#[derive(Debug, Args)]
pub struct DeadDiscardArgs {
    /// Which.
    #[command(flatten)]
    pub which: DeadSelectionArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Why; it is kept with the event.
    #[arg(long, value_parser = reason)]
    pub reason: String,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Settings of `relay changes`.
#[derive(Debug, Args)]
pub struct ChangesArgs {
    /// How many, newest first.
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..))]
    pub limit: i64,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay once`.
#[derive(Debug, Args)]
pub struct OnceArgs {
    /// Seconds that PostgreSQL or Kafka may be away before it gives up with exit code 4.
    #[arg(long, default_value = "30", value_name = "SECONDS")]
    pub timeout: u64,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// The outbox table.
    #[command(flatten)]
    pub outbox: OutboxArgs,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// Seconds after which another publisher takes over if this one is killed.
    #[arg(long, env, default_value = "4", value_parser = clap::value_parser!(u64).range(2..=60))]
    pub relay_lease_seconds: u64,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

impl OnceArgs {
    /// How long a dependency may be away.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Time to live of the lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.relay_lease_seconds)
    }
}

/// What to do beside replaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReplayAction {
    /// List the replays, newest first.
    List,
}

/// Settings of `relay replay`. What is meant has to be said: all there is would flood the live topic.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["from", "to", "orders", "kinds", "all", "resumed", "action"]))]
pub struct ReplayArgs {
    /// `list` lists the replays there were; left out, events are replayed.
    #[arg(conflicts_with_all = ["from", "to", "orders", "kinds", "all", "to_topic", "resumed", "dry_run"])]
    pub action: Option<ReplayAction>,
    /// From this number of the outbox, or this time (RFC 3339), inclusive.
    #[arg(long, value_name = "SEQ|TIME")]
    pub from: Option<Bound>,
    /// Up to this number of the outbox, or this time (RFC 3339), inclusive.
    #[arg(long, value_name = "SEQ|TIME")]
    pub to: Option<Bound>,
    /// Only events of these orders.
    #[arg(long = "order", value_name = "ORDER", num_args = 1..)]
    pub orders: Vec<Uuid>,
    /// Only events of these types, for example order.created.v1.
    #[arg(long = "type", value_name = "TYPE", num_args = 1..)]
    pub kinds: Vec<String>,
    /// Everything that is published and still in the outbox.
    #[arg(long, conflicts_with_all = ["from", "to", "orders", "kinds"])]
    pub all: bool,
    /// Publish to this topic instead of KAFKA_TOPIC.
    #[arg(long, value_name = "TOPIC")]
    pub to_topic: Option<String>,
    /// Go on with a replay that was stopped.
    #[arg(long = "continue", value_name = "ID", conflicts_with_all = ["from", "to", "orders", "kinds", "all", "to_topic"])]
    pub resumed: Option<i64>,
    /// Events a second, at most.
    #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Only count.
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds that PostgreSQL or Kafka may be away before it stops with exit code 4.
    #[arg(long, default_value = "30", value_name = "SECONDS")]
    pub timeout: u64,
    /// Why; not asked for by --dry-run.
    #[arg(long, value_parser = reason, required_unless_present_any = ["dry_run", "action"])]
    pub reason: Option<String>,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What `--reason` takes.
pub(super) fn reason(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if (1..=1000).contains(&text.chars().count()) {
        Ok(text.to_owned())
    } else {
        Err("a reason has 1 to 1000 characters")
    }
}
