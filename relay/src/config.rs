//! The settings: a flag or an environment variable, nothing else.

mod inbox;
mod mending;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lettre::message::Mailbox;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

pub use self::inbox::{
    ConsumerArgs, InboxCommand, InboxListArgs, InboxRetryArgs, InboxShowArgs, InboxSkipArgs,
};
pub use self::mending::{
    ChangesArgs, DeadCommand, DeadDiscardArgs, DeadListArgs, DeadRetryArgs, DeadSelectionArgs, DeadShowArgs,
    OnceArgs, PauseArgs, ReplayAction, ReplayArgs, ResumeArgs, TargetArgs,
};
use crate::foreign::{ForeignOutbox, HeaderColumns, TopicTemplate};
use crate::kafka;
use crate::mail::{InvalidServer, SmtpServer, State, Unsubscribe};
use crate::publish::source::{OUTBOX, Outbox};
use crate::retention::Ages;
use crate::sink::{KAFKA, SinkName};
use crate::traces::Traces;

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
    /// Say how each sink is: who publishes, what is pending, what holds it up.
    #[command(
        after_help = "Example:\n  relay status\n  relay status --watch\n  relay status --json | jq '.sinks[0].pending'"
    )]
    Status(Box<StatusArgs>),
    /// Tell the whole life of an event or of an order, and why it is not further.
    #[command(
        after_help = "Example:\n  relay explain 0198a2a0-0000-7000-8000-000000000001\n  relay explain 4711 --json"
    )]
    Explain(Box<ExplainArgs>),
    /// Compare outbox and topic: what is missing, extra, changed or out of order.
    #[command(
        after_help = "Example:\n  relay audit\n  relay audit --from 2026-01-31T00:00:00Z --to 2026-02-01T00:00:00Z\n  relay audit --from 1000000 --json\n\nExit code 3: it found something."
    )]
    Audit(Box<AuditArgs>),
    /// Check the settings of database, topic, broker and mail server, and say how to mend them.
    #[command(
        after_help = "Example:\n  relay doctor\n\nExit code 3: it found something. 4: a server does not answer; the others are checked all the same."
    )]
    Doctor(Box<DoctorArgs>),
    /// The topic of the order events.
    #[command(
        subcommand,
        after_help = "Example:\n  relay topic apply --partitions 12 --replication 3 --retention 14d"
    )]
    Topic(TopicCommand),
    /// Publish everything there is now, and exit: 0 when done, 1 when somebody else publishes, 4 when
    /// PostgreSQL or Kafka is away.
    #[command(after_help = "Example:\n  relay once --timeout 60\n  relay once --json | jq .published")]
    Once(Box<OnceArgs>),
    /// Have the publisher stand still; it keeps its lease.
    #[command(after_help = "Example:\n  relay pause --reason 'Kafka is upgraded until 18:00'")]
    Pause(PauseArgs),
    /// Have the publisher go on.
    #[command(after_help = "Example:\n  relay resume")]
    Resume(ResumeArgs),
    /// Look at dead letters, retry or discard them.
    #[command(subcommand, after_help = "Example:\n  relay dead list")]
    Dead(DeadCommand),
    /// Look at the events that `notify`, or another consumer with its inbox in this database, has taken
    /// aside, and have them handled again.
    #[command(subcommand, after_help = "Example:\n  relay inbox list --consumer notify")]
    Inbox(InboxCommand),
    /// Publish once more what was published before, with the original ids and a header `replayed: true`.
    #[command(
        after_help = "Example:\n  relay replay --from 2026-01-31T00:00:00Z --to 2026-01-31T12:00:00Z --dry-run\n  relay replay --order 019a3f5e-6d5b-7c11-8b52-0d6e5f3a9c21 --to-topic orders.replay --reason 'a new subscriber'\n  relay replay list\n  relay replay --continue 3 --reason 'Kafka is back'"
    )]
    Replay(Box<ReplayArgs>),
    /// List what operators have changed, newest first.
    #[command(after_help = "Example:\n  relay changes --limit 10 --json")]
    Changes(ChangesArgs),
    /// Look at e-mails, and settle what the relay cannot.
    #[command(subcommand, after_help = "Example:\n  relay mail list --state failed")]
    Mail(MailCommand),
    /// Look at the settings.
    #[command(subcommand, after_help = "Example:\n  relay config check")]
    Config(ConfigCommand),
    /// Look at an outbox table of another program and print the migration and the settings that make it
    /// this relay's. Changes nothing.
    #[command(
        after_help = "Example:\n  relay adopt --table public.outboxevent --outbox-headers type:eventType > adopt.sql\n  psql -f adopt.sql\n  relay adopt --table public.outboxevent --start-now --reason 'Debezium ends' | psql"
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

