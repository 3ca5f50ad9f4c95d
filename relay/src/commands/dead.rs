//! `relay dead`: what Kafka refused, and what becomes of it. The commands only ask: it is the
//! publisher that publishes, because it alone knows what of an order is under way.

use std::collections::BTreeMap;

use serde_json::json;
use uuid::Uuid;

use super::{CommandError, Ended, print, print_json, unknown_sink};
use crate::bell;
use crate::config::{
    DeadCommand, DeadDiscardArgs, DeadListArgs, DeadRetryArgs, DeadSelectionArgs, DeadShowArgs,
};
use crate::db::dead::{self, Letter, Selection};
use crate::db::lease::{self, SinkState};
use crate::db::{self, changes};

pub(super) async fn run(command: &DeadCommand) -> Result<Ended, CommandError> {
    match command {
        DeadCommand::List(args) => list(args).await,
        DeadCommand::Show(args) => show(args).await,
        DeadCommand::Retry(args) => retry(args).await,
        DeadCommand::Discard(args) => discard(args).await,
    }
}

async fn list(args: &DeadListArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let sink = &args.sink.relay_sink;
    let mut text = String::new();
    if args.orders.is_empty() {
        let groups = dead::groups(&pool, sink).await?;
        if args.output.json {
            print_json(&json!({"groups": groups}))?;
            return Ok(Ended::Done);
        }
        for group in &groups {
            text += &format!(
                "{:>7} events of {} orders  {}: {}\n",
                group.events, group.orders, group.cause, group.detail
            );
            text += &format!(
                "        since {}, for example order {}",
                group.oldest.format("%F %T"),
                group.example
            );
            if group.retrying > 0 {
                text += &format!("; {} are being retried", group.retrying);
            }
            text.push('\n');
        }
    } else {
        let selection = Selection { orders: args.orders.clone(), ..Selection::default() };
        let letters = dead::letters(&pool, sink, &selection).await?;
        if args.output.json {
            print_json(&json!({"events": letters}))?;
            return Ok(Ended::Done);
        }
        for letter in &letters {
            let again = if letter.retrying { "  (being retried)" } else { "" };
            let foreign = letter.source_key.as_ref().zip(letter.source_id.as_ref());
            let foreign = foreign.map(|(key, id)| format!("  (key {key}, id {id})")).unwrap_or_default();
            text += &format!(
                "order {} version {}  {}  event {}{foreign}{again}\n        {}: {}\n",
                letter.order_id, letter.version, letter.kind, letter.event_id, letter.cause, letter.detail
            );
        }
    }
    print(if text.is_empty() { "no dead letters\n" } else { &text })?;
    Ok(Ended::Done)
}

async fn show(args: &DeadShowArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let letters = dead::whole(&pool, &args.sink.relay_sink, args.id).await?;
    if letters.is_empty() {
        return Err(CommandError::Failed(format!("no dead letter is, or is of, {}", args.id)));
    }
    if args.output.json {
        print_json(&letters)?;
        return Ok(Ended::Done);
    }
    let mut text = String::new();
    for letter in &letters {
        for (name, value) in letter.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("{name:<13} {value}\n");
        }
        text.push('\n');
    }
    print(&text)?;
    Ok(Ended::Done)
}

async fn retry(args: &DeadRetryArgs) -> Result<Ended, CommandError> {
    let target = &args.target;
    let sink = &target.sink.relay_sink;
    let pool = db::pool(target.database.options()?, 1);
    let mut transaction = pool.begin().await?;
    let state = lease::state(&mut *transaction, sink).await?.ok_or_else(|| unknown_sink(sink))?;
    dead::lock(&mut transaction, sink).await?;
    let chosen =
        selected(&args.which, dead::letters(&mut *transaction, sink, &selection(&args.which)).await?)?;
    // An event without the earlier ones of its order would be out of order: they go first.
    let mut letters = chosen;
    let mut until = None;
    if let (Some(event), Some(letter)) = (args.which.event, letters.first()) {
        until = Some(letter.seq);
        let earlier = dead::earlier(&mut transaction, sink, event).await?;
        let of_order = Selection { orders: vec![letter.order_id], ..Selection::default() };
        let seq = letter.seq;
        letters = dead::letters(&mut *transaction, sink, &of_order).await?;
        letters.retain(|letter| letter.seq == seq || earlier.contains(&letter.seq));
    } else if args.which.cause.is_some() {
        let orders = Selection { orders: orders(&letters), ..Selection::default() };
        letters = dead::letters(&mut *transaction, sink, &orders).await?;
    }
    let orders = orders(&letters);
    if !args.dry_run && !letters.is_empty() {
        dead::ask(&mut transaction, sink, &orders, until).await?;
        let details =
            json!({"sink": sink.as_str(), "orders": orders, "events": letters.len(), "untilSeq": until});
        let by = target.operator.name()?;
        changes::record(&mut transaction, &by, "dead retry", args.reason.as_deref(), &details).await?;
        transaction.commit().await?;
        // A publisher that does not hear it asks within a second.
        bell::ring(&pool, bell::LEASE).await?;
    }
    if target.output.json {
        print_json(&json!({"dryRun": args.dry_run, "orders": orders.len(), "events": letters}))?;
        return Ok(Ended::Done);
    }
    let mut text = plan(&letters, if args.dry_run { "would be published" } else { "will be published" });
    if !letters.is_empty() && !args.dry_run {
        text += &who(&state);
    }
    print(&text)?;
    Ok(Ended::Done)
}

