//! `relay pause` and `relay resume`: a publisher that stands still and keeps its lease.

use serde_json::json;

use super::{CommandError, Ended, print, print_json, unknown_sink};
use crate::bell;
use crate::config::{PauseArgs, ResumeArgs, TargetArgs};
use crate::db::lease::{self, SinkState};
use crate::db::{self, changes, sinks};
use crate::sink::KAFKA;

pub(super) async fn pause(args: &PauseArgs) -> Result<Ended, CommandError> {
    let before = change(&args.target, "pause", Some(&args.reason), Some(&args.reason)).await?;
    let (sink, reason) = (&args.target.sink.relay_sink, &args.reason);
    let text = match (&before.holder, before.paused_at) {
        (_, Some(since)) => {
            format!("{sink} has been paused since {}; the reason is now: {reason}\n", since.format("%F %T"))
        }
        (Some(holder), None) => {
            format!("{sink} is paused: {holder} finishes what is with Kafka and stands still\n")
        }
        (None, None) => format!("{sink} is paused: who publishes next stands still\n"),
    };
    told(&args.target, true, &before, &text)
}

pub(super) async fn resume(args: &ResumeArgs) -> Result<Ended, CommandError> {
    let before = change(&args.target, "resume", None, args.reason.as_deref()).await?;
    let sink = &args.target.sink.relay_sink;
    let text = match (before.paused_at, &before.holder) {
        (None, _) => format!("{sink} is not paused\n"),
        (Some(_), Some(holder)) => format!("{sink} goes on: {holder} publishes\n"),
        (Some(_), None) => format!("{sink} is no longer paused, and nobody publishes: start `relay run`\n"),
    };
    told(&args.target, false, &before, &text)
}

/// Makes the change with its record, and gives what there was before.
async fn change(
    target: &TargetArgs,
    command: &str,
    pause: Option<&str>,
    reason: Option<&str>,
) -> Result<SinkState, CommandError> {
    let sink = &target.sink.relay_sink;
    let pool = db::pool(target.database.options()?, 1);
    let mut transaction = pool.begin().await?;
    if pause.is_some() && sink.as_str() == KAFKA {
        // The orders' sink may be paused before its first relay. Another name may be a mistake, and the
        // row of a sink that never publishes would hold up retention for ever.
        sinks::add(&mut transaction, sink).await?;
    }
    let before = lease::state(&mut *transaction, sink).await?.ok_or_else(|| unknown_sink(sink))?;
    if pause.is_none() && before.paused_at.is_none() {
        return Ok(before);
    }
    lease::pause(&mut transaction, sink, pause).await?;
    let details = json!({"sink": sink.as_str()});
    changes::record(&mut transaction, &target.operator.name()?, command, reason, &details).await?;
    transaction.commit().await?;
    // A publisher that does not hear it asks within a second.
    bell::ring(&pool, bell::LEASE).await?;
    Ok(before)
}

fn told(target: &TargetArgs, paused: bool, before: &SinkState, text: &str) -> Result<Ended, CommandError> {
    if target.output.json {
        print_json(&json!({
            "sink": target.sink.relay_sink.as_str(),
            "paused": paused,
            "wasPaused": before.paused_at.is_some(),
            "holder": before.holder,
        }))?;
    } else {
        print(text)?;
    }
    Ok(Ended::Done)
}