/// Settings of `relay status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Look again every second until interrupted; with --json, one line of JSON each time.
    #[arg(long)]
    pub watch: bool,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// An order's id, an event's id, or an event's number in the outbox.
    #[arg(value_name = "EVENT|ORDER")]
    pub subject: Subject,
    /// Addresses.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// Kafka, asked only for what nobody has handled yet.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The id of an order or of an event.
    Id(uuid::Uuid),
    /// An event's number in the outbox.
    Seq(i64),
}

impl std::str::FromStr for Subject {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.parse().map(Self::Id).ok();
        let seq = || text.parse().ok().filter(|seq| *seq > 0).map(Self::Seq);
        id.or_else(seq).ok_or("neither a UUID nor a number of the outbox")
    }
}

/// Settings of `relay audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Where to begin: a time (RFC 3339) or a number of the outbox. The oldest event when left out.
    #[arg(long, value_name = "TIME|NUMBER")]
    pub from: Option<Bound>,
    /// Where to end, included: a time (RFC 3339) or a number of the outbox.
    #[arg(long, value_name = "TIME|NUMBER")]
    pub to: Option<Bound>,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// An end of a range of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// When the event was written.
    Time(chrono::DateTime<chrono::Utc>),
    /// Its number in the outbox.
    Seq(i64),
}

impl std::str::FromStr for Bound {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = chrono::DateTime::parse_from_rfc3339(text).map(|time| Self::Time(time.to_utc())).ok();
        let seq = || text.parse().ok().filter(|seq| *seq >= 0).map(Self::Seq);
        time.or_else(seq).ok_or("neither a time like 2026-01-31T12:00:00Z nor a number of the outbox")
    }
}

/// Settings of `relay doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// The notify stage, which has a topic for its dead letters.
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// The mail server.
    #[command(flatten)]
    pub smtp: SmtpArgs,
    /// The sink.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// The outbox table.
    #[command(flatten)]
    pub outbox: OutboxArgs,
    /// How long rows are kept: the topic's own retention is held against it.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What to do with the topic.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create the topic, or bring it up to what is asked for, and create the one for the dead letters of
    /// notify; again changes nothing. Never reduces.
    #[command(
        after_help = "Example:\n  relay topic apply --partitions 12 --replication 3 --retention 14d\n  relay topic apply --dry-run     exit code 3 when there is something to do or to mend"
    )]
    Apply(Box<TopicApplyArgs>),
}

/// Settings of `relay topic apply`. What is left out stays as it is, or becomes the default of a new topic.
#[derive(Debug, Args)]
pub struct TopicApplyArgs {
    /// Partitions; 6 for a new topic when left out.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub partitions: Option<i32>,
    /// Replicas of each partition; 3 for a new topic, or as many as there are brokers.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=32))]
    pub replication: Option<i32>,
    /// How long events stay on the topic: 36h, 14d, or forever.
    #[arg(long, value_name = "TIME")]
    pub retention: Option<Retention>,
    /// Replicas that must have an event before it counts as published; one less than the replicas,
    /// 2 at most, for a new topic.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=32))]
    pub min_insync_replicas: Option<i32>,
    /// Add partitions to a topic that exists: from then on an order's events may go to another
    /// partition than its earlier ones, and consumers lose their order across the change.
    #[arg(long)]
    pub yes_move_orders: bool,
    /// Change nothing; say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the record.
    #[arg(long, value_parser = mending::reason)]
    pub reason: Option<String>,
    /// PostgreSQL, for the record of what was changed; without it there is none.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: Option<Secret>,
    /// Who does it.
    #[command(flatten)]
    pub operator: OperatorArgs,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// The notify stage, which has a topic for its dead letters.
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// How long rows are kept: the topic's own retention is held against it.
    #[command(flatten)]
    pub keeping: RetentionArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How long a topic keeps its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// So long.
    For(Duration),
    /// For ever.
    Forever,
}

