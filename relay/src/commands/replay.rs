//! `relay replay`: publishes once more what was published before. It has a producer of its own and
//! takes no part in the lease: whatever it does, live publishing does not notice.

mod run;

use serde_json::json;

use self::run::{Progress, Stopped};
use super::{CommandError, Ended, orders_only, print, print_json, unknown_sink};
use crate::config::{Bound, ReplayArgs};
use crate::db::replays::{self, Attempt, Filter, Meant, Replay, Resumed};
use crate::db::{self, changes, lease};

pub(super) async fn run(args: &ReplayArgs) -> Result<Ended, CommandError> {
    match (args.action, args.resumed) {
        (Some(_), _) => list(args).await,
        (None, Some(id)) => go_on(args, id).await,
        (None, None) => start(args).await,
    }
}

async fn list(args: &ReplayArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.target.database.options()?, 1);
    let replays = replays::list(&pool, &args.target.sink.relay_sink, None).await?;
    if args.target.output.json {
        print_json(&replays)?;
        return Ok(Ended::Done);
    }
    let line = |replay: &Replay| {
        format!(
            "{:>5}  {}  {:<7}  {} of {} events to {}, by {}\n",
            replay.id,
            replay.started_at.format("%F %T"),
            if replay.state == "running" && !replay.alive { "gone" } else { &replay.state },
            replay.published,
            replay.total,
            replay.topic,
            replay.started_by
        )
    };
    let text: String = replays.iter().map(line).collect();
    print(if text.is_empty() { "nothing was ever replayed\n" } else { &text })?;
    Ok(Ended::Done)
}

async fn start(args: &ReplayArgs) -> Result<Ended, CommandError> {
    let target = &args.target;
    let sink = &target.sink.relay_sink;
    let pool = db::pool(target.database.options()?, 2);
    let mut kafka = args.kafka.settings()?;
    lease::state(&pool, sink).await?.ok_or_else(|| unknown_sink(sink))?;
    orders_only(&pool, sink, "relay replay").await?;
    if let Some(topic) = &args.to_topic {
        kafka.topic.clone_from(topic);
    }
    let filter = filter(args, replays::ends(&pool, &args.orders).await?);
    let meant = replays::count(&pool, sink, &filter, filter.from_seq - 1).await?;
    if args.dry_run {
        return counted(args, &kafka.topic, meant);
    }
    let by = target.operator.name()?;
    let mut transaction = pool.begin().await?;
    let attempt = replays::start(&mut transaction, sink, &kafka.topic, &filter, meant.published, &by).await?;
    let id = attempt.replay;
    let details = json!({
        "sink": sink.as_str(), "replay": id, "topic": kafka.topic, "events": meant.published, "orders": filter.orders,
        "types": filter.kinds, "fromTime": filter.from_time, "toTime": filter.to_time, "fromSeq": filter.from_seq,
        "toSeq": filter.to_seq,
    });
    changes::record(&mut transaction, &by, "replay", args.reason.as_deref(), &details).await?;
    transaction.commit().await?;
    eprintln!("replay {id}: {} events to {}{}", meant.published, kafka.topic, left_out(meant));
    let progress = Progress::new(0, meant.published);
    let end = run::run(args, &pool, kafka, attempt, &filter, filter.from_seq - 1, progress).await;
    told(args, &pool, attempt, end).await
}

/// What a dry run says.
fn counted(args: &ReplayArgs, topic: &str, meant: Meant) -> Result<Ended, CommandError> {
    if args.target.output.json {
        print_json(
            &json!({"dryRun": true, "topic": topic, "events": meant.published, "leftOut": meant.left_out}),
        )?;
    } else {
        print(&format!("{} events would be replayed to {topic}{}\n", meant.published, left_out(meant)))?;
    }
    Ok(Ended::Done)
}

fn left_out(meant: Meant) -> String {
    match meant.left_out {
        0 => String::new(),
        n => format!("; {n} are left out: not published yet, parked or discarded"),
    }
}

