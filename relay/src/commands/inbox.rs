//! `relay inbox`: what consumers have taken aside, and what becomes of it. The commands only ask: the
//! consumer itself handles the events, in the transaction of its effects.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use super::text::{count, time};
use super::{CommandError, Ended, print, print_json};
use crate::config::{
    ConsumerArgs, InboxCommand, InboxListArgs, InboxRetryArgs, InboxShowArgs, InboxSkipArgs, Subject,
};
use crate::db::inbox::{self, Progress, Selection, Stuck, Whole};
use crate::db::{self, changes};

/// Between two looks with `--wait`.
const LOOKS: Duration = Duration::from_millis(500);

/// What a change is about, and how it went.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    dry_run: bool,
    stuck: &'a [Stuck],
    /// Only with `--wait`.
    progress: Option<Progress>,
}

pub(super) async fn run(command: &InboxCommand) -> Result<Ended, CommandError> {
    match command {
        InboxCommand::List(args) => list(args).await,
        InboxCommand::Show(args) => show(args).await,
        InboxCommand::Retry(args) => retry(args).await,
        InboxCommand::Skip(args) => skip(args).await,
    }
}

async fn list(args: &InboxListArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let selection = Selection {
        consumer: args.consumer.clone(),
        ids: args.orders.clone(),
        numbers: Vec::new(),
        cause: args.cause.clone(),
    };
    let stuck = inbox::stuck(&pool, &selection, Some(args.limit)).await?;
    if args.output.json {
        print_json(&json!({"stuck": stuck}))?;
        return Ok(Ended::Done);
    }
    let lines: String = stuck.iter().map(line).collect();
    print(if lines.is_empty() { "nothing is taken aside\n" } else { &lines })?;
    Ok(Ended::Done)
}

async fn show(args: &InboxShowArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let (id, number) = match args.subject {
        Subject::Id(id) => (Some(id), None),
        Subject::Seq(number) => (None, Some(number)),
    };
    let dead = inbox::whole(&pool, args.consumer.as_deref(), id, number).await?;
    if dead.is_empty() {
        let named = id.map(|id| id.to_string()).or(number.map(|number| number.to_string()));
        let named = named.unwrap_or_default();
        return Err(CommandError::Failed(format!("nothing of {named} is taken aside")));
    }
    let dead: Vec<Value> = dead.iter().map(shown).collect();
    if args.output.json {
        print_json(&dead)?;
        return Ok(Ended::Done);
    }
    let mut text = String::new();
    for event in &dead {
        for (name, value) in event.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("{name:<12} {value}\n");
        }
        text.push('\n');
    }
    print(&text)?;
    Ok(Ended::Done)
}

/// Everything about an event; bytes that are no text are shown as far as they are.
fn shown(dead: &Whole) -> Value {
    let words = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<Value> = dead
        .header_names
        .iter()
        .zip(&dead.header_values)
        .map(|(name, value)| json!({"name": name, "value": value.as_ref().map(words)}))
        .collect();
    json!({
        "number": dead.number,
        "consumer": dead.consumer,
        "orderId": dead.order_id,
        "eventId": dead.event_id,
        "cause": dead.cause,
        "reason": dead.reason,
        "deadAt": dead.dead_at,
        "forwardedAt": dead.forwarded_at,
        "topic": dead.topic,
        "partition": dead.partition,
        "offset": dead.offset,
        "publishedAt": dead.published_at,
        "key": dead.key.as_ref().map(words),
        "headers": headers,
        "data": dead.data.as_ref().map(words),
    })
}

async fn retry(args: &InboxRetryArgs) -> Result<Ended, CommandError> {
    let target = &args.target;
    let pool = db::pool(target.database.options()?, 1);
    let selection = Selection {
        consumer: Some(target.consumer.clone()),
        ids: args.ids.clone(),
        numbers: Vec::new(),
        cause: args.cause.clone(),
    };
    let mut transaction = pool.begin().await?;
    if !target.dry_run {
        inbox::lock(&mut transaction, &target.consumer).await?;
    }
    let mut stuck = inbox::stuck(&mut *transaction, &selection, None).await?;
    // What belongs to no order cannot be read, and will not be the next time either.
    stuck.retain(|stuck| stuck.order_id.is_some());
    if stuck.is_empty() && !args.ids.is_empty() {
        return Err(CommandError::Failed(format!("`{}` has taken none of them aside", target.consumer)));
    }
    let orders = orders(&stuck);
    if !target.dry_run && !orders.is_empty() {
        inbox::ask(&mut transaction, &target.consumer, &orders, "retry").await?;
        let details = json!({"consumer": target.consumer, "orders": orders});
        let by = target.operator.name()?;
        changes::record(&mut transaction, &by, "inbox retry", args.reason.as_deref(), &details).await?;
    }
    transaction.commit().await?;
    report(&pool, target, &stuck, "handled again, each with what lies behind it").await
}

