//! The settings: a flag or an environment variable, nothing else.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lettre::message::Mailbox;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::foreign::{ForeignOutbox, HeaderColumns, TopicTemplate};
use crate::kafka;
use crate::mail::Smtp;
use crate::publish::source::{OUTBOX, Outbox};
use crate::sink::{KAFKA, SinkName};

/// Publishes the outbox to Kafka and sends the notifications.
#[derive(Debug, Parser)]
#[command(
    name = "relay",
    version,
    after_help = "Example:\n  DATABASE_URL=postgres://orders@127.0.0.1/orders relay run"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run stages until SIGTERM or SIGINT; all three when none is named.
    #[command(
        after_help = "Example:\n  relay run publish     only the publisher\n  relay run             publish, notify and mail in one process"
    )]
    Run(Box<RunArgs>),
    /// Look at the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at an outbox table of another program and print the migration and the settings that make it
    /// this relay's. Changes nothing.
    #[command(
        after_help = "Example:\n  relay adopt --table public.outboxevent --outbox-headers type:eventType > adopt.sql\n  psql -f adopt.sql\n  relay adopt --table public.outboxevent --start-now | psql"
    )]
    Adopt(Box<AdoptArgs>),
    /// Print a script that completes commands in a shell.
    #[command(after_help = "Example:\n  relay completions bash > /etc/bash_completion.d/relay")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for every command into a folder.
    #[command(after_help = "Example:\n  relay man /usr/local/share/man/man1")]
    Man {
        /// The folder; it must exist.
        folder: std::path::PathBuf,
    },
}

/// What to do with the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what `relay run` would use, secrets left out; exit code 2 names what is wrong.
    #[command(after_help = "Example:\n  relay config check --json")]
    Check(Box<ConfigCheckArgs>),
}

/// Settings of `relay config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The settings to look at.
    #[command(flatten)]
    pub run: RunArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The table, as SQL writes it.
    #[arg(long, env = "OUTBOX_TABLE", value_name = "TABLE")]
    pub table: String,
    /// The sink that will publish it; the table's name when left out.
    #[arg(long, env = "RELAY_SINK", value_name = "NAME")]
    pub sink: Option<SinkName>,
    /// PostgreSQL, as the role that the relay will have.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How its rows will become messages.
    #[command(flatten)]
    pub routing: RoutingArgs,
    /// Print the migration for a big table: it rewrites nothing and locks for moments only.
    #[arg(long, conflicts_with = "start_now")]
    pub online: bool,
    /// Print, instead of the migration, the statement that counts what is in the table now as published.
    #[arg(long)]
    pub start_now: bool,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A stage of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Moves the outbox to Kafka.
    Publish,
    /// Turns order events into notifications.
    Notify,
    /// Sends the notifications by SMTP.
    Mail,
}

/// Settings of `relay run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Stages to run.
    pub stages: Vec<Stage>,
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
    /// The mail server.
    #[command(flatten)]
    pub smtp: SmtpArgs,
    /// Consumer group of the notify stage.
    #[arg(long, env, default_value = "orders-notify")]
    pub notify_group: String,
    /// Where to serve /healthz and /readyz.
    #[arg(long, env, default_value = "127.0.0.1:9464")]
    pub relay_listen: SocketAddr,
    /// Seconds after which a standby takes over from a publisher that is gone.
    #[arg(long, env, default_value = "4", value_parser = clap::value_parser!(u64).range(2..=60))]
    pub relay_lease_seconds: u64,
    /// What an e-mail whose outcome is unknown becomes: sent again with the same Message-ID, or
    /// held for the operator.
    #[arg(long, env, value_enum, default_value = "resend")]
    pub mail_on_unknown: OnUnknown,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where PostgreSQL is.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL, for example postgres://user:password@host/database.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: Secret,
}

