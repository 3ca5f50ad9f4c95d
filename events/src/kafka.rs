//! Events as Kafka messages: key = order id, value = JSON, attributes = headers.

use rdkafka::message::{Header, Headers, Message, OwnedHeaders};

use crate::cloudevents::header;
use crate::{Attributes, MalformedEvent, OrderEvent, UnknownEvent};

/// An event as it lies on the topic.
#[derive(Clone, Debug)]
pub struct Event {
    /// The CloudEvents attributes.
    pub attributes: Attributes,
    /// The message's value, JSON.
    pub data: Vec<u8>,
    /// Where it lies.
    pub position: Position,
}

/// A place on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// The broker's or producer's timestamp, milliseconds since 1970.
    pub timestamp_millis: i64,
}

impl Event {
    /// Reads a message.
    ///
    /// # Errors
    /// [`MalformedEvent`] when a header of the contract is missing or unreadable, or there is no value.
    pub fn from_message(message: &impl Message) -> Result<Self, MalformedEvent> {
        let headers = message.headers();
        let attributes = Attributes::from_headers(|name| {
            headers?.iter().find(|h| h.key == name).and_then(|h| std::str::from_utf8(h.value?).ok())
        })?;
        Ok(Self {
            attributes,
            data: message.payload().ok_or(MalformedEvent::NoData)?.to_vec(),
            position: Position {
                topic: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
                timestamp_millis: message.timestamp().to_millis().unwrap_or_default(),
            },
        })
    }

    /// The typed event.
    ///
    /// # Errors
    /// [`UnknownEvent`] when its type is not of this contract or its data does not fit.
    pub fn order_event(&self) -> Result<OrderEvent, UnknownEvent> {
        OrderEvent::from_json(&self.attributes.kind, &self.data)
    }
}

/// The headers of an event's message.
#[must_use]
pub fn headers(attributes: &Attributes<impl AsRef<str>>) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(13));
    attributes.each_header(|key, value| {
        headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
    });
    headers.unwrap_or_default()
}

/// The same headers with the mark of an event that an operator had published once more.
#[must_use]
pub fn replayed(headers: OwnedHeaders) -> OwnedHeaders {
    headers.insert(Header { key: header::REPLAYED, value: Some("true") })
}
