//! CloudEvents 1.0 attributes and their names in the Kafka binary content mode
//! (CloudEvents Kafka protocol binding 1.0.2, section 3.2): `ce_` headers, UTF-8 values.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::EventId;

/// The CloudEvents version that every event carries.
pub const SPEC_VERSION: &str = "1.0";

/// The header names. `id` repeats `ce_id` under the name that Debezium's outbox router gives it.
/// `replayed` is there, and `true`, only on an event that an operator had published once more.
pub mod header {
    #![allow(missing_docs)]
    pub const CONTENT_TYPE: &str = "content-type";
    pub const SPEC_VERSION: &str = "ce_specversion";
    pub const ID: &str = "ce_id";
    pub const SOURCE: &str = "ce_source";
    pub const TYPE: &str = "ce_type";
    pub const SUBJECT: &str = "ce_subject";
    pub const TIME: &str = "ce_time";
    pub const DATA_SCHEMA: &str = "ce_dataschema";
    pub const PARTITION_KEY: &str = "ce_partitionkey";
    pub const ORDER_VERSION: &str = "ce_orderversion";
    pub const PLAIN_ID: &str = "id";
    pub const REPLAYED: &str = "replayed";
    pub const TRACEPARENT: &str = "traceparent";
    pub const TRACESTATE: &str = "tracestate";
}

/// `ce_dataschema` of an event type: the `$id` of its JSON Schema. A name and not an address, since
/// CloudEvents wants an absolute URI and the schema is the same wherever the pipeline runs.
#[must_use]
pub fn data_schema(kind: &str) -> String {
    format!("urn:orders:schema:{kind}")
}

/// The attributes of one event, with text of its own or text that somebody else holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes<Text = String> {
    /// `ce_id`: the same for every repeat of the event.
    pub id: EventId,
    /// `ce_source`: URI-reference of the producing context. `source` + `id` is unique.
    pub source: Text,
    /// `ce_type`, for example `order.created.v1`.
    pub kind: Text,
    /// `ce_subject` and `ce_partitionkey`: the order.
    pub subject: Uuid,
    /// `ce_time`: when it happened, microseconds, UTC.
    pub time: DateTime<Utc>,
    /// `ce_orderversion`: 1, 2, 3 … per order without gaps.
    pub version: i32,
    /// W3C Trace Context of the request that caused the event, as received.
    pub traceparent: Option<Text>,
    /// W3C Trace Context `tracestate`, as received.
    pub tracestate: Option<Text>,
}

/// The message is not an event of this contract.
#[derive(Debug, thiserror::Error)]
pub enum MalformedEvent {
    /// A header that the contract requires is absent.
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    /// A header is there, and its value cannot be read.
    #[error("header `{name}` has the unreadable value `{value}`")]
    Invalid {
        /// The header's name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The message has no value.
    #[error("the message has no value")]
    NoData,
}

impl<Text: AsRef<str>> Attributes<Text> {
    /// The headers of the Kafka message, in the order in which they are written.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let mut headers = Vec::with_capacity(13);
        self.each_header(|name, value| headers.push((name, value.to_owned())));
        headers.into_iter()
    }

    /// Gives [`Attributes::headers`] one after another without making them strings of their own:
    /// the relay does this for every event.
    pub fn each_header(&self, mut give: impl FnMut(&'static str, &str)) {
        let (mut id, mut subject) = (Uuid::encode_buffer(), Uuid::encode_buffer());
        let id = &*self.id.as_uuid().hyphenated().encode_lower(&mut id);
        let subject = &*self.subject.hyphenated().encode_lower(&mut subject);
        give(header::CONTENT_TYPE, "application/json");
        give(header::SPEC_VERSION, SPEC_VERSION);
        give(header::ID, id);
        give(header::SOURCE, self.source.as_ref());
        give(header::TYPE, self.kind.as_ref());
        give(header::SUBJECT, subject);
        give(header::TIME, &self.time.to_rfc3339_opts(SecondsFormat::Micros, true));
        give(header::DATA_SCHEMA, &data_schema(self.kind.as_ref()));
        give(header::PARTITION_KEY, subject);
        give(header::ORDER_VERSION, &self.version.to_string());
        give(header::PLAIN_ID, id);
        if let Some(value) = &self.traceparent {
            give(header::TRACEPARENT, value.as_ref());
        }
        if let Some(value) = &self.tracestate {
            give(header::TRACESTATE, value.as_ref());
        }
    }
}

impl Attributes {
    /// Reads the attributes back; `get` gives a header's value by name.
    ///
    /// # Errors
    /// [`MalformedEvent`] names the first header that is missing or unreadable.
    pub fn from_headers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MalformedEvent> {
        let require = |name| get(name).ok_or(MalformedEvent::Missing(name));
        let invalid = |name, value: &str| MalformedEvent::Invalid { name, value: value.to_owned() };

        let spec = require(header::SPEC_VERSION)?;
        if spec != SPEC_VERSION {
            return Err(invalid(header::SPEC_VERSION, spec));
        }
        let id = require(header::ID)?;
        let subject = require(header::SUBJECT)?;
        let time = require(header::TIME)?;
        let version = require(header::ORDER_VERSION)?;
        Ok(Self {
            id: id.parse().map_err(|_| invalid(header::ID, id))?,
            source: require(header::SOURCE)?.to_owned(),
            kind: require(header::TYPE)?.to_owned(),
            subject: subject.parse().map_err(|_| invalid(header::SUBJECT, subject))?,
            time: DateTime::parse_from_rfc3339(time).map_err(|_| invalid(header::TIME, time))?.to_utc(),
            version: version
                .parse()
                .ok()
                .filter(|v| *v > 0)
                .ok_or_else(|| invalid(header::ORDER_VERSION, version))?,
            traceparent: get(header::TRACEPARENT).map(str::to_owned),
            tracestate: get(header::TRACESTATE).map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        Attributes {
            id: EventId::new(),
            source: "/orders".into(),
            kind: "order.created.v1".into(),
            subject: Uuid::now_v7(),
            time: DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("in range"),
            version: 3,
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            tracestate: None,
        }
    }

    #[test]
    fn attributes_survive_the_way_through_headers() {
        let written = attributes();
        let headers: Vec<_> = written.headers().collect();
        let read = Attributes::from_headers(|name| {
            headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
        });
        assert_eq!(read.expect("reads back"), written);
    }

    #[test]
    fn a_missing_or_unreadable_header_is_named() {
        let written = attributes();
        for broken in [header::ID, header::TYPE, header::TIME, header::ORDER_VERSION, header::SPEC_VERSION] {
            let headers: Vec<_> = written.headers().filter(|(n, _)| *n != broken).collect();
            let read = Attributes::from_headers(|name| {
                headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
            });
            assert!(matches!(read, Err(MalformedEvent::Missing(name)) if name == broken));
        }
        let read = Attributes::from_headers(|name| (name == header::SPEC_VERSION).then_some("0.3"));
        assert!(matches!(read, Err(MalformedEvent::Invalid { name: header::SPEC_VERSION, .. })));
    }
}
