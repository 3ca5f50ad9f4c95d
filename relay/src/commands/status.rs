//! `relay status`: how every sink is, and what it waits for.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use tokio::time::Instant;

use super::text::{count, number, seconds, span, time};
use super::{CommandError, Ended, print, print_json};
use crate::config::StatusArgs;
use crate::db;
use crate::db::foreign;
use crate::db::inbox::{self, Aside};
use crate::db::status::{self, Backlog, COUNTED, Dead, Mails, Sink, Writer};
use crate::publish::source::OUTBOX;

/// For how long the rate is measured, and how often `--watch` draws.
const SAMPLE: Duration = Duration::from_secs(1);
/// What is shown of a table that cannot be looked into.
const UNKNOWN: &str = "unknown: the table is not there, or this role may not read it";

/// Everything that is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    at: DateTime<Utc>,
    sinks: Vec<SinkStatus>,
    mails: Mails,
    /// What consumers with an inbox in this database have taken aside.
    aside: Vec<Aside>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SinkStatus {
    sink: String,
    /// The outbox table that it reads.
    source: String,
    doing: Doing,
    epoch: i64,
    /// None when nobody publishes.
    holder: Option<String>,
    lease_seconds: Option<f64>,
    /// None, as the holes, when this role may not read a foreign table.
    pending: Option<Pending>,
    /// None when nothing is pending, and for a foreign table, whose rows tell no time.
    oldest_pending_seconds: Option<f64>,
    rate: Rate,
    holes: Option<Holes>,
    dead: Dead,
    paused: Option<Since>,
    circuit: Circuit,
    /// The same as the circuit's reason; scripts read it.
    trouble: Option<Since>,
}

/// What a sink is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Doing {
    Publishing,
    Paused,
    /// The publisher waits for a server.
    InTrouble,
    /// Nobody holds the lease.
    Unattended,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    events: i64,
    /// False when they are too many to count: then it is the span of their numbers.
    exact: bool,
}

/// Numbers settled (acknowledged, parked or proven rolled back) between two looks.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    per_second: f64,
    over_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Holes {
    numbers: i64,
    /// Whose they may be.
    writers: Vec<Writer>,
}

/// Whether the publisher sends: open is not. What it writes of it into the sink's row is what Kafka keeps it
/// from, so this is known wherever the database is.
#[derive(Debug, Serialize)]
struct Circuit {
    open: bool,
    reason: Option<String>,
    since: Option<DateTime<Utc>>,
}

impl Circuit {
    fn of(trouble: Option<&Since>) -> Self {
        Self {
            open: trouble.is_some(),
            reason: trouble.map(|trouble| trouble.reason.clone()),
            since: trouble.map(|trouble| trouble.since),
        }
    }
}

#[derive(Debug, Serialize)]
struct Since {
    since: DateTime<Utc>,
    reason: String,
}

/// One look at what is settled.
struct Look {
    at: Instant,
    sinks: Vec<Sink>,
}

pub(super) async fn run(args: StatusArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let mut before = look(&pool).await?;
    loop {
        tokio::time::sleep(SAMPLE).await;
        let now = look(&pool).await?;
        let status = status(&pool, &before, &now).await?;
        if args.watch && !args.output.json && io::stdout().is_terminal() {
            // Clears the screen and goes to its corner.
            print("\x1b[2J\x1b[H")?;
        }
        if args.output.json && args.watch {
            print(&format!("{}\n", serde_json::to_string(&status)?))?;
        } else if args.output.json {
            print_json(&status)?;
        } else {
            print(&shown(&status))?;
        }
        if !args.watch {
            return Ok(Ended::Done);
        }
        before = now;
    }
}

async fn look(pool: &PgPool) -> Result<Look, CommandError> {
    let sinks = status::sinks(pool).await?;
    Ok(Look { at: Instant::now(), sinks })
}

async fn status(pool: &PgPool, before: &Look, now: &Look) -> Result<Status, CommandError> {
    let elapsed = (now.at - before.at).as_secs_f64();
    let mut sinks = Vec::new();
    for sink in &now.sinks {
        let settled_before = before.sinks.iter().find(|s| s.sink == sink.sink).map_or(0, |s| s.settled);
        let backlog = match sink.source.as_str() {
            OUTBOX => Some(status::backlog(pool, &sink.sink).await?),
            source => foreign::backlog(pool, &sink.sink, source).await?,
        };
        let holes = backlog.as_ref().is_some_and(|backlog| backlog.holes() > 0);
        let writers = if holes { status::writers(pool, &sink.source).await? } else { Vec::new() };
        let dead = status::dead(pool, &sink.sink).await?;
        let rate = Rate {
            // At most some ten thousand a second: exact as a float.
            per_second: (sink.settled - settled_before) as f64 / elapsed,
            over_seconds: elapsed,
        };
        sinks.push(sink_status(sink, backlog.as_ref(), writers, dead, rate));
    }
    Ok(Status { at: Utc::now(), sinks, mails: status::mails(pool).await?, aside: inbox::aside(pool).await? })
}

