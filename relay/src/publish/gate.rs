//! The gate: an event is handed to Kafka only after every earlier event of its order is
//! acknowledged or parked, while different orders are pipelined.
//!
//! Pure: no I/O, no clock. Order per order (invariant 4) rests on this alone: it is the only
//! variant that kept the order in every fault, and it costs nothing measurable.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::HashMap;
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
    /// In memory.
    queue: VecDeque<Arc<Row>>,
    /// The front event is with Kafka.
    flies: bool,
    /// Committed, visible, to be read again when there is room: ascending.
    deferred: VecDeque<i64>,
    /// The front event was refused in company: it goes alone.
    alone: bool,
    /// What is being retried; its dead letters are at the front of the queue.
    retry: Option<Retrying>,
}

/// A retry of which the dead letters are in a lane.
#[derive(Debug)]
struct Retrying {
    id: RetryId,
    /// Dead letters that are still in the lane.
    left: usize,
    /// With these the retry ends.
    last: bool,
}

/// What an operator asked for: the dead letters of one order once more.
pub(crate) type RetryId = Uuid;

/// Dead letters of one order that are to be published again.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    /// Under what id it was asked for.
    pub id: RetryId,
    /// The order.
    pub order: Uuid,
    /// The next of its dead letters, ascending.
    pub rows: Vec<Row>,
    /// Whether these are the last that were asked for.
    pub last: bool,
    /// Whether the order has no dead letters beside these.
    pub frees: bool,
}

/// What an acknowledgement was for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// Nothing that is with Kafka.
    Nothing,
    /// An event of the outbox.
    Event,
    /// A dead letter, and which retry ended with it.
    DeadLetter(Option<RetryId>),
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
    /// Events with Kafka.
    in_flight: usize,
    /// Orders with remembered numbers and room for them.
    hungry: foldhash::HashSet<Uuid>,
    /// Orders of which an event is parked: later ones go behind it.
    parked: HashSet<Uuid>,
    held: usize,
    held_bytes: usize,
    deferred: usize,
    /// Dead letters in memory.
    retried: usize,
    /// Bound of `held_bytes`, which is the reader's to keep.
    bytes: usize,
}

impl Gate {
    /// A gate that is to hold about so many bytes. `parked` are the orders that have dead letters.
    #[must_use]
    pub(crate) fn new(bytes: usize, parked: HashSet<Uuid>) -> Self {
        Self {
            lanes: HashMap::default(),
            ready: VecDeque::new(),
            in_flight: 0,
            hungry: foldhash::HashSet::default(),
            parked,
            held: 0,
            held_bytes: 0,
            deferred: 0,
            retried: 0,
            bytes,
        }
    }

    /// Whether nothing is in memory.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Bytes of payload in memory.
    #[must_use]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Events with Kafka that are not answered yet.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The lowest number of those; looks at every order in memory.
    #[must_use]
    pub(crate) fn oldest_in_flight(&self) -> Option<i64> {
        self.lanes.values().filter(|lane| lane.flies).filter_map(|lane| Some(lane.queue.front()?.seq)).min()
    }

    /// Whether dead letters are in memory.
    #[must_use]
    pub(crate) fn is_retrying(&self) -> bool {
        self.retried > 0
    }

    /// Events that are read and not settled, those included of which only the number is remembered.
    #[must_use]
    pub(crate) fn unsettled(&self) -> usize {
        self.held + self.deferred
    }