impl std::str::FromStr for Retention {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "neither a time like 36h or 14d nor `forever`";
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(WRONG)?;
        let hours = match unit {
            "h" => 1,
            "d" => 24,
            _ => return Err(WRONG),
        };
        let number: u32 = number.parse().map_err(|_| WRONG)?;
        if number == 0 {
            Err(WRONG)
        } else {
            Ok(Self::For(Duration::from_secs(u64::from(number) * hours * 3600)))
        }
    }
}

/// What to do with e-mails.
#[derive(Debug, Subcommand)]
pub enum MailCommand {
    /// List e-mails, the youngest first.
    #[command(after_help = "Example:\n  relay mail list --state failed --state unknown")]
    List(MailListArgs),
    /// Show one e-mail.
    #[command(
        after_help = "Example:\n  relay mail show 01a20eed-818d-74fd-b1bc-ada1c23bef06 --show-addresses"
    )]
    Show(MailShowArgs),
    /// Send failed e-mails again, and those that wait for their next attempt at once.
    #[command(
        after_help = "Example:\n  relay mail retry 01a20eed-818d-74fd-b1bc-ada1c23bef06 --reason 'mailbox is back'\n  relay mail retry --all-failed --reason 'the server takes mail again'"
    )]
    Retry(MailRetryArgs),
    /// Settle an e-mail of which nobody knows whether the server has taken it; the server's log may tell.
    #[command(
        after_help = "Example:\n  relay mail resolve 01a20eed-818d-74fd-b1bc-ada1c23bef06 --sent --reason 'in the log of mx1'"
    )]
    Resolve(MailResolveArgs),
}

/// How addresses are printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct AddressArgs {
    /// Print addresses whole; masked otherwise.
    #[arg(long)]
    pub show_addresses: bool,
}