async fn discard(args: &DeadDiscardArgs) -> Result<Ended, CommandError> {
    let target = &args.target;
    let sink = &target.sink.relay_sink;
    let pool = db::pool(target.database.options()?, 1);
    let mut transaction = pool.begin().await?;
    lease::state(&mut *transaction, sink).await?.ok_or_else(|| unknown_sink(sink))?;
    dead::lock(&mut transaction, sink).await?;
    let letters =
        selected(&args.which, dead::letters(&mut *transaction, sink, &selection(&args.which)).await?)?;
    let of_orders = Selection { orders: orders(&letters), ..Selection::default() };
    let seqs: Vec<i64> = letters.iter().map(|letter| letter.seq).collect();
    let mut left = Vec::new();
    if !letters.is_empty() {
        left = dead::letters(&mut *transaction, sink, &of_orders).await?;
        if let Some(busy) = left.iter().find(|letter| letter.retrying) {
            // The publisher may be publishing it at this moment.
            return Err(CommandError::Failed(format!(
                "order {} is being retried; wait until `relay dead list --order {0}` no longer says so",
                busy.order_id
            )));
        }
        left.retain(|letter| !seqs.contains(&letter.seq));
    }
    if !args.dry_run && !letters.is_empty() {
        let by = target.operator.name()?;
        dead::discard(&mut transaction, sink, &seqs, &by, &args.reason).await?;
        let events: Vec<Uuid> = letters.iter().map(|letter| letter.event_id).collect();
        let details = json!({"sink": sink.as_str(), "orders": of_orders.orders, "events": events});
        changes::record(&mut transaction, &by, "dead discard", Some(&args.reason), &details).await?;
        transaction.commit().await?;
        bell::ring(&pool, bell::LEASE).await?;
    }
    if target.output.json {
        print_json(&json!({"dryRun": args.dry_run, "events": letters, "leftBehind": left}))?;
        return Ok(Ended::Done);
    }
    let mut text = plan(&letters, if args.dry_run { "would be discarded" } else { "discarded" });
    if !letters.is_empty() {
        text += "Subscribers never get these versions: what comes later of these orders comes with a gap.\n";
    }
    if !left.is_empty() {
        text += &format!("Still parked, and for `relay dead retry`: {}", plan(&left, "left"));
    }
    print(&text)?;
    Ok(Ended::Done)
}

fn selection(which: &DeadSelectionArgs) -> Selection {
    Selection { orders: which.orders.clone(), event: which.event, cause: which.cause.clone() }
}

/// What was named must be there.
fn selected(which: &DeadSelectionArgs, letters: Vec<Letter>) -> Result<Vec<Letter>, CommandError> {
    if let Some(event) = which.event.filter(|_| letters.is_empty()) {
        return Err(CommandError::Failed(format!("event {event} is no dead letter")));
    }
    let missing = which.orders.iter().find(|order| !letters.iter().any(|letter| letter.order_id == **order));
    match missing {
        Some(order) => Err(CommandError::Failed(format!("order {order} has no dead letters"))),
        None => Ok(letters),
    }
}

fn orders(letters: &[Letter]) -> Vec<Uuid> {
    let mut orders: Vec<Uuid> = letters.iter().map(|letter| letter.order_id).collect();
    orders.dedup();
    orders
}

/// How many, and the versions of the first orders.
fn plan(letters: &[Letter], verb: &str) -> String {
    /// So many orders are shown one by one.
    const SHOWN: usize = 20;
    let mut versions: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for letter in letters {
        versions.entry(letter.order_id).or_default().push(letter.version);
    }
    let mut text = format!("{} events of {} orders {verb}\n", letters.len(), versions.len());
    for order in orders(letters).iter().take(SHOWN) {
        let list: Vec<String> = versions[order].iter().map(i32::to_string).collect();
        text += &format!("  order {order}: version {}\n", list.join(", "));
    }
    if versions.len() > SHOWN {
        text += &format!("  and {} more orders\n", versions.len() - SHOWN);
    }
    text
}

fn who(state: &SinkState) -> String {
    match (state, &state.holder) {
        (SinkState { pause_reason: Some(reason), .. }, _) => {
            format!("Publishing is paused ({reason}): it happens after `relay resume`.\n")
        }
        (_, Some(holder)) => format!("{holder} publishes them; what is refused again is parked again.\n"),
        (_, None) => "Nobody publishes at the moment: it happens as soon as `relay run` does.\n".to_owned(),
    }
}
