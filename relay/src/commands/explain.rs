//! `relay explain`: the whole life of an order's events, and why each is not further.

mod lookup;
mod reason;

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use self::lookup::{Found, Lookup};
use super::status::shown_writer;
use super::text::{count, seconds, span, time, without_addresses};
use super::{CommandError, Ended, orders_only, print, print_json};
use crate::config::{ExplainArgs, Subject};
use crate::db::explain::{self, Event, Mail, Order, Request};
use crate::db::status;
use crate::publish::source::OUTBOX;
use crate::{db, kafka};

/// What is told of an order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Life {
    order_id: Uuid,
    /// None when the order is not in this database; its events may be.
    client_id: Option<String>,
    status: Option<String>,
    /// Only with `--show-addresses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_email: Option<String>,
    events: Vec<EventLife>,
}

/// What is told of an event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventLife {
    event_id: Uuid,
    version: i32,
    r#type: Option<String>,
    seq: Option<i64>,
    trace_id: Option<String>,
    steps: Vec<Step>,
    /// Whether everything has happened to it that can.
    done: bool,
    /// Why it is not further, or what ended its way.
    reason: String,
}

/// Something that happened, on the clock of whoever did it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    step: &'static str,
    at: Option<DateTime<Utc>>,
    /// Since the step before; may be a little below 0 when two machines' clocks differ.
    after_seconds: Option<f64>,
    detail: String,
}

/// The state of things in which an event is stuck.
struct Surroundings {
    sink: Option<status::Sink>,
    /// The address is there.
    has_address: Option<bool>,
    show_addresses: bool,
}

pub(super) async fn run(args: ExplainArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let kafka = args.kafka.settings()?;
    let sink = args.sink.relay_sink.as_str();
    orders_only(&pool, &args.sink.relay_sink, "relay explain").await?;
    let Some(order_id) = explain::order_of(&pool, args.subject).await? else {
        return Err(nothing_known(&status::writers(&pool, OUTBOX).await?));
    };
    let order = explain::order(&pool, order_id).await?;
    let requests = match &order {
        Some(order) => explain::requests(&pool, &order.client_id, order_id).await?,
        None => Vec::new(),
    };
    let events = explain::events(&pool, sink, order_id).await?;
    let mails = explain::mails(&pool, order_id).await?;
    let around = Surroundings {
        sink: status::sinks(&pool).await?.into_iter().find(|known| known.sink == sink),
        has_address: order.as_ref().map(|order| order.customer_email.is_some()),
        show_addresses: args.addresses.show_addresses,
    };
    let lookup = look_up(&kafka, order_id, &events).await;
    let lives = events
        .iter()
        .filter(|event| wanted(event, order_id, args.subject))
        .map(|event| {
            let mail = mails.iter().find(|mail| mail.order_version == event.version);
            let request = order.as_ref().and_then(|order| request_of(order, &requests, event));
            event_life(event, request, mail, lookup.get(&event.event_id), &events, &around)
        })
        .collect();
    let life = Life {
        order_id,
        client_id: order.as_ref().map(|order| order.client_id.clone()),
        status: order.as_ref().map(|order| order.status.clone()),
        customer_email: order
            .and_then(|order| order.customer_email)
            .filter(|_| args.addresses.show_addresses),
        events: lives,
    };
    if args.output.json {
        print_json(&life)?;
    } else {
        print(&shown(&life))?;
    }
    Ok(Ended::Done)
}

/// An order is told with all its events, an event alone.
fn wanted(event: &Event, order: Uuid, subject: Subject) -> bool {
    match subject {
        Subject::Id(id) => id == order || id == event.event_id,
        Subject::Seq(seq) => event.seq == Some(seq),
    }
}

fn nothing_known(writers: &[status::Writer]) -> CommandError {
    let now = Utc::now();
    let writers: Vec<_> = writers.iter().map(|writer| format!("\n  {}", shown_writer(writer, now))).collect();
    let open = match writers.len() {
        0 => "no transaction that writes to the outbox is open: it was rolled back, or never was".to_owned(),
        _ => format!("it may belong to a transaction that is not committed yet:{}", writers.concat()),
    };
    CommandError::Failed(format!("no committed order or event is known by that name; {open}"))
}

/// Looks on the topic for what is settled and nobody has handled.
async fn look_up(kafka: &kafka::Settings, order: Uuid, events: &[Event]) -> Lookup {
    let wanted: Vec<_> = events
        .iter()
        .filter(|event| event.settled == Some(true) && event.cause.is_none() && event.published_at.is_none())
        .filter_map(|event| Some((event.event_id, event.committed_at?)))
        .collect();
    if wanted.is_empty() { Lookup::new() } else { lookup::look_up(kafka.clone(), order, wanted).await }
}