/// Settings of `relay mail list`.
#[derive(Debug, Args)]
pub struct MailListArgs {
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Only these states; may be given several times.
    #[arg(long, value_enum)]
    pub state: Vec<State>,
    /// Only those of this order.
    #[arg(long, value_name = "ID")]
    pub order: Option<Uuid>,
    /// How many at most.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(i64).range(1..=100_000))]
    pub limit: i64,
    /// How addresses are printed.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay mail show`.
#[derive(Debug, Args)]
pub struct MailShowArgs {
    /// The e-mail, as `relay mail list` shows it.
    pub id: Uuid,
    /// PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How addresses are printed.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Settings of `relay mail retry`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct MailRetryArgs {
    /// The e-mails, as `relay mail list` shows them.
    #[arg(group = "which")]
    pub ids: Vec<Uuid>,
    /// Those of this order.
    #[arg(long, value_name = "ID", group = "which")]
    pub order: Option<Uuid>,
    /// Every one that has failed.
    #[arg(long, group = "which")]
    pub all_failed: bool,
    /// Why, for the record.
    #[arg(long, value_parser = mending::reason)]
    pub reason: String,
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

/// Settings of `relay mail resolve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true))]
pub struct MailResolveArgs {
    /// The e-mails, as `relay mail list --state unknown` shows them.
    #[arg(required = true)]
    pub ids: Vec<Uuid>,
    /// The server has taken it.
    #[arg(long, group = "how")]
    pub sent: bool,
    /// Send it again, with the same Message-ID.
    #[arg(long, group = "how")]
    pub resend: bool,
    /// Why, for the record.
    #[arg(long, value_parser = mending::reason)]
    pub reason: String,
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
    #[arg(long, requires = "reason")]
    pub start_now: bool,
    /// Why it starts now, for the record that this statement writes.
    #[arg(long, value_parser = mending::reason, requires = "start_now")]
    pub reason: Option<String>,
    /// Who starts it, for the same record; the role that runs the statement when left out.
    #[arg(long = "by", env = "RELAY_OPERATOR", value_name = "NAME", value_parser = operator)]
    pub by: Option<String>,
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
    /// The notify stage.
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, env, default_value = "127.0.0.1:9464")]
    pub relay_listen: SocketAddr,
    /// Seconds after which a standby takes over from a publisher that is gone.
    #[arg(long, env, default_value = "4", value_parser = clap::value_parser!(u64).range(2..=60))]
    pub relay_lease_seconds: u64,
    /// How long rows are kept.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// Collector of traces, http://host:4318 (OTLP over HTTP); no traces when left out.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// How mail is sent.
    #[command(flatten)]
    pub mail: MailArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How long rows are kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct RetentionArgs {
    /// Days after which published events are removed from the outbox; 0 keeps them for ever.
    #[arg(long, env, default_value = "7", value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub relay_retention_days: u32,
    /// Days after which dedup keys of the notify stage are removed; 0 keeps them for ever. It must be
    /// longer than the topic keeps its events, or an event that is read again is handled again.
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub relay_inbox_retention_days: u32,
}

impl RetentionArgs {
    /// What is old.
    #[must_use]
    pub(crate) fn ages(self) -> Ages {
        let age = |days: u32| (days > 0).then(|| Duration::from_secs(u64::from(days) * 86_400));
        Ages { outbox: age(self.relay_retention_days), inbox: age(self.relay_inbox_retention_days) }
    }
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

/// Names on Kafka that are the notify stage's own.
#[derive(Clone, Debug, Args)]
pub struct NotifyArgs {
    /// Consumer group of the notify stage.
    #[arg(long, env, default_value = "orders-notify")]
    pub notify_group: String,
    /// Topic for events that the notify stage cannot handle [default: KAFKA_TOPIC.NOTIFY_GROUP.dead].
    #[arg(long, env)]
    pub notify_dead_topic: Option<String>,
}

impl NotifyArgs {
    /// Where the events of `topic` go that the notify stage cannot handle.
    #[must_use]
    pub(crate) fn dead_topic(&self, topic: &str) -> String {
        let default = || format!("{topic}.{}.dead", self.notify_group);
        self.notify_dead_topic.clone().unwrap_or_else(default)
    }
}

/// Where the mail server is, and who sends.
#[derive(Debug, Args)]
pub struct SmtpArgs {
    /// SMTP server: smtp://host:port, smtps://user:password@host:465, smtp://host?tls=required (STARTTLS),
    /// or ?tls=opportunistic (STARTTLS when the server offers it).
    #[arg(long, env, default_value = "smtp://127.0.0.1:1025", hide_env_values = true)]
    pub smtp_url: Secret,
    /// Certificates (PEM) of the CAs that are believed instead of the public ones.
    #[arg(long, env, value_name = "FILE")]
    pub smtp_ca_file: Option<PathBuf>,
    /// Seconds that each step of the conversation may take; the answer to the message may take ten times that.
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub smtp_timeout_seconds: u64,
    /// Sender of the e-mails.
    #[arg(long, env, default_value = "Orders <orders@localhost>")]
    pub mail_from: Mailbox,
}

/// How mail is sent.
#[derive(Debug, Args)]
pub struct MailArgs {
    /// Mails sent at the same time, each on its own connection; no more than the server allows one client.
    #[arg(long, env, default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub mail_connections: u16,
    /// Mails per second, in each process [default: no limit]
    #[arg(long, env, value_name = "N")]
    pub mail_rate: Option<NonZeroU32>,
    /// What an e-mail whose outcome is unknown becomes: sent again with the same Message-ID, or
    /// held for the operator.
    #[arg(long, env, value_enum, default_value = "resend")]
    pub mail_on_unknown: OnUnknown,
    /// Where recipients unsubscribe (List-Unsubscribe), an https: or mailto: URI; {order} in it stands for the
    /// order's id [default: no such header]
    #[arg(long, env, value_name = "URI")]
    pub mail_list_unsubscribe: Option<Unsubscribe>,
    /// Days after which the address of an e-mail that was sent or has failed is erased.
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u32).range(0..=3650))]
    pub mail_erase_days: u32,
}

impl MailArgs {
    /// For how long addresses are kept.
    #[must_use]
    pub fn keep_addresses(&self) -> Duration {
        Duration::from_secs(u64::from(self.mail_erase_days) * 24 * 3600)
    }
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
    /// Who does it, for the record; the name of the user of this machine when left out, and asked for
    /// where there is none, in a container for example.
    #[arg(long = "by", env = "RELAY_OPERATOR", value_name = "NAME", value_parser = operator)]
    pub by: Option<String>,
}

impl OperatorArgs {
    /// The name for the record.
    ///
    /// # Errors
    /// [`InvalidSetting::Operator`]
    #[allow(clippy::disallowed_methods, reason = "who is logged in is no setting")]
    pub fn name(&self) -> Result<String, InvalidSetting> {
        let user = |name: &&str| std::env::var(name).ok().and_then(|user| operator(&user).ok());
        let logged_in = || ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(user);
        self.by.clone().or_else(logged_in).ok_or(InvalidSetting::Operator)
    }
}

