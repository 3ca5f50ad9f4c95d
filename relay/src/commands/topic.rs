//! `relay topic apply`: creates the topic, or brings it up to what is asked for, and creates the one for the
//! dead letters of `notify`; never reduces.

mod checks;
mod plan;

use std::fmt::Write as _;

use rdkafka::error::KafkaError;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;

pub(super) use self::checks::{check, letters};
use super::finding::{self, Finding, Severity};
use super::{CommandError, Ended, print, print_json};
use crate::config::{TopicApplyArgs, TopicCommand};
use crate::db::{self, changes};
use crate::kafka;
use crate::topic::admin::{self, Cluster};

/// What is printed as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    topic: &'a str,
    dry_run: bool,
    /// What was done, or would be.
    changes: Vec<String>,
    findings: &'a [Finding],
}

pub(super) async fn run(command: TopicCommand) -> Result<Ended, CommandError> {
    let TopicCommand::Apply(args) = command;
    apply(*args).await
}

async fn apply(args: TopicApplyArgs) -> Result<Ended, CommandError> {
    let kafka = args.kafka.settings()?;
    let letters = kafka::Settings { topic: args.notify.dead_topic(&kafka.topic), ..kafka.clone() };
    let down = |error: KafkaError| match error {
        KafkaError::AdminOp(code) => CommandError::Failed(format!("Kafka refuses: {code}")),
        error => CommandError::Down(format!("Kafka at {} does not answer: {error}", kafka.brokers)),
    };
    let mut cluster = admin::describe(&kafka).await.map_err(down)?;
    let message_bytes = kafka.message_bytes();
    let plan = plan::plan(&args, &cluster, message_bytes).map_err(CommandError::Failed)?;
    let mut of_letters = admin::describe(&letters).await.map_err(down)?;
    let plan_letters = plan::letters(&args, &of_letters, message_bytes).map_err(CommandError::Failed)?;
    let changes: Vec<String> = [(&plan, &kafka), (&plan_letters, &letters)]
        .into_iter()
        .flat_map(|(plan, on)| plan.iter().map(|change| plan::words(change, &on.topic)))
        .collect();
    if !args.dry_run && !changes.is_empty() {
        let record = Record::open(&args).await?;
        cluster = made(&kafka, cluster, &plan).await.map_err(down)?;
        of_letters = made(&letters, of_letters, &plan_letters).await.map_err(down)?;
        if let Some(record) = record {
            record.keep(&kafka.topic, &changes).await?;
        }
    }
    let mut findings = check(&cluster, &kafka.topic, message_bytes, &args.keeping.ages());
    findings.push(checks::letters(&of_letters, &letters.topic, message_bytes));
    let open = args.dry_run && (!changes.is_empty() || finding::worst(&findings) > Severity::Ok);
    if args.output.json {
        print_json(&Report { topic: &kafka.topic, dry_run: args.dry_run, changes, findings: &findings })?;
    } else {
        print(&shown(&changes, args.dry_run, &findings))?;
    }
    Ok(if open { Ended::Found } else { Ended::Done })
}

/// Where it is kept who changed the topic. Kafka knows no transaction that holds both, so the database is
/// asked before anything is changed, and written to afterwards.
struct Record<'a> {
    pool: PgPool,
    by: String,
    reason: Option<&'a str>,
}

impl<'a> Record<'a> {
    /// None without `DATABASE_URL`: a topic is often made before there is a database.
    async fn open(args: &'a TopicApplyArgs) -> Result<Option<Self>, CommandError> {
        let Some(database) = args.database()? else { return Ok(None) };
        let by = args.operator.name()?;
        let pool = db::pool(database, 1);
        changes::latest(&pool, 1).await?;
        Ok(Some(Self { pool, by, reason: args.reason.as_deref() }))
    }

    async fn keep(&self, topic: &str, changes: &[String]) -> Result<(), CommandError> {
        let details = json!({"topic": topic, "changes": changes});
        let mut connection = self.pool.acquire().await?;
        changes::record(&mut connection, &self.by, "topic apply", self.reason, &details).await?;
        Ok(())
    }
}

/// Makes the changes of one topic and gives how it is then.
async fn made(
    kafka: &kafka::Settings,
    before: Cluster,
    plan: &[admin::Change],
) -> Result<Cluster, KafkaError> {
    for change in plan {
        admin::change(kafka, &before, change).await?;
    }
    if plan.is_empty() { Ok(before) } else { settled(kafka, plan).await }
}

/// The topic after the changes. Brokers hear of them a moment after the controller has noted them.
async fn settled(kafka: &kafka::Settings, plan: &[admin::Change]) -> Result<Cluster, KafkaError> {
    const TRIES: u32 = 40;
    let mut tries = 0;
    loop {
        let cluster = admin::describe(kafka).await;
        let shows =
            cluster.as_ref().is_ok_and(|cluster| plan.iter().all(|change| plan::shows(cluster, change)));
        if shows || tries == TRIES {
            return cluster;
        }
        tries += 1;
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
}

fn shown(changes: &[String], dry_run: bool, findings: &[Finding]) -> String {
    let mut text = String::new();
    if changes.is_empty() {
        text.push_str("nothing to change\n");
    }
    for change in changes {
        let _ = writeln!(text, "{}{change}", if dry_run { "would " } else { "done: " });
    }
    text + &finding::shown(findings)
}