    /// Remembered numbers whose order has room for them, ascending within each order. Orders that are
    /// furthest behind come first: so all of them stay about as far, and what is settled stays a few ranges.
    pub(crate) fn wanted(&self, at_most: usize) -> Vec<RangeInclusive<i64>> {
        let lane_limit = self.lane_limit();
        let mut hungry: Vec<&Lane> = self.hungry.iter().filter_map(|order| self.lanes.get(order)).collect();
        hungry.sort_unstable_by_key(|lane| lane.deferred.front());
        let room = |lane: &Lane| lane_limit.saturating_sub(lane.queue.len());
        let numbers = hungry.iter().flat_map(|lane| lane.deferred.iter().take(room(lane)));
        let wanted: Numbers = numbers.take(at_most).map(|seq| *seq..=*seq).collect();
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

    /// Takes dead letters back. As long as the order has others its later events go on to join
    /// them; with the last one in the lane they go behind it. Gives the id of a retry that is
    /// over, because there is nothing left to publish.
    pub(crate) fn retry(&mut self, retry: Retry) -> Option<RetryId> {
        if retry.frees {
            self.parked.remove(&retry.order);
        }
        if retry.rows.is_empty() {
            return retry.last.then_some(retry.id);
        }
        let lane = self.lanes.entry(retry.order).or_default();
        lane.retry = Some(Retrying { id: retry.id, left: retry.rows.len(), last: retry.last });
        self.retried += retry.rows.len();
        self.held += retry.rows.len();
        self.held_bytes += retry.rows.iter().map(Row::bytes).sum::<usize>();
        lane.queue.extend(retry.rows.into_iter().map(Arc::new));
        self.ready.push_back(retry.order);
        None
    }

    /// The next event that may go, and from now on is with Kafka.
    pub(crate) fn send_next(&mut self) -> Option<Due> {
        while let Some(order) = self.ready.pop_front() {
            let Some(lane) = self.lanes.get_mut(&order) else { continue };
            let Some(row) = lane.queue.front() else { continue };
            lane.flies = true;
            self.in_flight += 1;
            return Some(Due { row: Arc::clone(row), alone: lane.alone });
        }
        None
    }

    /// Kafka has acknowledged the event.
    pub(crate) fn acknowledged(&mut self, event: &Row) -> Acknowledged {
        let lane_limit = self.lane_limit();
        let order = event.aggregate_id;
        let Some(lane) = flying(&mut self.lanes, event) else { return Acknowledged::Nothing };
        let acknowledged = match &mut lane.retry {
            Some(retry) if retry.left > 0 => {
                self.retried -= 1;
                retry.left -= 1;
                Acknowledged::DeadLetter((retry.left == 0 && retry.last).then_some(retry.id))
            }
            _ => Acknowledged::Event,
        };
        lane.queue.pop_front();
        lane.flies = false;
        lane.alone = false;
        self.in_flight -= 1;
        self.held -= 1;
        self.held_bytes -= event.bytes();
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
        acknowledged
    }

    /// The event was not taken, for a reason that will pass: it goes again, first of all.
    pub(crate) fn put_back(&mut self, event: &Row) {
        let Some(lane) = flying(&mut self.lanes, event) else { return };
        lane.flies = false;
        self.in_flight -= 1;
        self.ready.push_front(event.aggregate_id);
    }

    /// The event was refused for good. In company that is a suspicion, and it goes again alone;
    /// refused alone it is parked, and everything of its order that was read comes with it.
    pub(crate) fn refused(&mut self, event: &Row) -> Parked {
        let order = event.aggregate_id;
        let Some(lane) = flying(&mut self.lanes, event) else { return Parked::default() };
        if !lane.alone {
            lane.alone = true;
            self.put_back(event);
            return Parked::default();
        }
        let lane = self.lanes.remove(&order).unwrap_or_default();
        self.in_flight -= 1;
        self.hungry.remove(&order);
        self.parked.insert(order);
        self.held -= lane.queue.len();
        self.held_bytes -= lane.queue.iter().map(|row| row.bytes()).sum::<usize>();
        self.deferred -= lane.deferred.len();
        // A retry of which nothing is left in the lane has ended by itself.
        let retry = lane.retry.filter(|retry| retry.left > 0);
        self.retried -= retry.as_ref().map_or(0, |retry| retry.left);
        Parked {
            refused: Some(event.seq),
            failed: retry.map(|retry| retry.id),
            behind: lane.queue.iter().skip(1).map(|row| row.seq).chain(lane.deferred).collect(),
        }
    }

    fn lane_limit(&self) -> usize {
        if self.held_bytes > self.bytes / 2 { LANE_WHEN_CROWDED } else { LANE }
    }
}

/// The lane of an event that is with Kafka; none when it is not, whatever an answer says.
fn flying<'a>(lanes: &'a mut HashMap<Uuid, Lane>, event: &Row) -> Option<&'a mut Lane> {
    let lane = lanes.get_mut(&event.aggregate_id)?;
    let front = lane.queue.front().is_some_and(|row| row.seq == event.seq);
    (lane.flies && front).then_some(lane)
}