async fn skip(args: &InboxSkipArgs) -> Result<Ended, CommandError> {
    let target = &args.target;
    let pool = db::pool(target.database.options()?, 1);
    let mut selection = Selection { consumer: Some(target.consumer.clone()), ..Selection::default() };
    for subject in &args.subjects {
        match subject {
            Subject::Id(id) => selection.ids.push(*id),
            Subject::Seq(number) => selection.numbers.push(*number),
        }
    }
    let mut transaction = pool.begin().await?;
    if !target.dry_run {
        inbox::lock(&mut transaction, &target.consumer).await?;
    }
    let stuck = inbox::stuck(&mut *transaction, &selection, None).await?;
    for subject in &args.subjects {
        blocking(subject, &stuck, &target.consumer)?;
    }
    let orders = orders(&stuck);
    if !target.dry_run {
        let alone: Vec<i64> =
            stuck.iter().filter(|stuck| stuck.order_id.is_none()).map(|stuck| stuck.number).collect();
        inbox::ask(&mut transaction, &target.consumer, &orders, "skip").await?;
        inbox::give_up(&mut transaction, &alone).await?;
        let details = json!({"consumer": target.consumer, "events": stuck});
        let by = target.operator.name()?;
        changes::record(&mut transaction, &by, "inbox skip", Some(&args.reason), &details).await?;
    }
    transaction.commit().await?;
    report(&pool, target, &stuck, "given up; what lies behind it is handled").await
}

/// Only what blocks an order can be skipped, and only as long as nobody handles it: the first event may
/// be another one a moment later.
fn blocking(subject: &Subject, stuck: &[Stuck], consumer: &str) -> Result<(), CommandError> {
    let named = match subject {
        Subject::Id(id) => stuck.iter().find(|s| s.event_id == Some(*id) || s.order_id == Some(*id)),
        Subject::Seq(number) => stuck.iter().find(|stuck| stuck.number == *number),
    };
    match (named, subject) {
        (Some(Stuck { asked: Some(asked), order_id: Some(order), .. }), _) => {
            Err(CommandError::Failed(format!(
                "somebody has asked to {asked} order {order}; wait until `relay inbox list --order {order}` no longer says so"
            )))
        }
        (Some(_), _) => Ok(()),
        (None, Subject::Id(id)) => Err(CommandError::Failed(format!(
            "{id} is no event of `{consumer}` that blocks an order, and no order that is blocked; see `relay inbox list`"
        ))),
        (None, Subject::Seq(number)) => Err(CommandError::Failed(format!(
            "number {number} of `{consumer}` blocks no order; see `relay inbox list`"
        ))),
    }
}

fn orders(stuck: &[Stuck]) -> Vec<Uuid> {
    stuck.iter().filter_map(|stuck| stuck.order_id).collect()
}

/// Says what was asked for, and with `--wait` what became of it.
async fn report(
    pool: &PgPool,
    target: &ConsumerArgs,
    stuck: &[Stuck],
    verb: &str,
) -> Result<Ended, CommandError> {
    let orders = orders(stuck);
    let progress = match target.wait {
        Some(patience) => Some(wait(pool, target, &orders, Duration::from_secs(patience)).await?),
        None => None,
    };
    if target.output.json {
        print_json(&Report { dry_run: target.dry_run, stuck, progress })?;
    } else {
        let verb = format!("{} be {verb}", if target.dry_run { "would" } else { "will" });
        let mut text = format!("{} {verb}\n", count(i64::try_from(stuck.len()).unwrap_or(i64::MAX), "event"));
        text.extend(stuck.iter().map(line));
        text += &match progress {
            _ if target.dry_run || orders.is_empty() => String::new(),
            None => format!(
                "A running `{}` does it within five seconds; what is refused again stays where it is.\n",
                target.consumer
            ),
            Some(Progress { refused: 0, .. }) => "Done.\n".to_owned(),
            Some(Progress { refused, .. }) => {
                format!("{} blocked again: see `relay inbox list`.\n", count(refused, "order"))
            }
        };
        print(&text)?;
    }
    Ok(if progress.is_some_and(|progress| progress.refused > 0) { Ended::Found } else { Ended::Done })
}

/// Waits until nothing is to be done any more of what was asked for, and says every now and then how much is.
async fn wait(
    pool: &PgPool,
    target: &ConsumerArgs,
    orders: &[Uuid],
    patience: Duration,
) -> Result<Progress, CommandError> {
    let end = Instant::now() + patience;
    let mut told = Instant::now();
    loop {
        let progress = inbox::progress(pool, &target.consumer, orders).await?;
        if progress.waiting == 0 {
            return Ok(progress);
        }
        if Instant::now() >= end {
            return Err(CommandError::Failed(format!(
                "{} of {} still wait after {} s: does `{}` run? It does it as soon as it does",
                progress.waiting,
                count(i64::try_from(orders.len()).unwrap_or(i64::MAX), "order"),
                patience.as_secs(),
                target.consumer
            )));
        }
        if told.elapsed() >= Duration::from_secs(5) {
            eprintln!("{} of {} orders wait", progress.waiting, orders.len());
            told = Instant::now();
        }
        tokio::time::sleep(LOOKS).await;
    }
}

fn line(stuck: &Stuck) -> String {
    let order =
        stuck.order_id.map_or_else(|| "no readable order".to_owned(), |order| format!("order {order}"));
    let event = stuck.event_id.map_or_else(|| "unreadable".to_owned(), |event| format!("event {event}"));
    let asked = stuck.asked.as_ref().map(|asked| format!("  ({asked} asked for)")).unwrap_or_default();
    format!(
        "{:>7}  {}  {order}  {event}  since {}, {} behind it{asked}\n         {}\n",
        stuck.number,
        stuck.consumer,
        time(stuck.dead_at),
        stuck.behind,
        stuck.reason
    )
}