async fn go_on(args: &ReplayArgs, id: i64) -> Result<Ended, CommandError> {
    let target = &args.target;
    let sink = &target.sink.relay_sink;
    let pool = db::pool(target.database.options()?, 2);
    let replay = found(&pool, args, id).await?;
    let running = || {
        CommandError::Failed(format!(
            "replay {id} is running: stop it first, or wait a minute if it was killed"
        ))
    };
    if replay.state == "done" {
        if target.output.json {
            print_json(&replay)?;
        } else {
            print(&format!("replay {id} is done\n"))?;
        }
        return Ok(Ended::Done);
    }
    let filter = replay.filter();
    if args.dry_run {
        if replay.alive {
            return Err(running());
        }
        let meant = replays::count(&pool, sink, &filter, replay.position).await?;
        return counted(args, &replay.topic, meant);
    }
    let mut kafka = args.kafka.settings()?;
    kafka.topic.clone_from(&replay.topic);
    let by = target.operator.name()?;
    let mut transaction = pool.begin().await?;
    let Resumed { attempt, position, published } =
        replays::go_on(&mut transaction, id).await?.ok_or_else(running)?;
    let details = json!({"sink": sink.as_str(), "replay": id, "position": position});
    changes::record(&mut transaction, &by, "replay --continue", args.reason.as_deref(), &details).await?;
    transaction.commit().await?;
    let meant = replays::count(&pool, sink, &filter, position).await?;
    eprintln!("replay {id} goes on: {} events to {}", meant.published, kafka.topic);
    let progress = Progress::new(published, published + meant.published);
    let end = run::run(args, &pool, kafka, attempt, &filter, position, progress).await;
    told(args, &pool, attempt, end).await
}

async fn found(pool: &sqlx::PgPool, args: &ReplayArgs, id: i64) -> Result<Replay, CommandError> {
    replays::list(pool, &args.target.sink.relay_sink, Some(id)).await?.pop().ok_or_else(|| {
        CommandError::Failed(format!("there is no replay {id}; `relay replay list` shows them"))
    })
}

/// Notes how it ended, and says it.
async fn told(
    args: &ReplayArgs,
    pool: &sqlx::PgPool,
    attempt: Attempt,
    end: Result<(), Stopped>,
) -> Result<Ended, CommandError> {
    let id = attempt.replay;
    let noted = replays::end(pool, attempt, end.is_ok()).await;
    let go_on = format!("`relay replay --continue {id}` goes on");
    match end {
        Ok(()) => noted?,
        Err(Stopped::ByHand) => return Err(CommandError::Failed(format!("stopped; {go_on}"))),
        Err(Stopped::Away(reason)) => return Err(CommandError::Down(format!("{reason}; {go_on}"))),
        Err(Stopped::Overtaken) => {
            return Err(CommandError::Failed(format!("another process goes on with replay {id}")));
        }
        Err(Stopped::Failed(reason)) => return Err(CommandError::Failed(format!("{reason}; {go_on}"))),
    }
    let replay = found(pool, args, id).await?;
    if args.target.output.json {
        print_json(&replay)?;
    } else {
        print(&format!("replay {id} is done: {} events published to {}\n", replay.published, replay.topic))?;
    }
    match replay.refused {
        0 => Ok(Ended::Done),
        n => Err(CommandError::Failed(format!(
            "{n} events were refused by Kafka, or come behind one that was"
        ))),
    }
}

fn filter(args: &ReplayArgs, (lowest, highest): (i64, i64)) -> Filter {
    let seq = |bound: Option<Bound>| {
        bound.and_then(|bound| if let Bound::Seq(seq) = bound { Some(seq) } else { None })
    };
    let time = |bound: Option<Bound>| {
        bound.and_then(|bound| if let Bound::Time(time) = bound { Some(time) } else { None })
    };
    Filter {
        orders: args.orders.clone(),
        kinds: args.kinds.clone(),
        from_time: time(args.from),
        to_time: time(args.to),
        from_seq: seq(args.from).unwrap_or(lowest).max(lowest),
        // What is committed from now on is no part of it.
        to_seq: seq(args.to).unwrap_or(highest).min(highest),
    }
}
