//! The frontier against a model that knows the truth: which numbers were committed and which were
//! rolled back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::frontier::{Frontier, Holders, Numbers};

/// What happens next; an index names one of the open transactions.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// Of a program that never writes to the outbox.
    BeginForeign,
    Draw(usize),
    RollBackToSavepoint(usize),
    Commit(usize),
    RollBack(usize),
    BeginRead,
    EndRead,
    LookAtLocks,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Begin),
        1 => Just(Step::BeginForeign),
        6 => (0..8_usize).prop_map(Step::Draw),
        1 => (0..8_usize).prop_map(Step::RollBackToSavepoint),
        3 => (0..8_usize).prop_map(Step::Commit),
        2 => (0..8_usize).prop_map(Step::RollBack),
        4 => Just(Step::BeginRead),
        4 => Just(Step::EndRead),
        3 => Just(Step::LookAtLocks),
        1 => Just(Step::Restart),
    ]
}

#[derive(Default)]
struct Transaction {
    writes: bool,
    numbers: Vec<i64>,
}

struct Model {
    frontier: Frontier,
    limit: usize,
    drawn: i64,
    names: u64,
    open: BTreeMap<u64, Transaction>,
    committed: BTreeSet<i64>,
    taken: BTreeSet<i64>,
    closed: BTreeSet<i64>,
    /// The rows of the read under way: its snapshot is the moment when it began.
    reading: Option<(Vec<i64>, bool)>,
}

impl Model {
    fn new(limit: usize) -> Self {
        Self {
            frontier: Frontier::new(&Numbers::new()),
            limit,
            drawn: 0,
            names: 0,
            open: BTreeMap::new(),
            committed: BTreeSet::new(),
            taken: BTreeSet::new(),
            closed: BTreeSet::new(),
            reading: None,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin | Step::BeginForeign => {
                self.names += 1;
                self.open.insert(self.names, Transaction::default());
            }
            Step::Draw(index) => {
                self.drawn += 1;
                let drawn = self.drawn;
                if let Some(transaction) = self.nth(*index) {
                    transaction.writes = true;
                    transaction.numbers.push(drawn);
                }
            }
            Step::RollBackToSavepoint(index) => {
                self.nth(*index).map(|transaction| transaction.numbers.pop());
            }
            Step::Commit(index) => {
                if let Some(name) = self.open.keys().nth(*index).copied() {
                    self.committed.extend(self.open.remove(&name).expect("open").numbers);
                }
            }
            Step::RollBack(index) => {
                if let Some(name) = self.open.keys().nth(*index).copied() {
                    self.open.remove(&name);
                }
            }
            Step::BeginRead if self.reading.is_none() => self.begin_read(),
            Step::EndRead => self.end_read(),
            Step::LookAtLocks if self.reading.is_none() => {
                let holders: Holders =
                    self.open.iter().filter(|(_, t)| t.writes).map(|(name, _)| name.to_string()).collect();
                self.frontier.holders(&holders);
            }
            Step::Restart => {
                self.reading = None;
                let settled: Numbers = self.taken.iter().chain(&self.closed).map(|seq| *seq..=*seq).collect();
                self.frontier = Frontier::new(&settled);
            }
            Step::BeginRead | Step::LookAtLocks => {}
        }
    }

    fn nth(&mut self, index: usize) -> Option<&mut Transaction> {
        self.open.values_mut().nth(index)
    }

    fn begin_read(&mut self) {
        let open = self.frontier.begin_read();
        let above = self.frontier.high();
        let rows: Vec<i64> = self
            .committed
            .iter()
            .copied()
            .filter(|seq| *seq > above || open.contains(seq))
            .take(self.limit)
            .collect();
        let cut = rows.len() == self.limit;
        self.reading = Some((rows, cut));
    }

    fn end_read(&mut self) {
        let Some((rows, cut)) = self.reading.take() else { return };
        let closed = self.frontier.end_read(&rows, cut);
        for seq in rows {
            assert!(self.taken.insert(seq), "{seq} was read twice");
        }
        let own: BTreeSet<i64> = self.open.values().flat_map(|t| t.numbers.iter().copied()).collect();
        for seq in closed.iter().flat_map(Clone::clone) {
            assert!(!self.committed.contains(&seq), "{seq} was committed, and closed as rolled back");
            assert!(!own.contains(&seq), "{seq} may still be committed, and was closed");
            assert!(self.closed.insert(seq), "{seq} was closed twice");
        }
    }

    /// Writers end; a foreign transaction may stay open for ever.
    fn settle(&mut self) {
        self.end_read();
        self.open.retain(|_, transaction| !transaction.writes);
        for _ in 0..self.committed.len() + 4 {
            self.take(&Step::BeginRead);
            self.take(&Step::EndRead);
            self.take(&Step::LookAtLocks);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_is_taken_or_closed_once_and_no_committed_one_is_ever_closed(
        steps in vec(step(), 0..120),
        limit in 1..9_usize,
    ) {
        let mut model = Model::new(limit);
        for step in &steps {
            model.take(step);
        }
        model.settle();
        prop_assert_eq!(&model.taken, &model.committed);
        let top = model.committed.last().copied().unwrap_or(0);
        let rolled_back: BTreeSet<i64> = (1..=top).filter(|seq| !model.committed.contains(seq)).collect();
        prop_assert_eq!(&model.closed, &rolled_back);
        prop_assert_eq!(model.frontier.hole_count(), 0);
    }
}
