//! The gate: an event is handed to Kafka only after every earlier event of its order is
//! acknowledged or parked, while different orders are pipelined.
//!
//! Pure: no I/O, no clock. Order per order (invariant 4) rests on this alone: it is the only
//! variant that kept the order in every fault, and it costs nothing measurable.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use uuid::Uuid;

use super::frontier::Numbers;
use super::row::Row;

/// At most so many events of one order wait in memory; the numbers of the others are remembered.
const LANE: usize = 256;
/// The same when memory is more than half full, so that many hot orders cannot crowd out the rest.
const LANE_WHEN_CROWDED: usize = 16;

/// The events of one order, oldest first.
#[derive(Debug, Default)]
struct Lane {
    /// In memory; the front one may be with Kafka.
    queue: VecDeque<Arc<Row>>,
    /// Committed, visible, to be read again when there is room: ascending.
    deferred: VecDeque<i64>,
    /// The front event was refused in company: it goes alone.
    alone: bool,
}

/// An event that is to be handed to Kafka.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    /// The event.
    pub row: Arc<Row>,
    /// Whether it has to travel in a batch of its own, because it was refused in company.
    pub alone: bool,
}

/// What is read and not yet settled, order by order.
#[derive(Debug)]
pub(crate) struct Gate {
    lanes: HashMap<Uuid, Lane>,
    /// Orders whose front event may go, oldest first; never one whose front event is with Kafka.
    ready: VecDeque<Uuid>,
    /// Events with Kafka, and whose they are.
    flying: HashMap<i64, Uuid>,
    /// Orders with remembered numbers and room for them.
    hungry: HashSet<Uuid>,
    /// Orders of which an event is parked: later ones go behind it.
    parked: HashSet<Uuid>,
    held: usize,
    held_bytes: usize,
    deferred: usize,
    capacity: usize,
}

impl Gate {
    /// A gate that holds about `capacity` events. `parked` are the orders that have dead letters.
    #[must_use]
    pub(crate) fn new(capacity: usize, parked: HashSet<Uuid>) -> Self {
        Self {
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            flying: HashMap::new(),
            hungry: HashSet::new(),
            parked,
            held: 0,
            held_bytes: 0,
            deferred: 0,
            capacity,
        }
    }

    /// Events in memory, those with Kafka included.
    #[must_use]
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of payload in memory.
    #[must_use]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Events with Kafka that are not answered yet.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Events that are read and not settled, those included of which only the number is remembered.
    #[cfg(test)]
    pub(crate) fn unsettled(&self) -> usize {
        self.held + self.deferred
    }

    /// Remembered numbers whose order has room for them, ascending within each order.
    pub(crate) fn wanted(&self, at_most: usize) -> Vec<RangeInclusive<i64>> {
        let lane_limit = self.lane_limit();
        let mut wanted = Numbers::new();
        let mut count = 0;
        for lane in self.hungry.iter().filter_map(|order| self.lanes.get(order)) {
            for seq in lane.deferred.iter().take(lane_limit.saturating_sub(lane.queue.len())) {
                if count == at_most {
                    return wanted.into_iter().collect();
                }
                wanted.insert(*seq..=*seq);
                count += 1;
            }
        }
        wanted.into_iter().collect()
    }

    /// Takes a row that was read. Rows of one order must come in the order of their commits.
    /// Gives the row back when its order is parked: it goes behind the others there.
    pub(crate) fn admit(&mut self, row: Row) -> Option<Row> {
        if self.parked.contains(&row.aggregate_id) {
            return Some(row);
        }
        let lane_limit = self.lane_limit();
        let order = row.aggregate_id;
        let lane = self.lanes.entry(order).or_default();
        if lane.deferred.front() == Some(&row.seq) {
            lane.deferred.pop_front();
            self.deferred -= 1;
        } else if !lane.deferred.is_empty() || lane.queue.len() >= lane_limit {
            if let Err(place) = lane.deferred.binary_search(&row.seq) {
                lane.deferred.insert(place, row.seq);
                self.deferred += 1;
            }
            return None;
        }
        self.held += 1;
        self.held_bytes += row.bytes();
        lane.queue.push_back(Arc::new(row));
        if lane.queue.len() == 1 {
            self.ready.push_back(order);
        }
        if lane.deferred.is_empty() || lane.queue.len() >= lane_limit {
            self.hungry.remove(&order);
        }
        None
    }

    /// The next event that may go, and from now on is with Kafka.
    pub(crate) fn send_next(&mut self) -> Option<Due> {
        while let Some(order) = self.ready.pop_front() {
            let Some(lane) = self.lanes.get(&order) else { continue };
            let Some(row) = lane.queue.front() else { continue };
            self.flying.insert(row.seq, order);
            return Some(Due { row: Arc::clone(row), alone: lane.alone });
        }
        None
    }

