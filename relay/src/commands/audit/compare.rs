//! Outbox beside topic. Pure: it is handed every message, then every row, and tells what differs.
//!
//! Of an event it keeps its id, two hashes and a place, of an order its highest version: 75 to 150
//! bytes in all for each event of the range, whatever the events hold.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};

use chrono::{DateTime, Utc};
use events::{Attributes, header};
use serde::Serialize;
use uuid::Uuid;

/// So many findings of each kind are kept with their particulars; the others are counted.
const KEPT: usize = 100;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// Settled by the relay, and not on the topic.
    Missing,
    /// On the topic, and not in the outbox.
    Extra,
    /// On the topic in other words than in the outbox.
    Changed,
    /// Its first occurrence comes after a later version of its order.
    OutOfOrder,
}

impl Kind {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::OutOfOrder => "out of order",
        }
    }
}

/// One thing that differs.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) kind: Kind,
    /// None when the message is not an event.
    pub(super) event_id: Option<Uuid>,
    pub(super) seq: Option<i64>,
    pub(super) partition: Option<i32>,
    pub(super) offset: Option<i64>,
    pub(super) detail: String,
}

/// What was compared, and what came of it. Events, if nothing else is said.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tally {
    /// In the outbox and on the topic.
    pub(super) compared: u64,
    /// Messages that repeat an event; that is allowed.
    pub(super) repeats: u64,
    /// Not settled when the audit began.
    pub(super) pending: u64,
    /// Among the dead letters, so not expected on the topic.
    pub(super) parked: u64,
    /// So old that the topic's retention may have removed them.
    pub(super) expired: u64,
    /// Messages older than the range, or than the oldest row that is left in the outbox.
    pub(super) out_of_range: u64,
    /// Orders whose events lie in two partitions, because partitions were added: their order across
    /// the change cannot be told.
    pub(super) moved: u64,
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) changed: u64,
    pub(super) out_of_order: u64,
    /// The first hundred of each kind.
    pub(super) findings: Vec<Finding>,
}

impl Tally {
    /// Whether anything is wrong.
    pub(super) fn found(&self) -> bool {
        self.missing + self.extra + self.changed + self.out_of_order > 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        let count = match finding.kind {
            Kind::Missing => &mut self.missing,
            Kind::Extra => &mut self.extra,
            Kind::Changed => &mut self.changed,
            Kind::OutOfOrder => &mut self.out_of_order,
        };
        *count += 1;
        if self.findings.iter().filter(|kept| kept.kind == finding.kind).count() < KEPT {
            self.findings.push(finding);
        }
    }
}

/// What a message says, for comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    value: u32,
    headers: u32,
}

impl Digest {
    pub(super) fn of(attributes: &Attributes<impl AsRef<str>>, value: &[u8]) -> Self {
        Self { value: hash(value), headers: hash(attributes.headers().collect::<Vec<_>>()) }
    }

    /// In words, which part of two differs.
    fn difference(self, other: Self) -> Option<&'static str> {
        match (self.value == other.value, self.headers == other.headers) {
            (true, true) => None,
            (false, true) => Some("the value differs"),
            (true, false) => Some("the headers differ (order, version, type, time, source or trace)"),
            (false, false) => Some("value and headers differ"),
        }
    }
}

fn hash(value: impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let whole = hasher.finish();
    u32::try_from(whole >> 32).unwrap_or_default()
}

/// A message of the topic.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) headers: Vec<(&'a str, &'a [u8])>,
    pub(super) value: &'a [u8],
}

/// The first occurrence of an event.
#[derive(Clone, Copy, Debug)]
struct Seen {
    digest: Digest,
    partition: i32,
    offset: i64,
}

/// The comparison under way.
pub(super) struct Comparison {
    /// Messages with another time of writing are not looked at.
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    seen: HashMap<Uuid, Seen>,
    /// Partition and highest version of each order.
    highest: HashMap<Uuid, (i32, i32)>,
    pub(super) tally: Tally,
}

/// A row of the outbox.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) event_id: Uuid,
    pub(super) seq: i64,
    pub(super) digest: Digest,
    pub(super) expected: Expected,
}

/// Whether a row's event should be on the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// It should.
    There,
    /// It was not settled when the audit began.
    Pending,
    /// It is among the dead letters.
    Parked,
    /// It is so old that the topic's retention may have removed it.
    Expired,
}