/// Which sink is meant.
#[derive(Clone, Debug, Args)]
pub struct SinkArgs {
    /// The sink: the name under which lease, progress and dead letters are kept. Each outbox table
    /// has its own.
    #[arg(long = "sink", env = "RELAY_SINK", default_value = KAFKA, value_name = "NAME")]
    pub relay_sink: SinkName,
}

/// Which table the publisher reads, and how its rows become messages.
#[derive(Clone, Debug, Args)]
pub struct OutboxArgs {
    /// Shape of the outbox table.
    #[arg(long, env, value_enum, default_value = "orders")]
    pub outbox_shape: OutboxShape,
    /// The outbox table, for example public.outboxevent; the orders' is always `outbox`.
    #[arg(long, env, default_value = OUTBOX)]
    pub outbox_table: String,
    /// Columns and headers of the foreign shape.
    #[command(flatten)]
    pub routing: RoutingArgs,
}

/// How the rows of a foreign outbox table become messages.
#[derive(Clone, Debug, Args)]
pub struct RoutingArgs {
    /// Topic of a foreign table's events; {aggregatetype} stands for the aggregate type.
    #[arg(long, env, default_value = "outbox.event.{aggregatetype}")]
    pub outbox_topic: TopicTemplate,
    /// Columns of a foreign table that become headers beside `id`: column:header,column:header.
    #[arg(long, env, default_value = "")]
    pub outbox_headers: HeaderColumns,
}

/// The shape of an outbox table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutboxShape {
    /// The table of this pipeline; its events are those of the contract.
    Orders,
    /// What Debezium's outbox event router reads, with a column `seq`; see `relay adopt`.
    Debezium,
}

/// Where Kafka is, and what goes there.
#[derive(Debug, Args)]
pub struct KafkaArgs {
    /// Kafka bootstrap servers, host:port,host:port.
    #[arg(long, env, default_value = "127.0.0.1:9092")]
    pub kafka_brokers: String,
    /// Topic of the order events.
    #[arg(long, env, default_value = "orders.events.v1")]
    pub kafka_topic: String,
    /// More librdkafka properties, k=v,k=v (TLS, SASL, tuning).
    #[arg(long, env, default_value = "", hide_env_values = true)]
    pub kafka_properties: Secret,
    /// CloudEvents source of every event, a URI-reference. Source and id together are unique.
    #[arg(long, env, default_value = "/orders")]
    pub events_source: String,
}

/// Where the mail server is, and who sends.
#[derive(Debug, Args)]
pub struct SmtpArgs {
    /// SMTP server: smtp://host:port, smtps://user:password@host:465, smtp://host?tls=required.
    #[arg(long, env, default_value = "smtp://127.0.0.1:1025", hide_env_values = true)]
    pub smtp_url: Secret,
    /// Sender of the e-mails.
    #[arg(long, env, default_value = "Orders <orders@localhost>")]
    pub mail_from: Mailbox,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Who changes something; it is kept with the change.
#[derive(Clone, Debug, Args)]
pub struct OperatorArgs {
    /// Who does it, for the record; the name of the user of this machine when left out.
    #[arg(long = "by", env = "RELAY_OPERATOR", value_name = "NAME")]
    pub by: Option<String>,
}

impl OperatorArgs {
    /// The name for the record.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "who is logged in is no setting")]
    pub fn name(&self) -> String {
        let user = || ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        self.by.clone().or_else(user).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// What to do with an e-mail whose outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnUnknown {
    /// Send it again with the same Message-ID.
    Resend,
    /// Leave it as it is.
    Hold,
}

/// Settings of logging.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Which log lines to write, in the syntax of tracing's EnvFilter.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// How log lines are written.
    #[arg(long, env, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that may hold a password. It is not parsed by clap, which repeats what it cannot parse,
/// and it is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A setting that cannot be used; the message names it, says what is right, and repeats no secret.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSetting {
    /// Not a URL of PostgreSQL.
    #[error("DATABASE_URL must look like postgres://user:password@host:port/database")]
    DatabaseUrl,
    /// Not librdkafka properties, or one that would undo a guarantee.
    #[error("KAFKA_PROPERTIES: {0}")]
    KafkaProperties(String),
    /// Not a URL of a mail server.
    #[error(
        "SMTP_URL must look like smtp://host:port, smtps://user:password@host:465 or smtp://host?tls=required"
    )]
    SmtpUrl,
    /// The orders' table has one name.
    #[error("OUTBOX_TABLE must be `outbox` unless OUTBOX_SHAPE says `debezium`")]
    OutboxTable,
    /// The orders' sink is for the orders' table.
    #[error("RELAY_SINK must name a sink of the foreign table's own: `{KAFKA}` is that of the orders")]
    ForeignSink,
}

