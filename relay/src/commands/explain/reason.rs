//! Why an event is not further. Pure: from what is known of it to one sentence.

use super::Surroundings;
use super::lookup::Found;
use crate::commands::text::{span, time};
use crate::db::explain::{Event, Mail};

/// Whether everything has happened to the event that can, and the reason: why it is not further, or
/// what ended its way.
pub(super) fn of(
    event: &Event,
    mail: Option<&Mail>,
    found: Option<&Found>,
    all: &[Event],
    around: &Surroundings,
) -> (bool, String) {
    if let Some(cause) = &event.cause {
        (cause == "discarded", parked(event, cause, all))
    } else if let Some(aside) = &event.aside {
        (false, taken_aside(event, aside))
    } else if event.published_at.is_none() && event.settled != Some(true) {
        (false, unpublished(event, all, around))
    } else if event.notified_at.is_none() {
        (false, unhandled(found))
    } else if let Some(mail) = mail {
        of_mail(mail)
    } else {
        let no_address = around.has_address == Some(false);
        let why = if no_address {
            "no e-mail address was given, or it is erased"
        } else {
            "no e-mail is made of it"
        };
        (true, format!("published and handled; {why}"))
    }
}

fn taken_aside(event: &Event, cause: &str) -> String {
    match cause {
        "behind" => "published; it waits behind an earlier event of its order that `notify` cannot handle: see `relay inbox list --order` with the order's id".to_owned(),
        _ => format!(
            "published; `notify` cannot handle it: {}. When the cause is mended: `relay inbox retry {id}`; to give it up: `relay inbox skip {id}`",
            event.aside_reason.as_deref().unwrap_or_default(),
            id = event.event_id
        ),
    }
}

fn parked(event: &Event, cause: &str, all: &[Event]) -> String {
    let detail = event.detail.as_deref().unwrap_or_default();
    if cause == "refused" {
        return format!(
            "Kafka refused it for good: {detail}. When the cause is mended: `relay dead retry`; to give it up: `relay dead discard`"
        );
    }
    if cause == "discarded" {
        return format!("given up for good by {detail}; subscribers see a gap at this version");
    }
    let stuck = |other: &&Event| other.cause.as_deref().is_some_and(|cause| cause != "discarded");
    let first = all.iter().filter(stuck).map(|other| other.version).min();
    match first {
        Some(version) if version < event.version => format!(
            "it waits behind version {version} of its order, which is parked: see `relay explain` of that event, or `relay dead list`"
        ),
        _ => format!("{detail}: see `relay dead list`"),
    }
}

fn unpublished(event: &Event, all: &[Event], around: &Surroundings) -> String {
    let Some(sink) = &around.sink else {
        return "no relay has ever published from this database: start `relay run publish`".to_owned();
    };
    if let (Some(at), Some(why)) = (sink.paused_at, &sink.pause_reason) {
        return format!("publishing is paused since {}: {why}. To go on: `relay resume`", time(at));
    }
    if !sink.is_held() {
        return "nobody holds the lease, so nobody publishes: start `relay run publish`".to_owned();
    }
    if let (Some(at), Some(why)) = (sink.trouble_since, &sink.trouble) {
        return format!("the publisher waits since {}: {why}", time(at));
    }
    let earlier = all
        .iter()
        .filter(|other| other.version < event.version && other.settled == Some(false))
        .map(|other| other.version.to_string())
        .collect::<Vec<_>>();
    if !earlier.is_empty() {
        return format!("version {} of its order must be published before it", earlier.join(", "));
    }
    "it is in the queue of the publisher: see `relay status` for how long that is".to_owned()
}

fn unhandled(found: Option<&Found>) -> String {
    match found {
        Some(Found::At { .. }) => {
            "published; `relay run notify` has not handled it yet: does it run, and does its /readyz say why not?"
                .to_owned()
        }
        Some(Found::Not { read, all: true }) => format!(
            "settled, and not on the topic ({read} messages since it was written were read): the topic's retention has removed it, or it is lost. `relay audit` tells"
        ),
        Some(Found::Not { read, all: false }) => format!(
            "settled; not among the first {read} messages since it was written, and there are more. `relay audit` tells"
        ),
        Some(Found::Down(why)) => format!("settled; where it lies cannot be told, Kafka does not answer: {why}"),
        None => "settled long ago: neither the outbox nor an inbox remembers more".to_owned(),
    }
}

