//! A message on its way through the inbox.

use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use uuid::Uuid;

use super::Settings;
use super::judge::{Cause, Facts, Verdict};
use crate::kafka::Event;
use crate::{EventId, MalformedEvent};

/// A message taken from the topic and not settled yet.
#[derive(Debug)]
pub(super) struct Delivery {
    /// As it came, for the dead letters.
    pub(super) message: OwnedMessage,
    /// What it says.
    pub(super) event: Result<Event, MalformedEvent>,
    /// How often the handler has refused it.
    pub(super) attempts: u32,
    /// What the handler said last.
    pub(super) refusal: String,
    /// Its effects outside PostgreSQL are done.
    pub(super) outside_done: bool,
}

impl Delivery {
    pub(super) fn new(message: OwnedMessage) -> Self {
        let event = Event::from_message(&message);
        Self { message, event, attempts: 0, refusal: String::new(), outside_done: false }
    }

    /// The order that it belongs to. Of an unreadable message the key tells it, if anything does.
    pub(super) fn order(&self) -> Option<Uuid> {
        match &self.event {
            Ok(event) => Some(event.attributes.subject),
            Err(_) => std::str::from_utf8(self.message.key()?).ok()?.parse().ok(),
        }
    }

    /// The event's id, if it can be read.
    pub(super) fn event_id(&self) -> Option<EventId> {
        self.event.as_ref().ok().map(|event| event.attributes.id)
    }

    /// What becomes of it, its attempts included.
    pub(super) fn verdict(&self, facts: &Facts, settings: &Settings) -> Verdict {
        let verdict = match &self.event {
            Ok(event) => facts.judge(&event.attributes, settings.gaps, settings.reorderings),
            Err(error) => Verdict::Bury(Cause::Refused, error.to_string()),
        };
        match verdict {
            Verdict::Handle(_) if self.attempts >= settings.attempts => {
                Verdict::Bury(Cause::Refused, self.refusal.clone())
            }
            verdict => verdict,
        }
    }

    pub(super) fn refused(&mut self, reason: String) {
        self.attempts += 1;
        self.refusal = reason;
    }
    /// Says once that the message was taken aside.
    pub(super) fn tell_dead(&self, cause: Cause, reason: &str) {
        tracing::error!(
            event.id = self.event_id().map(|id| id.to_string()),
            order.id = self.order().map(|order| order.to_string()),
            kafka.topic = self.message.topic(),
            kafka.partition = self.message.partition(),
            kafka.offset = self.message.offset(),
            cause = cause.as_str(),
            reason,
            "taken aside"
        );
    }
}