impl DatabaseArgs {
    /// How to connect. Statements are not logged: they would show addresses.
    ///
    /// # Errors
    /// [`InvalidSetting::DatabaseUrl`]
    pub fn options(&self) -> Result<PgConnectOptions, InvalidSetting> {
        let options: PgConnectOptions =
            self.database_url.0.parse().map_err(|_| InvalidSetting::DatabaseUrl)?;
        Ok(options.application_name("relay").disable_statement_logging())
    }
}

impl SmtpArgs {
    /// Connections to the mail server.
    ///
    /// # Errors
    /// [`InvalidSetting::SmtpUrl`]
    pub(crate) fn connections(&self) -> Result<Smtp, InvalidSetting> {
        Smtp::new(&self.smtp_url.0).map_err(|_| InvalidSetting::SmtpUrl)
    }
}

impl SmtpArgs {
    /// The server as it may be shown: without user and password.
    #[must_use]
    pub(crate) fn shown(&self) -> String {
        let url = self.smtp_url.0.as_str();
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, server))) => format!("{scheme}://…@{server}"),
            _ => url.to_owned(),
        }
    }
}

impl KafkaArgs {
    /// Where Kafka is.
    ///
    /// # Errors
    /// [`InvalidSetting::KafkaProperties`]
    pub(crate) fn settings(&self) -> Result<kafka::Settings, InvalidSetting> {
        Ok(kafka::Settings {
            brokers: self.kafka_brokers.clone(),
            topic: self.kafka_topic.clone(),
            source: self.events_source.clone(),
            properties: self.kafka_properties.0.parse().map_err(InvalidSetting::KafkaProperties)?,
        })
    }
}

impl RoutingArgs {
    /// How a table's rows become messages.
    pub(crate) fn outbox(&self, table: &str) -> ForeignOutbox {
        ForeignOutbox {
            table: table.to_owned(),
            topic: self.outbox_topic.clone(),
            headers: self.outbox_headers.clone(),
        }
    }
}

impl RunArgs {
    /// The stages to run.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        let all = Stage::value_variants().iter().copied();
        all.filter(|stage| self.stages.is_empty() || self.stages.contains(stage)).collect()
    }

    /// The table that the publisher reads.
    ///
    /// # Errors
    /// [`InvalidSetting::OutboxTable`], [`InvalidSetting::ForeignSink`]
    pub(crate) fn outbox(&self) -> Result<Outbox, InvalidSetting> {
        let OutboxArgs { outbox_shape, outbox_table, routing } = &self.outbox;
        match outbox_shape {
            OutboxShape::Orders if outbox_table == OUTBOX => Ok(Outbox::Orders),
            OutboxShape::Orders => Err(InvalidSetting::OutboxTable),
            OutboxShape::Debezium if self.sink.relay_sink.as_str() == KAFKA => {
                Err(InvalidSetting::ForeignSink)
            }
            OutboxShape::Debezium => Ok(Outbox::Foreign(routing.outbox(outbox_table))),
        }
    }

    /// Time to live of the publisher's lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.relay_lease_seconds)
    }
}