    /// Kafka has acknowledged the event. False when it was not with Kafka.
    pub(crate) fn acknowledged(&mut self, seq: i64) -> bool {
        let Some(order) = self.flying.remove(&seq) else { return false };
        self.pop_front(order);
        true
    }

    /// The event was not taken, for a reason that will pass: it goes again, first of all.
    pub(crate) fn put_back(&mut self, seq: i64) {
        let Some(order) = self.flying.remove(&seq) else { return };
        self.ready.push_front(order);
    }

    /// The event was refused for good. In company that is a suspicion, and it goes again alone;
    /// refused alone it is parked, and everything of its order that was read comes with it.
    pub(crate) fn refused(&mut self, seq: i64) -> Parked {
        let Some(order) = self.flying.get(&seq).copied() else { return Parked::default() };
        let Some(lane) = self.lanes.get_mut(&order) else { return Parked::default() };
        if !lane.alone {
            lane.alone = true;
            self.put_back(seq);
            return Parked::default();
        }
        self.flying.remove(&seq);
        self.hungry.remove(&order);
        self.parked.insert(order);
        let lane = self.lanes.remove(&order).unwrap_or_default();
        self.held -= lane.queue.len();
        self.held_bytes -= lane.queue.iter().map(|row| row.bytes()).sum::<usize>();
        self.deferred -= lane.deferred.len();
        Parked {
            refused: Some(seq),
            behind: lane.queue.iter().skip(1).map(|row| row.seq).chain(lane.deferred).collect(),
        }
    }

    fn pop_front(&mut self, order: Uuid) {
        let lane_limit = self.lane_limit();
        let Some(lane) = self.lanes.get_mut(&order) else { return };
        if let Some(row) = lane.queue.pop_front() {
            self.held -= 1;
            self.held_bytes -= row.bytes();
        }
        lane.alone = false;
        if !lane.queue.is_empty() {
            self.ready.push_back(order);
        }
        if lane.deferred.is_empty() {
            if lane.queue.is_empty() {
                self.lanes.remove(&order);
            }
        } else if lane.queue.len() <= lane_limit / 2 {
            self.hungry.insert(order);
        }
    }

    fn lane_limit(&self) -> usize {
        if self.held > self.capacity / 2 { LANE_WHEN_CROWDED } else { LANE }
    }
}

/// What leaves the gate for the dead letters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parked {
    /// The event that was refused alone.
    pub refused: Option<i64>,
    /// The later events of its order, ascending.
    pub behind: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::row::testing::row;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn sent(gate: &mut Gate) -> Vec<i64> {
        std::iter::from_fn(|| gate.send_next()).map(|due| due.row.seq).collect()
    }

    #[test]
    fn an_event_waits_for_the_earlier_ones_of_its_order_and_for_nothing_else() {
        let mut gate = Gate::new(100, HashSet::new());
        for (seq, order) in [(1, A), (2, A), (3, B)] {
            assert!(gate.admit(row(seq, order)).is_none());
        }
        assert_eq!(sent(&mut gate), [1, 3]);
        gate.put_back(1);
        assert_eq!(sent(&mut gate), [1]);
        assert!(gate.acknowledged(1));
        assert_eq!(sent(&mut gate), [2]);
    }

    #[test]
    fn what_fails_in_company_goes_alone_and_what_fails_alone_is_parked_with_its_order() {
        let mut gate = Gate::new(100, HashSet::new());
        for (seq, order) in [(1, A), (2, A), (3, B), (4, A)] {
            gate.admit(row(seq, order));
        }
        sent(&mut gate);
        assert_eq!(gate.refused(1), Parked::default());
        let again = gate.send_next().expect("the suspect goes again");
        assert!(again.alone && again.row.seq == 1);
        assert_eq!(gate.refused(1), Parked { refused: Some(1), behind: vec![2, 4] });
        assert!(gate.admit(row(5, A)).is_some(), "later events of the order go behind it");
        assert!(gate.acknowledged(3));
        assert_eq!(gate.unsettled(), 0);
    }

    #[test]
    fn a_hot_order_leaves_room_for_the_others_and_loses_nothing() {
        let mut gate = Gate::new(10_000, HashSet::new());
        for seq in 1..=1000 {
            gate.admit(row(seq, A));
        }
        gate.admit(row(1001, B));
        assert_eq!(gate.held(), LANE + 1);
        assert_eq!(gate.unsettled(), 1001);
        let mut out = Vec::new();
        let mut order_a = 0;
        while gate.unsettled() > 0 {
            for seq in sent(&mut gate) {
                out.push(seq);
                order_a += i32::from(seq <= 1000);
                gate.acknowledged(seq);
            }
            for range in gate.wanted(usize::MAX) {
                for seq in range {
                    gate.admit(row(seq, A));
                }
            }
        }
        assert_eq!(order_a, 1000);
        assert!(out.iter().filter(|seq| **seq <= 1000).is_sorted());
        assert_eq!(out[1], 1001, "the other order did not wait");
    }
}
