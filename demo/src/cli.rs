//! The command line and its environment variables.

use clap::{Args, Parser, Subcommand};

/// Runs the pipeline with servers of its own and shows what it does.
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example: make demo ARGS='--once --orders 2000'"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) demo: Demo,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts PostgreSQL and Kafka for a command; TEST_DATABASE_URL and TEST_KAFKA_BROKERS name them.
    #[command(after_help = "Example: demo services -- cargo test --workspace")]
    Services {
        /// The command and its arguments; without one the servers stay up until ctrl-c.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// End after the closing table; exit code 0 only if nothing was lost, nothing is missing and no order is there twice.
    #[arg(long)]
    pub(crate) once: bool,
    /// How many orders the burst has.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) orders: u32,
    /// Leave data and logs where they are at the end, and say where.
    #[arg(long)]
    pub(crate) keep: bool,
    /// A PostgreSQL to use instead of starting one.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// A Kafka to use instead of starting one.
    #[arg(long, env)]
    pub(crate) kafka_brokers: Option<String>,
    /// The topic on that Kafka.
    #[arg(long, env, default_value = "orders.events.v1")]
    pub(crate) kafka_topic: String,
    /// An SMTP server to use instead of the demo's mailbox.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) smtp_url: Option<String>,
}