fn of_mail(mail: &Mail) -> (bool, String) {
    let words = mail.last_error.as_deref().unwrap_or("it said nothing");
    match mail.state.as_str() {
        "sent" => (true, "published, and its e-mail is sent".to_owned()),
        "failed" => (true, format!("the mail server refused its e-mail for good: {words}")),
        "sending" => {
            (false, format!("its e-mail is being sent by {}", mail.holder.as_deref().unwrap_or("somebody")))
        }
        "unknown" => (
            false,
            "the mailer was gone before it could record whether the server took the e-mail: it is sent again with the same Message-ID, or held when MAIL_ON_UNKNOWN=hold"
                .to_owned(),
        ),
        _ if mail.attempts > 0 => (
            false,
            format!(
                "the mail server refused its e-mail {} so far: {words}. The next attempt is due at {}",
                if mail.attempts == 1 { "once".to_owned() } else { format!("{} times", mail.attempts) },
                time(mail.next_attempt_at)
            ),
        ),
        _ => {
            let waiting = span(super::seconds(mail.created_at, chrono::Utc::now()));
            (
                false,
                format!(
                    "its e-mail waits for {waiting}: does `relay run mail` run, and does its /readyz say that the mail server is away?"
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::db::status::Sink;

    fn event(version: i32) -> Event {
        Event {
            version,
            event_id: Uuid::from_u128(version.unsigned_abs().into()),
            seq: Some(version.into()),
            kind: None,
            headers: None,
            committed_at: Some(DateTime::UNIX_EPOCH),
            settled: Some(false),
            cause: None,
            detail: None,
            parked_at: None,
            topic: None,
            partition: None,
            offset: None,
            published_at: None,
            notified_at: None,
            aside: None,
            aside_reason: None,
            aside_at: None,
        }
    }

    fn around() -> Surroundings {
        let sink = Sink {
            sink: "kafka".into(),
            source: "outbox".to_owned(),
            epoch: 1,
            holder: Some("relay-1".into()),
            lease_seconds: Some(3.0),
            paused_at: None,
            pause_reason: None,
            trouble: None,
            trouble_since: None,
            settled: 0,
            now: DateTime::UNIX_EPOCH,
        };
        Surroundings { sink: Some(sink), has_address: Some(true), show_addresses: false }
    }

    #[test]
    fn the_first_thing_in_the_way_is_named() {
        let all = [event(1), event(2)];
        let reason = |around: &Surroundings| of(&all[1], None, None, &all, around).1;
        let mut now = around();
        assert!(reason(&now).contains("version 1 of its order"), "{}", reason(&now));
        if let Some(sink) = &mut now.sink {
            (sink.trouble, sink.trouble_since) = (Some("Kafka: away".into()), Some(DateTime::UNIX_EPOCH));
        }
        assert!(reason(&now).contains("Kafka: away"));
        if let Some(sink) = &mut now.sink {
            sink.lease_seconds = Some(0.0);
        }
        assert!(reason(&now).contains("nobody holds the lease"));
        if let Some(sink) = &mut now.sink {
            (sink.pause_reason, sink.paused_at) = (Some("maintenance".into()), Some(DateTime::UNIX_EPOCH));
        }
        assert!(reason(&now).contains("maintenance"));
        now.sink = None;
        assert!(reason(&now).contains("ever published"));
    }

    #[test]
    fn only_what_can_go_no_further_is_done() {
        let handled = Event {
            settled: Some(true),
            published_at: Some(DateTime::UNIX_EPOCH),
            notified_at: Some(DateTime::UNIX_EPOCH),
            ..event(1)
        };
        let without = Surroundings { has_address: Some(false), ..around() };
        let (done, reason) = of(&handled, None, None, &[], &without);
        assert!(done && reason.contains("no e-mail address"), "{reason}");
        let aside =
            Event { aside: Some("refused".to_owned()), aside_reason: Some("odd".to_owned()), ..event(1) };
        let (done, reason) = of(&aside, None, None, &[], &around());
        assert!(!done && reason.contains("odd") && reason.contains("relay inbox retry"), "{reason}");
        let settled = Event { settled: Some(true), ..event(1) };
        let lost = Found::Not { read: 3, all: true };
        let (done, reason) = of(&settled, None, Some(&lost), &[], &around());
        assert!(!done && reason.contains("not on the topic"), "{reason}");
    }
}
