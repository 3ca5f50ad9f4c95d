//! `relay audit`: compares the outbox with the topic, event by event.
//!
//! What the relay has settled is read before the ends of the topic are taken, so it must be there;
//! the outbox is read after the topic, so what is on the topic must be in it.

mod compare;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::Message as _;
use rdkafka::message::Headers;
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use self::compare::{Comparison, Digest, Expected, Finding, Message, Row, Tally};
use super::text::number;
use super::{CommandError, Ended, orders_only, print, print_json};
use crate::config::{AuditArgs, Bound};
use crate::db;
use crate::db::audit::{self, Settled};
use crate::db::outbox;
use crate::kafka::{self, Settings};
use crate::publish::row::Event;
use crate::topic::blocking;
use crate::topic::read::{Reader, Span};

/// Rows of one read, and bytes of them.
const PAGE: usize = 2_000;
const PAGE_BYTES: usize = 16 << 20;
/// How far the clocks of the database, the relay and the broker may differ.
const CLOCKS: TimeDelta = TimeDelta::minutes(1);

/// What is compared.
#[derive(Clone, Debug)]
struct Range {
    numbers: RangeInclusive<i64>,
    /// Times of writing of the messages that are looked at.
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
}

/// What is printed as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    #[serde(flatten)]
    tally: &'a Tally,
}

pub(super) async fn run(args: AuditArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let kafka = args.kafka.settings()?;
    orders_only(&pool, &args.sink.relay_sink, "relay audit").await?;
    let settled = audit::settled(&pool, args.sink.relay_sink.as_str()).await?;
    let mut range = range(&pool, args.from, args.to).await?;
    if range.from.is_none() && !settled.numbers.is_empty() {
        // Retention has removed every row: nothing that is on the topic by now can be compared.
        range.from = Some(Utc::now());
    }
    let read = range.clone();
    let (settings, mut progress) = (kafka.clone(), Progress::new());
    let topic = blocking(move || read_topic(&settings, &read, &mut progress)).await;
    let (mut comparison, expired) =
        topic.map_err(|error| CommandError::Down(format!("Kafka, topic {}: {error}", kafka.topic)))?;
    compare_rows(&pool, &kafka, &range, &settled, expired, &mut comparison).await?;
    find_extra(&pool, &mut comparison).await?;
    let tally = &comparison.tally;
    if args.output.json {
        print_json(&Report { from: range.from, to: range.to, tally })?;
    } else {
        print(&shown(tally))?;
    }
    Ok(if tally.found() { Ended::Found } else { Ended::Done })
}

/// The numbers and the times of the range that was asked for. What is older than the oldest row is
/// not looked at: retention has removed it.
async fn range(pool: &PgPool, from: Option<Bound>, to: Option<Bound>) -> Result<Range, CommandError> {
    let first = match from {
        None => Some(audit::whole_from(pool).await?),
        Some(Bound::Seq(seq)) => Some(seq),
        Some(Bound::Time(time)) => audit::first_at(pool, time).await?,
    };
    let oldest = match first {
        Some(seq) => audit::first_from(pool, seq).await?.map(|mark| mark.created_at),
        None => None,
    };
    let last = match to {
        None => Some(i64::MAX),
        Some(Bound::Seq(seq)) => Some(seq),
        Some(Bound::Time(time)) => {
            audit::first_at(pool, time + TimeDelta::microseconds(1)).await?.map(|seq| seq - 1)
        }
    };
    let newest = match (to, last) {
        (Some(Bound::Seq(_)), Some(seq)) => audit::last_until(pool, seq).await?.map(|mark| mark.created_at),
        (Some(Bound::Time(time)), _) => Some(time),
        _ => None,
    };
    let from = match from {
        Some(Bound::Time(time)) => Some(time),
        _ => oldest,
    };
    Ok(Range { numbers: first.unwrap_or(i64::MAX)..=last.unwrap_or(i64::MAX), from, to: newest })
}

/// Reads the topic up to its ends of now. Gives also the time up to which its retention may have
/// removed events.
fn read_topic(
    settings: &Settings,
    range: &Range,
    progress: &mut Progress,
) -> Result<(Comparison, Option<DateTime<Utc>>), rdkafka::error::KafkaError> {
    let reader = Reader::new(settings)?;
    let spans = reader.spans()?;
    let expired = expired_until(&reader, &spans)?;
    let spans = match range.from {
        Some(from) => reader.since(&spans, (from - CLOCKS).timestamp_millis())?,
        None => spans,
    };
    let total = spans.iter().map(|span| span.high - span.low).sum();
    let mut comparison = Comparison::new(range.from, range.to);
    let mut done = 0;
    reader.read(&spans, |message| {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key, header.value.unwrap_or_default())).collect()
        });
        comparison.message(&Message {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key(),
            headers: headers.unwrap_or_default(),
            value: message.payload().unwrap_or_default(),
        });
        done += 1;
        progress.tell("messages of the topic read", done, total);
        ControlFlow::Continue(())
    })?;
    progress.clear();
    Ok((comparison, expired))
}