fn operator(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if (1..=200).contains(&text.chars().count()) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 200 characters")
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
    /// A password that anybody on the way could read.
    #[error("SMTP_URL has a password and no encryption: use smtps:// or ?tls=required")]
    SmtpPassword,
    /// No certificates of a CA.
    #[error("SMTP_CA_FILE: {0}")]
    SmtpCaFile(String),
    /// A change needs a name for its record.
    #[error(
        "--by or RELAY_OPERATOR must say who does it: no user is logged in here whose name could be kept"
    )]
    Operator,
    /// Not a collector of traces.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT must look like http://host:4318")]
    OtlpEndpoint,
}

impl DatabaseArgs {
    /// How to connect. Statements are not logged: they would show addresses.
    ///
    /// # Errors
    /// [`InvalidSetting::DatabaseUrl`]
    pub fn options(&self) -> Result<PgConnectOptions, InvalidSetting> {
        self.database_url.database()
    }
}

impl Secret {
    /// How to connect to the database of this URL.
    fn database(&self) -> Result<PgConnectOptions, InvalidSetting> {
        let options: PgConnectOptions = self.0.parse().map_err(|_| InvalidSetting::DatabaseUrl)?;
        Ok(options.application_name("relay").disable_statement_logging())
    }
}

impl TopicApplyArgs {
    /// How to connect to the database that keeps the record, if there is one.
    ///
    /// # Errors
    /// [`InvalidSetting::DatabaseUrl`]
    pub(crate) fn database(&self) -> Result<Option<PgConnectOptions>, InvalidSetting> {
        self.database_url.as_ref().map(Secret::database).transpose()
    }
}

impl SmtpArgs {
    /// The mail server.
    ///
    /// # Errors
    /// [`InvalidSetting`]
    pub(crate) fn server(&self) -> Result<SmtpServer, InvalidSetting> {
        let timeout = Duration::from_secs(self.smtp_timeout_seconds);
        SmtpServer::parse(&self.smtp_url.0, self.smtp_ca_file.as_deref(), timeout).map_err(
            |error| match error {
                InvalidServer::Url => InvalidSetting::SmtpUrl,
                InvalidServer::PlainPassword => InvalidSetting::SmtpPassword,
                InvalidServer::CaFile(why) => InvalidSetting::SmtpCaFile(why),
            },
        )
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

impl SmtpArgs {
    /// Whether mails go over a network in the clear.
    #[must_use]
    pub(crate) fn is_plain_to_elsewhere(&self) -> bool {
        let url = self.smtp_url.0.as_str();
        let (_, server) = url.rsplit_once('@').or_else(|| url.split_once("://")).unwrap_or_default();
        let here = ["127.", "localhost", "[::1]"].iter().any(|here| server.starts_with(here));
        url.starts_with("smtp://") && !url.contains("tls=") && !here
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

impl OutboxArgs {
    /// The table that the publisher of `sink` reads.
    ///
    /// # Errors
    /// [`InvalidSetting::OutboxTable`], [`InvalidSetting::ForeignSink`]
    pub(crate) fn outbox(&self, sink: &SinkName) -> Result<Outbox, InvalidSetting> {
        match self.outbox_shape {
            OutboxShape::Orders if self.outbox_table == OUTBOX => Ok(Outbox::Orders),
            OutboxShape::Orders => Err(InvalidSetting::OutboxTable),
            OutboxShape::Debezium if sink.as_str() == KAFKA => Err(InvalidSetting::ForeignSink),
            OutboxShape::Debezium => Ok(Outbox::Foreign(self.routing.outbox(&self.outbox_table))),
        }
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
    /// As [`OutboxArgs::outbox`].
    pub(crate) fn outbox(&self) -> Result<Outbox, InvalidSetting> {
        self.outbox.outbox(&self.sink.relay_sink)
    }

    /// Where spans go, if anywhere.
    ///
    /// # Errors
    /// [`InvalidSetting::OtlpEndpoint`]
    pub(crate) fn traces(&self) -> Result<Traces, InvalidSetting> {
        match self.otlp_endpoint.as_deref() {
            Some(endpoint) => {
                Traces::to(endpoint, &self.kafka.kafka_topic).map_err(|_| InvalidSetting::OtlpEndpoint)
            }
            None => Ok(Traces::default()),
        }
    }

    /// Time to live of the publisher's lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.relay_lease_seconds)
    }
}
