//! What has been settled, what has been read, and which numbers in between are holes.
//!
//! Pure: no I/O, no clock. A number drawn from the outbox sequence is, at any time, exactly one of
//! *ahead* (above everything read), *taken* (its row was read and handed on), a *hole* (drawn, but
//! not visible to any read so far) or *settled* (acknowledged, parked, or proven never to have
//! been committed).
//!
//! **When a hole may be closed.** Every writer locks the table (`RowExclusiveLock`) before it draws
//! a number and lets go only after its commit is visible. So: a read finds the hole; *after* it the
//! set of transactions that hold the lock is taken; once none of that set holds it any more, a
//! *later* read that still does not show the number proves that it was rolled back. No loss rests
//! on anything else; a transaction that never wrote to the outbox is not even looked at.

use std::collections::BTreeSet;

use rangemap::RangeInclusiveSet;

/// A set of outbox numbers.
pub(crate) type Numbers = RangeInclusiveSet<i64>;

/// The transactions (`pg_locks.virtualtransaction`) that hold the writers' lock on the outbox.
pub(crate) type Holders = BTreeSet<String>;

/// How the name of a prepared transaction begins that was recovered after a restart.
const PREPARED: &str = "-1/";

/// Holes that were found together.
#[derive(Debug)]
struct Generation {
    numbers: Numbers,
    writers: Writers,
}

/// Who may still own the numbers of a generation.
#[derive(Debug, PartialEq, Eq)]
enum Writers {
    /// The locks have not been looked at since the holes were found.
    Unasked,
    /// These held the lock after the holes were found and have held it ever since.
    Holding(Holders),
    /// None of them holds it any more: the next read decides.
    Gone,
}

/// The frontier between what is settled and what is still to come.
#[derive(Debug)]
pub(crate) struct Frontier {
    high: i64,
    holes: Vec<Generation>,
    /// Numbers that the read under way decides: their writers were gone before it began.
    deciding: Numbers,
}

impl Frontier {
    /// Starts from what the sink has settled. Everything below its highest number that is not in
    /// it is a hole to be read again: an event that was under way when the last holder ended, or a
    /// number that never showed.
    #[must_use]
    pub(crate) fn new(settled: &Numbers) -> Self {
        let high = settled.last().map_or(0, |range| *range.end());
        let mut frontier = Self { high, holes: Vec::new(), deciding: Numbers::new() };
        if high > 0 {
            frontier.found(settled.gaps(&(1..=high)).collect());
        }
        frontier
    }

    /// The highest number read.
    #[must_use]
    pub(crate) fn high(&self) -> i64 {
        self.high
    }

    /// How many numbers are open holes.
    #[must_use]
    pub(crate) fn hole_count(&self) -> i64 {
        self.holes.iter().flat_map(|g| g.numbers.iter()).map(|r| r.end() - r.start() + 1).sum()
    }

    /// Whether the locks have to be looked at for any hole to make progress.
    #[must_use]
    pub(crate) fn wants_holders(&self) -> bool {
        self.holes.iter().any(|g| g.writers != Writers::Gone)
    }

    /// Whether a read would decide a hole.
    #[must_use]
    pub(crate) fn wants_read(&self) -> bool {
        self.holes.iter().any(|g| g.writers == Writers::Gone)
    }

    /// Begins a read and gives the holes that it must look at. The read must also take
    /// everything above [`Frontier::high`], all in one statement: with one snapshot a later
    /// version of an order is never seen without its earlier one.
    pub(crate) fn begin_read(&mut self) -> Numbers {
        self.deciding = self
            .holes
            .iter()
            .filter(|g| g.writers == Writers::Gone)
            .flat_map(|g| g.numbers.iter())
            .cloned()
            .collect();
        self.holes.iter().flat_map(|g| g.numbers.iter()).cloned().collect()
    }

    /// Ends a read. `seen` are the numbers of its rows, ascending; `cut` says that the read
    /// stopped at its row limit, so that nothing above the last row was looked at.
    /// Gives the numbers that are now proven to have been rolled back: they are settled.
    #[must_use = "numbers that were rolled back are settled"]
    pub(crate) fn end_read(&mut self, seen: &[i64], cut: bool) -> Numbers {
        let looked_until = if cut { seen.last().copied().unwrap_or(0) } else { i64::MAX };

        for &seq in seen.iter().take_while(|seq| **seq <= self.high) {
            self.deciding.remove(seq..=seq);
            for generation in &mut self.holes {
                generation.numbers.remove(seq..=seq);
            }
        }

        let mut holes = Numbers::new();
        for &seq in seen {
            if seq > self.high + 1 {
                holes.insert(self.high + 1..=seq - 1);
            }
            self.high = self.high.max(seq);
        }
        self.found(holes);

        let mut decided = std::mem::take(&mut self.deciding);
        if looked_until < i64::MAX {
            decided.remove(looked_until + 1..=i64::MAX);
        }
        for range in decided.iter() {
            for generation in &mut self.holes {
                generation.numbers.remove(range.clone());
            }
        }
        self.holes.retain(|g| !g.numbers.is_empty());
        decided
    }