/// An event that was written before this may have been removed by the topic's retention: the oldest
/// message that is left of a partition was handed over then, so what was before it was written before.
fn expired_until(
    reader: &Reader,
    spans: &[Span],
) -> Result<Option<DateTime<Utc>>, rdkafka::error::KafkaError> {
    let cut: Vec<_> = spans.iter().filter(|span| span.low > 0).collect();
    // Of a partition that was emptied anything may have been removed until now.
    let mut expired = cut.iter().any(|span| span.low == span.high).then(Utc::now);
    let oldest: Vec<_> =
        cut.iter().map(|span| Span { high: span.high.min(span.low + 1), ..**span }).collect();
    reader.read(&oldest, |message| {
        let at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
        expired = expired.max(at.map(|at| at + CLOCKS));
        ControlFlow::Continue(())
    })?;
    Ok(expired)
}

async fn compare_rows(
    pool: &PgPool,
    kafka: &Settings,
    range: &Range,
    settled: &Settled,
    expired: Option<DateTime<Utc>>,
    comparison: &mut Comparison,
) -> Result<(), CommandError> {
    let mut progress = Progress::new();
    let (mut next, last) = range.numbers.clone().into_inner();
    let (start, newest) = (next, audit::last_until(pool, last).await?.map_or(next, |mark| mark.seq));
    while next <= last {
        let rows = outbox::read(pool, None, &[next..=last], i64::MAX - 1, PAGE, PAGE_BYTES).await?.rows;
        let Some(end) = rows.last().map(|row| row.seq) else { break };
        for row in &rows {
            let Event::Order(event) = &row.event else { continue };
            let expected = if !settled.numbers.contains(&row.seq) {
                Expected::Pending
            } else if settled.parked.contains(&row.seq) {
                Expected::Parked
            } else if expired.is_some_and(|until| event.created_at <= until) {
                Expected::Expired
            } else {
                Expected::There
            };
            comparison.row(&Row {
                event_id: event.event_id,
                seq: row.seq,
                digest: Digest::of(
                    &kafka::attributes(event, row.aggregate_id, &kafka.source),
                    event.payload.as_bytes(),
                ),
                expected,
            });
        }
        progress.tell("rows of the outbox compared", end - start, newest - start);
        next = end.saturating_add(1);
    }
    progress.clear();
    Ok(())
}

/// What is left of the topic is extra if the outbox does not know it outside the range either, and
/// retention has not removed it meanwhile.
async fn find_extra(pool: &PgPool, comparison: &mut Comparison) -> Result<(), CommandError> {
    let unmatched = comparison.unmatched();
    for ids in unmatched.chunks(PAGE) {
        let known = audit::known(pool, ids).await?;
        let oldest =
            audit::first_from(pool, audit::whole_from(pool).await?).await?.map(|mark| mark.created_at);
        for id in ids.iter().filter(|id| !known.contains(id)) {
            let removed = made_at(*id).zip(oldest).is_some_and(|(made, oldest)| made < oldest);
            if removed {
                comparison.tally.out_of_range += 1;
            } else {
                comparison.extra(*id);
            }
        }
    }
    Ok(())
}

/// When an id was made, if it is a UUIDv7: at or before its row was written.
fn made_at(id: Uuid) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

fn shown(tally: &Tally) -> String {
    let mut text = String::new();
    let mut line = |n: u64, words: &str| {
        let _ = writeln!(text, "{:>12}  {words}", number(i64::try_from(n).unwrap_or(i64::MAX)));
    };
    line(tally.compared, "events are in the outbox and, word for word, on the topic");
    for (n, words) in [
        (tally.repeats, "repeats on the topic, which is allowed"),
        (tally.pending, "events were not published yet when the audit began"),
        (tally.parked, "events are dead letters, or were discarded"),
        (tally.expired, "events are so old that the topic's retention may have removed them"),
        (tally.out_of_range, "messages are older or younger than what was compared"),
        (tally.moved, "orders moved to another partition, when partitions were added"),
    ] {
        if n > 0 {
            line(n, words);
        }
    }
    line(tally.missing, "missing: settled, and not on the topic");
    line(tally.extra, "extra: on the topic, and not in the outbox");
    line(tally.changed, "changed");
    line(tally.out_of_order, "out of order");
    for finding in &tally.findings {
        let Finding { kind, event_id, seq, partition, offset, detail } = finding;
        let event = event_id.map_or_else(|| "a message".to_owned(), |id| format!("event {id}"));
        let seq = seq.map(|seq| format!(", number {seq}"));
        let place = partition
            .zip(*offset)
            .map(|(partition, offset)| format!(", partition {partition} offset {offset}"));
        let _ = writeln!(
            text,
            "{}: {event}{}{}: {detail}",
            kind.words(),
            seq.unwrap_or_default(),
            place.unwrap_or_default()
        );
    }
    text
}

/// A line on standard error that is drawn over, when that is a terminal.
struct Progress {
    shown: bool,
    drawn: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { shown: io::stderr().is_terminal(), drawn: Instant::now() }
    }

    fn tell(&mut self, what: &str, done: i64, of: i64) {
        if self.shown && self.drawn.elapsed() > Duration::from_millis(200) {
            self.drawn = Instant::now();
            // Nothing depends on it.
            let _ = write!(io::stderr(), "\r\x1b[K{} of {} {what}", number(done), number(of));
        }
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