/// The request that made the event: when it was taken, and what is remembered of it.
fn request_of(order: &Order, requests: &[Request], event: &Event) -> Option<Step> {
    let operation = match event.version {
        1 => "create",
        _ => "cancel",
    };
    let request = requests.iter().find(|request| request.operation.contains(operation));
    let known = request.map(|request| {
        format!("by client {}, key {}, answered {}", order.client_id, request.key, request.response_status)
    });
    let at =
        if event.version == 1 { Some(order.created_at) } else { request.map(|request| request.created_at) };
    let detail = known.unwrap_or_else(|| format!("by client {}, its key is forgotten", order.client_id));
    at.map(|at| Step { step: "request", at: Some(at), after_seconds: None, detail })
}

fn event_life(
    event: &Event,
    request: Option<Step>,
    mail: Option<&Mail>,
    found: Option<&Found>,
    all: &[Event],
    around: &Surroundings,
) -> EventLife {
    let step = |step, at, detail: String| Step { step, at, after_seconds: None, detail };
    let mut steps: Vec<Step> = request.into_iter().collect();
    steps.push(match (event.committed_at, event.seq) {
        (Some(at), Some(seq)) => step("written", Some(at), format!("number {seq} of the outbox")),
        _ => step("written", None, "the outbox has forgotten it".to_owned()),
    });
    if let (Some(cause), Some(detail)) = (&event.cause, &event.detail) {
        steps.push(step("parked", event.parked_at, format!("{cause}: {detail}")));
    }
    if let (Some(topic), Some(partition), Some(offset)) = (&event.topic, event.partition, event.offset) {
        let place = format!("partition {partition}, offset {offset} of {topic}");
        steps.push(step("published", event.published_at, place));
    } else if let Some(Found::At { partition, offset, at, topic }) = found {
        steps.push(step("published", *at, format!("partition {partition}, offset {offset} of {topic}")));
    }
    if let (Some(cause), Some(reason)) = (&event.aside, &event.aside_reason) {
        steps.push(step("aside", event.aside_at, format!("by notify, {cause}: {reason}")));
    }
    if let Some(at) = event.notified_at {
        steps.push(step("handled", Some(at), "by notify".to_owned()));
    }
    if let Some(mail) = mail {
        steps.push(step(
            "e-mail",
            Some(mail.created_at),
            format!("{}, id {}, Message-ID {}", mail.kind, mail.notification_id, mail.message_id),
        ));
        let refused = count(mail.attempts.into(), "refusal");
        if let Some(at) = mail.sent_at {
            steps.push(step("sent", Some(at), format!("after {refused}")));
        } else if let Some(at) = mail.failed_at {
            steps.push(step("failed", Some(at), format!("after {refused}")));
        }
    }
    let mut before = None;
    for step in &mut steps {
        step.after_seconds = before.zip(step.at).map(|(before, at)| seconds(before, at));
        before = step.at.or(before);
    }
    let (done, reason) = reason::of(event, mail, found, all, around);
    EventLife {
        event_id: event.event_id,
        version: event.version,
        r#type: event.kind.clone(),
        seq: event.seq,
        trace_id: trace_id(event),
        steps,
        done,
        reason: if around.show_addresses { reason } else { without_addresses(&reason) },
    }
}

/// The second part of a W3C `traceparent`.
fn trace_id(event: &Event) -> Option<String> {
    let traceparent = event.headers.as_ref()?.get("traceparent")?.as_str()?;
    traceparent.split('-').nth(1).map(str::to_owned)
}

fn shown(life: &Life) -> String {
    let mut text = String::new();
    let _ = match (&life.client_id, &life.status) {
        (Some(client), Some(status)) => {
            let email = life.customer_email.as_ref().map(|email| format!(", e-mail {email}"));
            writeln!(
                text,
                "order {} of client {client}, {status}{}",
                life.order_id,
                email.unwrap_or_default()
            )
        }
        _ => writeln!(text, "order {}, which is not in this database", life.order_id),
    };
    for event in &life.events {
        let kind = event.r#type.as_deref().unwrap_or("of unknown type");
        let _ = write!(text, "\nevent {}, {kind}, version {}", event.event_id, event.version);
        let _ = match &event.trace_id {
            Some(trace) => writeln!(text, ", trace {trace}"),
            None => writeln!(text),
        };
        for step in &event.steps {
            let at = step.at.map_or_else(|| "?".to_owned(), time);
            let after = step.after_seconds.map(|gap| format!("+{}", span(gap)).replace("+-", "-"));
            let _ = writeln!(
                text,
                "  {:<10} {at:<24} {:>9}  {}",
                step.step,
                after.unwrap_or_default(),
                step.detail
            );
        }
        let _ = writeln!(text, "  {} {}", if event.done { "=>" } else { "NOT FURTHER:" }, event.reason);
    }
    text
}
