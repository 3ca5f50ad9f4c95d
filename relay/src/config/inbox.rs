//! Settings of `relay inbox`.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::mending::reason;
use super::{DatabaseArgs, OperatorArgs, OutputArgs, Subject};

/// What to do with events that a consumer has taken aside.
#[derive(Debug, Subcommand)]
pub enum InboxCommand {
    /// List the orders that a consumer has taken aside, oldest first, with the event that blocks each.
    #[command(
        after_help = "Example:\n  relay inbox list\n  relay inbox list --consumer notify --cause 'malformed' --json"
    )]
    List(InboxListArgs),
    /// Show everything about one event, or about all of an order that lie aside: headers and data too.
    #[command(after_help = "Example:\n  relay inbox show 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21")]
    Show(InboxShowArgs),
    /// Have the consumer handle whole orders again, in version order and before anything newer of them.
    #[command(
        after_help = "Example:\n  relay inbox retry --all --dry-run\n  relay inbox retry 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21 --reason 'deployed 1.4.2' --wait 30\n\nExit code 3 with --wait: an event was refused again."
    )]
    Retry(InboxRetryArgs),
    /// Give up the event that blocks an order; it counts as handled, and the later ones are handled.
    #[command(
        after_help = "Example:\n  relay inbox skip 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21 --reason 'a test order' --dry-run"
    )]
    Skip(InboxSkipArgs),
}

/// Settings of `relay inbox list`.
#[derive(Debug, Args)]
pub struct InboxListArgs {
    /// Only what this consumer has taken aside; what `relay run notify` has is under `notify`.
    #[arg(long, value_name = "NAME")]
    pub consumer: Option<String>,
    /// Only these orders.
    #[arg(long = "order", value_name = "ORDER", num_args = 1..)]
    pub orders: Vec<Uuid>,
    /// Only what was refused with these words (any part of them).
    #[arg(long, value_name = "WORDS")]
    pub cause: Option<String>,
    /// How many orders at most.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(i64).range(1..=100_000))]
    pub limit: i64,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay inbox show`.
#[derive(Debug, Args)]
pub struct InboxShowArgs {
    /// An event's id, an order's id, or a number that `relay inbox list` shows.
    #[arg(value_name = "EVENT|ORDER|NUMBER")]
    pub subject: Subject,
    /// Only what this consumer has taken aside.
    #[arg(long, value_name = "NAME")]
    pub consumer: Option<String>,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Whose events, and who changes them.
#[derive(Debug, Args)]
pub struct ConsumerArgs {
    /// The consumer: the name under which it keeps its dedup keys.
    #[arg(long, value_name = "NAME", default_value = crate::notify::CONSUMER)]
    pub consumer: String,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait up to so many seconds until the consumer has done it.
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    pub wait: Option<u64>,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Who does it.
    #[command(flatten)]
    pub operator: OperatorArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay inbox retry`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct InboxRetryArgs {
    /// Orders, by their own ids or those of their events; each is taken whole.
    #[arg(value_name = "ORDER|EVENT", group = "which")]
    pub ids: Vec<Uuid>,
    /// Those of which an event was refused with these words (any part of them).
    #[arg(long, value_name = "WORDS", group = "which")]
    pub cause: Option<String>,
    /// All of them.
    #[arg(long, group = "which")]
    pub all: bool,
    /// Why; not asked for by --dry-run.
    #[arg(long, value_parser = reason, required_unless_present = "dry_run")]
    pub reason: Option<String>,
    /// The consumer.
    #[command(flatten)]
    pub target: ConsumerArgs,
}

/// Settings of `relay inbox skip`.
#[derive(Debug, Args)]
pub struct InboxSkipArgs {
    /// The events that block their orders, by event, order or number.
    #[arg(value_name = "EVENT|ORDER|NUMBER", required = true)]
    pub subjects: Vec<Subject>,
    /// Why.
    #[arg(long, value_parser = reason)]
    pub reason: String,
    /// The consumer.
    #[command(flatten)]
    pub target: ConsumerArgs,
}