impl Comparison {
    /// A comparison of the events that were written between `from` and `to`.
    pub(super) fn new(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Self {
        Self { from, to, seen: HashMap::new(), highest: HashMap::new(), tally: Tally::default() }
    }

    /// Takes a message; those of a partition come in the order of their offsets.
    pub(super) fn message(&mut self, message: &Message<'_>) {
        let place = (message.partition, message.offset);
        let header = |name: &str| {
            let (_, value) = message.headers.iter().find(|(key, _)| *key == name)?;
            std::str::from_utf8(value).ok()
        };
        let attributes = match Attributes::from_headers(header) {
            Ok(attributes) => attributes,
            Err(error) => {
                return self.find(Kind::Extra, None, place, format!("not an event of the contract: {error}"));
            }
        };
        if self.from.is_some_and(|from| attributes.time < from)
            || self.to.is_some_and(|to| attributes.time > to)
        {
            self.tally.out_of_range += 1;
            return;
        }
        let id = attributes.id.as_uuid();
        if let Some(detail) = inconsistency(&attributes, message.key, header) {
            self.find(Kind::Changed, Some(id), place, detail);
        }
        let digest = Digest::of(&attributes, message.value);
        match self.seen.entry(id) {
            Entry::Occupied(first) => {
                self.tally.repeats += 1;
                if let Some(difference) = first.get().digest.difference(digest) {
                    let detail = format!("it repeats the event in other words: {difference}");
                    self.find(Kind::Changed, Some(id), place, detail);
                }
            }
            Entry::Vacant(free) => {
                free.insert(Seen { digest, partition: message.partition, offset: message.offset });
                self.in_order(&attributes, place);
            }
        }
    }

    fn in_order(&mut self, attributes: &Attributes, place: (i32, i64)) {
        let version = attributes.version;
        let (partition, highest) = self.highest.entry(attributes.subject).or_insert((place.0, 0));
        if *partition != place.0 {
            self.tally.moved += 1;
            (*partition, *highest) = (place.0, version);
        } else if version > *highest {
            *highest = version;
        } else {
            let detail = format!("version {version} of order {} after version {highest}", attributes.subject);
            self.find(Kind::OutOfOrder, Some(attributes.id.as_uuid()), place, detail);
        }
    }

    /// Takes a row, after all messages.
    pub(super) fn row(&mut self, row: &Row) {
        let seen = self.seen.remove(&row.event_id);
        let mut finding = |kind, detail: &str| {
            self.tally.add(Finding {
                kind,
                event_id: Some(row.event_id),
                seq: Some(row.seq),
                partition: seen.map(|seen| seen.partition),
                offset: seen.map(|seen| seen.offset),
                detail: detail.to_owned(),
            });
        };
        match (seen, row.expected) {
            (Some(seen), _) => match seen.digest.difference(row.digest) {
                Some(difference) => finding(Kind::Changed, difference),
                None => self.tally.compared += 1,
            },
            (None, Expected::There) => finding(Kind::Missing, "settled, and not on the topic"),
            (None, Expected::Pending) => self.tally.pending += 1,
            (None, Expected::Parked) => self.tally.parked += 1,
            (None, Expected::Expired) => self.tally.expired += 1,
        }
    }

    /// The events of the topic for which no row was handed in.
    pub(super) fn unmatched(&self) -> Vec<Uuid> {
        self.seen.keys().copied().collect()
    }

    /// The outbox has no such event.
    pub(super) fn extra(&mut self, id: Uuid) {
        if let Some(seen) = self.seen.remove(&id) {
            self.find(
                Kind::Extra,
                Some(id),
                (seen.partition, seen.offset),
                "the outbox has no such event".to_owned(),
            );
        }
    }

    fn find(&mut self, kind: Kind, event_id: Option<Uuid>, (partition, offset): (i32, i64), detail: String) {
        let (partition, offset) = (Some(partition), Some(offset));
        self.tally.add(Finding { kind, event_id, seq: None, partition, offset, detail });
    }
}

/// What a message says twice and in two ways.
fn inconsistency<'a>(
    attributes: &Attributes,
    key: Option<&[u8]>,
    get: impl Fn(&str) -> Option<&'a str>,
) -> Option<String> {
    if key != Some(attributes.subject.to_string().as_bytes()) {
        return Some(format!("its key is not its {}", header::SUBJECT));
    }
    let wrong = attributes.headers().find(|(name, value)| get(name) != Some(value.as_str()));
    wrong.map(|(name, value)| format!("its header {name} is not {value:?}"))
}