fn sink_status(
    sink: &Sink,
    backlog: Option<&Backlog>,
    writers: Vec<Writer>,
    dead: Dead,
    rate: Rate,
) -> SinkStatus {
    let since = |at: Option<DateTime<Utc>>, reason: &Option<String>| {
        at.zip(reason.clone()).map(|(since, reason)| Since { since, reason })
    };
    let held = sink.is_held();
    let paused = since(sink.paused_at, &sink.pause_reason);
    // What a holder said that is gone says nothing of now.
    let trouble = since(sink.trouble_since, &sink.trouble).filter(|_| held);
    let doing = match (&paused, held, &trouble) {
        (Some(_), ..) => Doing::Paused,
        (None, false, _) => Doing::Unattended,
        (None, true, Some(_)) => Doing::InTrouble,
        (None, true, None) => Doing::Publishing,
    };
    SinkStatus {
        sink: sink.sink.clone(),
        source: sink.source.clone(),
        doing,
        epoch: sink.epoch,
        holder: sink.holder.clone().filter(|_| held),
        lease_seconds: sink.lease_seconds.filter(|_| held),
        pending: backlog.map(Backlog::pending).map(|(events, exact)| Pending { events, exact }),
        oldest_pending_seconds: backlog
            .and_then(|backlog| backlog.oldest)
            .map(|oldest| seconds(oldest, sink.now)),
        rate,
        holes: backlog.map(|backlog| Holes { numbers: backlog.holes(), writers }),
        dead,
        paused,
        circuit: Circuit::of(trouble.as_ref()),
        trouble,
    }
}

fn shown(status: &Status) -> String {
    let mut text = String::new();
    if status.sinks.is_empty() {
        text.push_str("no relay has ever published from this database: start `relay run`\n");
    }
    for sink in &status.sinks {
        show_sink(&mut text, sink, status.at);
    }
    let Mails { pending, sending, unknown, failed } = status.mails;
    let counted = |n: i64| if n < COUNTED { number(n) } else { format!("{} or more", number(n)) };
    let _ = writeln!(
        text,
        "e-mails\n  pending {}, sending {}, unknown {}, failed {}",
        counted(pending),
        counted(sending),
        counted(unknown),
        counted(failed)
    );
    for Aside { consumer, events, orders } in &status.aside {
        let (events, orders) = (count(*events, "event"), count(*orders, "order"));
        let _ = writeln!(text, "taken aside by {consumer}\n  {events} of {orders}: see `relay inbox list`");
    }
    text
}

fn show_sink(text: &mut String, sink: &SinkStatus, now: DateTime<Utc>) {
    let doing = match sink.doing {
        Doing::Publishing => "publishing",
        Doing::Paused => "PAUSED",
        Doing::InTrouble => "IN TROUBLE",
        Doing::Unattended => "UNATTENDED: nobody publishes; start `relay run publish`",
    };
    let _ = writeln!(text, "{}  {doing}", sink.sink);
    let mut line = |name: &str, words: String| {
        let _ = writeln!(text, "  {name:<13} {words}");
    };
    let since = |Since { since, reason }: &Since| {
        format!("since {} ({}): {reason}", time(*since), span(seconds(*since, now)))
    };
    if let Some(paused) = &sink.paused {
        line("paused", since(paused));
    }
    match &sink.trouble {
        Some(trouble) => line("circuit", format!("open {}", since(trouble))),
        None => line("circuit", "closed".to_owned()),
    }
    line(
        "holder",
        match (&sink.holder, sink.lease_seconds) {
            (Some(holder), Some(left)) => {
                format!("{holder}, lease {} left, epoch {}", span(left), sink.epoch)
            }
            _ => format!("nobody, epoch {}", sink.epoch),
        },
    );
    if sink.source != OUTBOX {
        line("table", sink.source.clone());
    }
    let oldest = sink.oldest_pending_seconds.map(|age| format!(", the oldest {} old", span(age)));
    line(
        "pending",
        match sink.pending {
            Some(Pending { events, exact }) => format!(
                "{}{}{}",
                if exact { "" } else { "about " },
                count(events, "event"),
                oldest.unwrap_or_default()
            ),
            None => UNKNOWN.to_owned(),
        },
    );
    line(
        "rate",
        format!("{:.0} events settled a second, over {}", sink.rate.per_second, span(sink.rate.over_seconds)),
    );
    line(
        "holes",
        match &sink.holes {
            None => UNKNOWN.to_owned(),
            Some(Holes { numbers: 0, .. }) => "none".to_owned(),
            Some(Holes { numbers, .. }) => format!("{} drawn and not visible", count(*numbers, "number")),
        },
    );
    for writer in sink.holes.iter().flat_map(|holes| &holes.writers) {
        line("", shown_writer(writer, now));
    }
    line(
        "dead letters",
        match sink.dead {
            Dead { events: 0, .. } => "none".to_owned(),
            Dead { events, orders } => format!("{} of {}", count(events, "event"), count(orders, "order")),
        },
    );
}

/// `pid 12 (psql, role ada, idle in transaction) since …`
pub(super) fn shown_writer(writer: &Writer, now: DateTime<Utc>) -> String {
    let name = match (&writer.prepared, writer.pid) {
        (Some(prepared), _) => format!("prepared transaction {prepared:?}"),
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => "a prepared transaction".to_owned(),
    };
    let application = writer.application_name.as_deref().filter(|name| !name.is_empty()).map(str::to_owned);
    let role = writer.role.as_ref().map(|role| format!("role {role}"));
    let about: Vec<_> = [application, role, writer.state.clone()].into_iter().flatten().collect();
    let since = writer.since.map(|at| format!(" since {} ({})", time(at), span(seconds(at, now))));
    format!("{name} ({}){}", about.join(", "), since.unwrap_or_default())
}