/// What leaves the gate for the dead letters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parked {
    /// The event that was refused alone.
    pub refused: Option<i64>,
    /// The retry that failed with it.
    pub failed: Option<RetryId>,
    /// The later events of its order, ascending.
    pub behind: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::row::testing::row;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);
    const MEMORY: usize = 1 << 20;

    fn sent(gate: &mut Gate) -> Vec<i64> {
        std::iter::from_fn(|| gate.send_next()).map(|due| due.row.seq).collect()
    }

    #[test]
    fn an_event_waits_for_the_earlier_ones_of_its_order_and_for_nothing_else() {
        let mut gate = Gate::new(MEMORY, HashSet::new());
        for (seq, order) in [(1, A), (2, A), (3, B)] {
            assert!(gate.admit(row(seq, order)).is_none());
        }
        assert_eq!(sent(&mut gate), [1, 3]);
        gate.put_back(&row(1, A));
        assert_eq!(sent(&mut gate), [1]);
        assert_eq!(gate.acknowledged(&row(1, A)), Acknowledged::Event);
        assert_eq!(sent(&mut gate), [2]);
    }

    #[test]
    fn what_fails_in_company_goes_alone_and_what_fails_alone_is_parked_with_its_order() {
        let mut gate = Gate::new(MEMORY, HashSet::new());
        for (seq, order) in [(1, A), (2, A), (3, B), (4, A)] {
            gate.admit(row(seq, order));
        }
        sent(&mut gate);
        assert_eq!(gate.refused(&row(1, A)), Parked::default());
        let again = gate.send_next().expect("the suspect goes again");
        assert!(again.alone && again.row.seq == 1);
        assert_eq!(gate.refused(&row(1, A)), Parked { refused: Some(1), failed: None, behind: vec![2, 4] });
        assert!(gate.admit(row(5, A)).is_some(), "later events of the order go behind it");
        assert_eq!(gate.acknowledged(&row(3, B)), Acknowledged::Event);
        assert_eq!(gate.unsettled(), 0);
    }

    #[test]
    fn events_join_the_dead_letters_of_their_order_until_the_last_of_them_is_back_in_the_lane() {
        let mut gate = Gate::new(MEMORY, HashSet::from([A]));
        let id = Uuid::from_u128(9);
        let some = Retry { id, order: A, rows: vec![row(1, A), row(2, A)], last: false, frees: false };
        assert_eq!(gate.retry(some), None);
        assert!(gate.admit(row(4, A)).is_some(), "there are dead letters outside the lane");
        assert_eq!(sent(&mut gate), [1]);
        assert_eq!(gate.acknowledged(&row(1, A)), Acknowledged::DeadLetter(None));
        assert_eq!(sent(&mut gate), [2]);
        assert_eq!(gate.acknowledged(&row(2, A)), Acknowledged::DeadLetter(None));
        assert!(!gate.is_retrying() && gate.admit(row(5, A)).is_some());

        let rest = Retry { id, order: A, rows: vec![row(3, A), row(4, A)], last: true, frees: true };
        gate.retry(rest);
        assert!(gate.admit(row(6, A)).is_none(), "goes behind in the lane");
        assert_eq!(sent(&mut gate), [3]);
        assert_eq!(gate.acknowledged(&row(3, A)), Acknowledged::DeadLetter(None));
        assert!(gate.send_next().is_some_and(|due| due.row.seq == 4));
        gate.refused(&row(4, A));
        gate.send_next();
        assert_eq!(gate.refused(&row(4, A)), Parked { refused: Some(4), failed: Some(id), behind: vec![6] });
        assert!(!gate.is_retrying() && gate.admit(row(7, A)).is_some());

        let nothing = Retry { id, order: A, rows: Vec::new(), last: true, frees: true };
        assert_eq!(gate.retry(nothing), Some(id), "the last dead letter was discarded");
        assert!(gate.admit(row(8, A)).is_none());
    }

    #[test]
    fn of_orders_that_wait_for_room_those_furthest_behind_are_read_first() {
        let mut gate = Gate::new(MEMORY, HashSet::new());
        let orders: Vec<Uuid> = (1..=20).map(Uuid::from_u128).collect();
        let many = i64::try_from(LANE).expect("few") * 2;
        // One after the other, so that the last order is the furthest behind.
        for seq in 1..=many * 20 {
            let turn = usize::try_from((seq - 1) / many).expect("few");
            gate.admit(row(seq, orders[19 - turn]));
        }
        let handed: HashSet<i64> = sent(&mut gate).into_iter().collect();
        for seq in handed {
            let turn = usize::try_from((seq - 1) / many).expect("few");
            for seq in seq..seq + i64::try_from(LANE).expect("few") {
                gate.acknowledged(&row(seq, orders[19 - turn]));
                gate.send_next();
            }
        }
        let wanted = gate.wanted(LANE);
        let first = i64::try_from(LANE).expect("few") + 1;
        assert_eq!(wanted, [first..=first + i64::try_from(LANE).expect("few") - 1]);
    }

    #[test]
    fn a_hot_order_leaves_room_for_the_others_and_loses_nothing() {
        let mut gate = Gate::new(MEMORY, HashSet::new());
        for seq in 1..=1000 {
            gate.admit(row(seq, A));
        }
        gate.admit(row(1001, B));
        assert_eq!(gate.held, LANE + 1);
        assert_eq!(gate.unsettled(), 1001);
        let mut out = Vec::new();
        let mut order_a = 0;
        while gate.unsettled() > 0 {
            for seq in sent(&mut gate) {
                out.push(seq);
                order_a += i32::from(seq <= 1000);
                gate.acknowledged(&row(seq, if seq == 1001 { B } else { A }));
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
