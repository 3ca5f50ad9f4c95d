//! What becomes of an event, decided from what is known. Pure: no I/O.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::OutOfOrder;
use crate::{Attributes, EventId};

/// What is known of a batch of events and their orders.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Ids that were not there before.
    pub(super) new: HashSet<EventId>,
    /// Ids that were handled before.
    pub(super) handled: HashSet<EventId>,
    /// The highest version per order handled so far.
    pub(super) latest: HashMap<Uuid, i32>,
    /// Orders whose events are taken aside.
    pub(super) blocked: HashSet<Uuid>,
}

/// How an event comes after those of its order that were handled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Its version is the next one.
    Next,
    /// Versions are missing between `after` and its own.
    Gap { after: i32 },
    /// Its version is below `after`, and it is no repeat.
    Reordered { after: i32 },
}

/// Why an event is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It could not be handled.
    Refused,
    /// An earlier event of its order is dead.
    Behind,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Behind => "behind",
        }
    }
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was handled before.
    Repeat,
    /// It is taken aside.
    Bury(Cause, String),
    /// The handler gets it.
    Handle(Arrival),
}

impl Facts {
    /// Says what becomes of an event. `gaps` and `reorderings` are the consumer's policy.
    pub(super) fn judge(&self, event: &Attributes, gaps: OutOfOrder, reorderings: OutOfOrder) -> Verdict {
        let (order, version) = (event.subject, event.version);
        if self.handled.contains(&event.id) {
            return Verdict::Repeat;
        }
        if self.blocked.contains(&order) {
            return Verdict::Bury(
                Cause::Behind,
                "an earlier event of this order could not be handled".to_owned(),
            );
        }
        if !self.new.contains(&event.id) {
            return Verdict::Bury(
                Cause::Refused,
                format!("version {version} of this order was another event"),
            );
        }
        let arrival = match self.latest.get(&order).copied().unwrap_or(0) {
            after if version == after + 1 => Arrival::Next,
            after if version > after => Arrival::Gap { after },
            after => Arrival::Reordered { after },
        };
        match arrival {
            Arrival::Gap { after } if gaps == OutOfOrder::Refuse => {
                Verdict::Bury(Cause::Refused, format!("a gap: version {version} came after {after}"))
            }
            Arrival::Reordered { after } if reorderings == OutOfOrder::Refuse => {
                Verdict::Bury(Cause::Refused, format!("a reordering: version {version} came after {after}"))
            }
            arrival => Verdict::Handle(arrival),
        }
    }

    /// The event is handled: another occurrence is a repeat.
    pub(super) fn handled(&mut self, event: &Attributes) {
        self.handled.insert(event.id);
        let latest = self.latest.entry(event.subject).or_default();
        *latest = event.version.max(*latest);
    }

    /// The later events of the order are taken aside.
    pub(super) fn block(&mut self, order: Option<Uuid>) {
        self.blocked.extend(order);
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use OutOfOrder::{Accept, Refuse};

    fn event(order: Uuid, version: i32) -> Attributes {
        Attributes {
            id: EventId::new(),
            source: "/orders".to_owned(),
            kind: "order.created.v1".to_owned(),
            subject: order,
            time: DateTime::UNIX_EPOCH,
            version,
            traceparent: None,
            tracestate: None,
        }
    }

    fn facts(latest: i32, event: &Attributes) -> Facts {
        Facts {
            new: HashSet::from([event.id]),
            latest: HashMap::from([(event.subject, latest)]),
            ..Facts::default()
        }
    }

    #[test]
    fn a_repeat_a_gap_a_reordering_and_another_event_of_the_same_version_are_four_things() {
        let order = Uuid::now_v7();
        for (version, latest, arrival) in [
            (1, 0, Arrival::Next),
            (3, 2, Arrival::Next),
            (3, 1, Arrival::Gap { after: 1 }),
            (2, 0, Arrival::Gap { after: 0 }),
            (2, 3, Arrival::Reordered { after: 3 }),
        ] {
            let event = event(order, version);
            assert_eq!(facts(latest, &event).judge(&event, Accept, Accept), Verdict::Handle(arrival));
        }
        let event = event(order, 2);
        let mut facts = facts(1, &event);
        assert_eq!(facts.judge(&event, Refuse, Refuse), Verdict::Handle(Arrival::Next));
        facts.handled(&event);
        assert_eq!(facts.judge(&event, Refuse, Refuse), Verdict::Repeat);
        let other = super::tests::event(order, 2);
        let verdict = facts.judge(&other, Accept, Accept);
        assert!(matches!(verdict, Verdict::Bury(Cause::Refused, reason) if reason.contains("another event")));
    }

    #[test]
    fn a_policy_refuses_gaps_or_reorderings_each_by_itself() {
        let event = event(Uuid::now_v7(), 3);
        let gap = facts(1, &event).judge(&event, Refuse, Accept);
        assert_eq!(gap, Verdict::Bury(Cause::Refused, "a gap: version 3 came after 1".to_owned()));
        assert!(matches!(facts(1, &event).judge(&event, Accept, Refuse), Verdict::Handle(_)));
        let reordering = facts(4, &event).judge(&event, Accept, Refuse);
        assert_eq!(
            reordering,
            Verdict::Bury(Cause::Refused, "a reordering: version 3 came after 4".to_owned())
        );
        assert!(matches!(facts(4, &event).judge(&event, Refuse, Accept), Verdict::Handle(_)));
    }

    #[test]
    fn later_events_go_aside_with_an_earlier_one_of_their_order_and_of_no_other() {
        let (order, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (later, innocent) = (event(order, 2), event(other, 1));
        let mut facts = Facts { new: HashSet::from([later.id, innocent.id]), ..Facts::default() };
        facts.block(Some(order));
        assert!(matches!(facts.judge(&later, Accept, Accept), Verdict::Bury(Cause::Behind, _)));
        assert_eq!(facts.judge(&innocent, Accept, Accept), Verdict::Handle(Arrival::Next));
    }
}