#[cfg(test)]
mod tests {
    use events::EventId;

    use super::*;

    fn attributes(id: u128, version: i32) -> Attributes {
        Attributes {
            id: EventId::from(Uuid::from_u128(id)),
            source: "/orders".into(),
            kind: "order.created.v1".into(),
            subject: Uuid::from_u128(1),
            time: DateTime::UNIX_EPOCH,
            version,
            traceparent: None,
            tracestate: None,
        }
    }

    fn row(id: u128, version: i32, expected: Expected) -> Row {
        let digest = Digest::of(&attributes(id, version), b"{}");
        Row { event_id: Uuid::from_u128(id), seq: 1, digest, expected }
    }

    fn message(comparison: &mut Comparison, attributes: &Attributes, value: &[u8], offset: i64) {
        let headers: Vec<_> = attributes.headers().collect();
        let key = attributes.subject.to_string();
        comparison.message(&Message {
            partition: 0,
            offset,
            key: Some(key.as_bytes()),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            value,
        });
    }

    fn kinds(comparison: &Comparison) -> Vec<Kind> {
        comparison.tally.findings.iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn what_was_committed_and_repeated_is_no_finding() {
        let mut audit = Comparison::new(None, None);
        for (offset, (id, version)) in [(1, 1), (2, 2), (1, 1), (3, 3)].into_iter().enumerate() {
            message(&mut audit, &attributes(id, version), b"{}", i64::try_from(offset).expect("small"));
        }
        for id in 1..=3 {
            audit.row(&row(id, i32::try_from(id).expect("small"), Expected::There));
        }
        for (id, expected) in [(4, Expected::Pending), (5, Expected::Parked), (6, Expected::Expired)] {
            audit.row(&row(id, 4, expected));
        }
        assert!(!audit.tally.found(), "{:?}", audit.tally);
        assert_eq!((audit.tally.compared, audit.tally.repeats), (3, 1));
        assert_eq!((audit.tally.pending, audit.tally.parked, audit.tally.expired), (1, 1, 1));
        assert!(audit.unmatched().is_empty());
    }

    #[test]
    fn each_difference_is_found_and_named() {
        let mut audit = Comparison::new(None, None);
        message(&mut audit, &attributes(2, 2), b"{}", 0);
        message(&mut audit, &attributes(1, 1), b"{}", 1);
        assert_eq!(kinds(&audit), [Kind::OutOfOrder]);
        message(&mut audit, &attributes(2, 2), b"{ }", 2);
        assert_eq!(kinds(&audit).last(), Some(&Kind::Changed), "a repeat in other words");
        audit.row(&row(1, 1, Expected::There));
        audit.row(&row(2, 3, Expected::There));
        assert_eq!(audit.tally.changed, 2, "version 2 is not version 3");
        audit.row(&row(3, 1, Expected::There));
        assert_eq!(audit.tally.missing, 1);
        message(&mut audit, &attributes(9, 9), b"{}", 3);
        for id in audit.unmatched() {
            audit.extra(id);
        }
        assert_eq!(audit.tally.extra, 1);
        audit.message(&Message { partition: 0, offset: 4, key: None, headers: Vec::new(), value: b"" });
        assert_eq!(audit.tally.extra, 2, "a message that is no event");
        let headers = attributes(10, 10).headers().collect::<Vec<_>>();
        audit.message(&Message {
            partition: 0,
            offset: 5,
            key: Some(b"another"),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            value: b"{}",
        });
        assert!(audit.tally.findings.iter().any(|finding| finding.detail.contains("key")));
    }

    #[test]
    fn an_order_that_moved_to_another_partition_is_counted_and_not_blamed() {
        let mut audit = Comparison::new(None, None);
        message(&mut audit, &attributes(2, 2), b"{}", 0);
        let moved = attributes(1, 1);
        let headers: Vec<_> = moved.headers().collect();
        audit.message(&Message {
            partition: 7,
            offset: 0,
            key: Some(moved.subject.to_string().as_bytes()),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            value: b"{}",
        });
        assert_eq!((audit.tally.moved, audit.tally.found()), (1, false));
    }
}