    /// Takes the transactions that hold the writers' lock, looked up after the latest read ended.
    pub(crate) fn holders(&mut self, now: &Holders) {
        for generation in &mut self.holes {
            let still: Holders = match &generation.writers {
                Writers::Unasked => now.clone(),
                // A prepared transaction shows under another name after a restart of the server:
                // one that was not there before may be any of those that are gone.
                Writers::Holding(then) => now
                    .iter()
                    .filter(|holder| then.contains(*holder) || holder.starts_with(PREPARED))
                    .cloned()
                    .collect(),
                Writers::Gone => continue,
            };
            generation.writers = if still.is_empty() { Writers::Gone } else { Writers::Holding(still) };
        }
        // Generations that wait for the same writers are one: their number stays bounded by the
        // number of writers however long one of them runs.
        self.holes.sort_by(|a, b| a.writers.key().cmp(&b.writers.key()));
        self.holes.dedup_by(|later, kept| {
            let same = later.writers == kept.writers;
            if same {
                kept.numbers.extend(std::mem::take(&mut later.numbers));
            }
            same
        });
    }

    fn found(&mut self, numbers: Numbers) {
        if !numbers.is_empty() {
            self.holes.push(Generation { numbers, writers: Writers::Unasked });
        }
    }
}

impl Writers {
    fn key(&self) -> (u8, Option<&Holders>) {
        match self {
            Self::Gone => (0, None),
            Self::Holding(holders) => (1, Some(holders)),
            Self::Unasked => (2, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;

    fn holders(names: &[&str]) -> Holders {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn numbers(range: RangeInclusive<i64>) -> Numbers {
        [range].into_iter().collect()
    }

    #[test]
    fn a_late_commit_is_taken_and_never_closed() {
        let mut frontier = Frontier::new(&Numbers::new());
        assert!(frontier.begin_read().is_empty());
        let _ = frontier.end_read(&[1, 3], false);
        frontier.holders(&holders(&["2/7"]));
        assert!(!frontier.wants_read());
        frontier.holders(&holders(&[]));
        assert!(frontier.wants_read());
        assert_eq!(frontier.begin_read(), numbers(2..=2));
        assert!(frontier.end_read(&[2, 4], false).is_empty());
        assert_eq!(frontier.hole_count(), 0);
    }

    #[test]
    fn a_rolled_back_number_is_closed_by_a_read_that_began_after_its_writer_was_gone() {
        let mut frontier = Frontier::new(&Numbers::new());
        frontier.begin_read();
        let _ = frontier.end_read(&[1, 3], false);
        frontier.begin_read();
        frontier.holders(&holders(&[]));
        assert!(frontier.end_read(&[], false).is_empty(), "this read began before the lock was looked at");
        frontier.begin_read();
        assert_eq!(frontier.end_read(&[], false), numbers(2..=2));
    }

    #[test]
    fn a_read_that_was_cut_decides_only_what_it_looked_at() {
        let mut frontier = Frontier::new(&Numbers::new());
        frontier.begin_read();
        let _ = frontier.end_read(&[1, 3, 5, 7], false);
        frontier.holders(&holders(&[]));
        frontier.begin_read();
        assert_eq!(frontier.end_read(&[4], true), numbers(2..=2));
        assert_eq!(frontier.hole_count(), 1);
    }

    #[test]
    fn a_prepared_transaction_that_outlives_a_restart_of_the_server_keeps_its_holes_open() {
        let mut frontier = Frontier::new(&Numbers::new());
        frontier.begin_read();
        let _ = frontier.end_read(&[2], false);
        frontier.holders(&holders(&["7/12"]));
        frontier.holders(&holders(&["-1/733"]));
        assert!(!frontier.wants_read());
        frontier.holders(&holders(&[]));
        assert!(frontier.wants_read());
    }

    #[test]
    fn a_restart_reads_again_what_was_not_settled() {
        let mut frontier = Frontier::new(&[1..=4, 7..=9].into_iter().collect());
        assert_eq!(frontier.high(), 9);
        assert_eq!(frontier.begin_read(), numbers(5..=6));
    }
}
