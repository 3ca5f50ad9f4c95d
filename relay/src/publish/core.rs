//! What the publisher decides: which rows to read next, what may be sent, what an answer of Kafka
//! means, what to checkpoint, when it is done. A state machine without I/O, clock or async:
//! [`Core::handle`] takes what happened, [`Core::next`] gives what to do, and both are told the
//! time. So the whole publisher runs in a deterministic simulation (`simulation.rs`).

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::frontier::{Frontier, Holders, Numbers};
use super::gate::{Acknowledged, Due, Gate, Retry, RetryId};
use super::row::Row;

/// Bounds of memory and pace. The defaults are the measured ones.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Events with Kafka.
    pub in_flight: usize,
    /// Bytes in memory ([`Row::bytes`]), of what is with Kafka too. More than what may be with Kafka at
    /// a time: where the events of an order lie side by side, only the first of them may go.
    pub bytes: usize,
    /// Rows of one read.
    pub rows: usize,
    /// How often to read when no bell rings.
    pub poll: Duration,
    /// Time between checkpoints, at least.
    pub checkpoint: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 10_000,
            bytes: 64 << 20,
            rows: 2_000,
            poll: Duration::from_secs(1),
            checkpoint: Duration::from_millis(50),
        }
    }
}

/// A read that gives so many rows is one of many in a row: what has come meanwhile is read after [`PACE`].
const BUSY_ROWS: usize = 8;
/// From the beginning of a read that gave [`BUSY_ROWS`] to the next one at the earliest. Fewer and larger requests
/// leave the processors to PostgreSQL and Kafka: with every fifth of a millisecond a commit, p50 is a millisecond
/// higher and p99.9 half as high (docs/performance.md).
const PACE: Duration = Duration::from_millis(4);
/// A checkpoint takes at most one part in so many of the time.
const CHECKPOINT_SHARE: u32 = 10;
/// The longest that a slow checkpoint puts off the next one: it may have waited for a database that was away.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(2);
/// How often the writers' locks are looked at while a hole is open: at first, and at most.
const LOOK: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(320);
/// How long nothing is sent after a transient refusal: at first, and at most.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// Events that are parked by one checkpoint: it locks the sink's row, and the lease is renewed there.
const PARKED: usize = 1_000;
/// Dead letters that are read at a time.
const RETRIED: usize = 256;
/// Payload that a row is assumed to have before the first rows are read.
const ASSUMED_ROW_BYTES: usize = 64 << 10;

/// What a refusal means. Unknown means transient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It will pass: wait, spend nothing.
    Transient,
    /// This event, or one that travelled with it, will never be taken.
    Permanent,
    /// The producer is beyond use.
    Fatal,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// The read is done: its rows, ascending, and whether it stopped at one of its limits.
    Rows {
        /// The rows.
        rows: Vec<Row>,
        /// Whether there may be more.
        cut: bool,
    },
    /// The transactions that hold the writers' lock, looked up after the latest read ended.
    Holders(Holders),
    /// Kafka has the event, on all in-sync replicas.
    Acknowledged(Arc<Row>),
    /// Kafka did not take the event.
    Refused {
        /// The event.
        event: Arc<Row>,
        /// What that means.
        verdict: Verdict,
        /// The words of the broker or the client library.
        detail: String,
    },
    /// The producer is beyond use, and events that are with it may never be answered.
    BeyondUse(String),
    /// The checkpoint is committed.
    Saved,
    /// Somebody has committed something.
    Bell,
    /// An operator has asked for dead letters to be published again.
    RetriesWait,
    /// The dead letters that were asked for; none when there are no more.
    Retries(Vec<Retry>),
    /// Stand still: finish what is with Kafka, checkpoint, send and read nothing.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Drain when everything is published that is there now.
    DrainWhenPublished,
    /// Stop: finish what is with Kafka, checkpoint, and be done.
    Drain,
}

/// What to do. At most one of `Read`, `ReadRetries` and `LookUpHolders`, and at most one `Checkpoint`, is under
/// way at a time.
#[derive(Debug)]
pub(crate) enum Command {
    /// Read, in one statement, the rows in `open` and those above `above`: `limit` rows at most,
    /// and no more once `bytes` are spent.
    Read {
        /// Numbers below `above` that are still to be seen.
        open: Vec<RangeInclusive<i64>>,
        /// The highest number read so far.
        above: i64,
        /// Row limit.
        limit: usize,
        /// Room in memory; the row that spends it is still taken.
        bytes: usize,
    },
    /// Read, in one statement, the dead letters that are to be published again.
    ReadRetries {
        /// Row limit.
        limit: usize,
        /// Room in memory; the row that spends it is still taken.
        bytes: usize,
    },
    /// Look up who holds the writers' lock.
    LookUpHolders,
    /// Hand the event to Kafka.
    Send(Due),
    /// Commit, in one transaction and fenced by the epoch, that these are settled and parked.
    Checkpoint(Checkpoint),
    /// The producer is beyond use: make a new one and start again from what is checkpointed.
    Rebuild(String),
    /// Drained: everything settled is checkpointed.
    Done,
}

/// What has been settled since the last checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Acknowledged, parked or rolled back, ascending.
    pub settled: Vec<RangeInclusive<i64>>,
    /// The parked ones among them; those that were parked before are parked again.
    pub parked: Vec<ParkedEvent>,
    /// Dead letters that Kafka has acknowledged after all: they are deleted.
    pub mended: Vec<i64>,
    /// Retries that are over, well or not.
    pub ended: Vec<RetryId>,
}

impl Checkpoint {
    fn touches_dead_letters(&self) -> bool {
        !(self.parked.is_empty() && self.mended.is_empty() && self.ended.is_empty())
    }
}

/// An event on its way to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParkedEvent {
    /// Its number in the outbox.
    pub seq: i64,
    /// Why Kafka refused it; none when it only goes behind an earlier event of its order.
    pub refusal: Option<String>,
}

/// Nothing is sent for a while, because Kafka would not take an event for now.
#[derive(Debug)]
struct Circuit {
    until: Duration,
    pause: Duration,
    /// One event is on its way to find out.
    probing: bool,
    reason: String,
}

/// The publisher's state.
#[derive(Debug)]
pub(crate) struct Core {
    limits: Limits,
    frontier: Frontier,
    gate: Gate,
    /// Settled and not in a checkpoint yet, in no order: putting them in order once, for a checkpoint,
    /// costs a tenth of keeping them so.
    unsaved: Vec<RangeInclusive<i64>>,
    /// The rest of the next checkpoint: what changes among the dead letters.
    unsaved_dead: Checkpoint,
    /// Such a change is being saved.
    saving_dead: bool,
    saving_since: Option<Duration>,
    save_at: Duration,
    /// A read or a look at the locks is under way.
    reading: bool,
    retries_wait: bool,
    /// An event was parked since the dead letters were asked for.
    parked_meanwhile: bool,
    paused: bool,
    /// To be drained when everything is published that is there now.
    ends: bool,
    /// Everything was read that was there.
    read_all: bool,
    rung: bool,
    more: bool,
    poll_at: Duration,
    /// When new rows are read at the earliest.
    read_at: Duration,
    look_at: Duration,
    look_pace: Duration,
    row_bytes: usize,
    circuit: Option<Circuit>,
    fatal: Option<String>,
    draining: bool,
}

impl Core {
    /// Starts from what the sink has settled and the orders that have dead letters.
    #[must_use]
    pub(crate) fn new(limits: Limits, settled: &Numbers, parked: HashSet<Uuid>) -> Self {
        Self {
            frontier: Frontier::new(settled),
            gate: Gate::new(limits.bytes, parked),
            limits,
            unsaved: Vec::new(),
            unsaved_dead: Checkpoint::default(),
            saving_dead: false,
            saving_since: None,
            save_at: Duration::ZERO,
            reading: false,
            retries_wait: false,
            parked_meanwhile: false,
            paused: false,
            ends: false,
            read_all: false,
            rung: true,
            more: false,
            poll_at: Duration::ZERO,
            read_at: Duration::ZERO,
            look_at: Duration::ZERO,
            look_pace: *LOOK.start(),
            row_bytes: ASSUMED_ROW_BYTES,
            circuit: None,
            fatal: None,
            draining: false,
        }
    }

    /// Takes what happened at `now`, a time since any fixed start.
    pub(crate) fn handle(&mut self, now: Duration, input: Input) {
        match input {
            Input::Rows { rows, cut } => self.rows(now, rows, cut),
            Input::Holders(holders) => {
                self.reading = false;
                self.frontier.holders(&holders);
                self.look_at = now + self.look_pace;
                self.look_pace = (self.look_pace * 2).min(*LOOK.end());
            }
            Input::Acknowledged(event) => {
                match self.gate.acknowledged(&event) {
                    Acknowledged::Nothing => {}
                    Acknowledged::Event => self.unsaved.push(event.seq..=event.seq),
                    Acknowledged::DeadLetter(ended) => {
                        self.unsaved_dead.mended.push(event.seq);
                        self.unsaved_dead.ended.extend(ended);
                    }
                }
                self.circuit = None;
            }
            Input::Refused { event, verdict: Verdict::Transient, detail } => {
                self.gate.put_back(&event);
                self.open_circuit(now, detail);
            }
            Input::Refused { event, verdict: Verdict::Permanent, detail } => {
                let parked = self.gate.refused(&event);
                if let Some(seq) = parked.refused {
                    self.park(seq, Some(detail));
                }
                for seq in parked.behind {
                    self.park(seq, None);
                }
                self.unsaved_dead.ended.extend(parked.failed);
                // Kafka answers, so it is not away.
                self.circuit = None;
            }
            Input::Refused { verdict: Verdict::Fatal, detail, .. } | Input::BeyondUse(detail) => {
                self.fatal = Some(detail);
            }
            Input::Saved => {
                let took = now.saturating_sub(self.saving_since.take().unwrap_or(now));
                let share = (took * CHECKPOINT_SHARE).min(CHECKPOINT_PAUSE);
                self.save_at = now + self.limits.checkpoint.max(share);
                self.saving_dead = false;
            }
            Input::Bell => self.rung = true,
            Input::RetriesWait => self.retries_wait = true,
            Input::Retries(retries) => self.retries(retries),
            Input::Pause => self.paused = true,
            Input::Resume => self.paused = false,
            Input::DrainWhenPublished => self.ends = true,
            Input::Drain => self.draining = true,
        }
    }

    /// What to do now; to be called until it gives nothing.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Command> {
        if self.fatal.is_some() {
            // A checkpoint that is under way may still land, and what starts again must know of it.
            let at_rest = self.saving_since.is_none();
            return self.fatal.take_if(|_| at_rest).map(Command::Rebuild);
        }
        // First of all: the next rows come while those before them are handed to Kafka.
        if let Some(question) = self.next_question(now) {
            self.reading = true;
            return Some(question);
        }
        if self.may_send(now)
            && let Some(due) = self.gate.send_next()
        {
            if let Some(circuit) = &mut self.circuit {
                circuit.probing = true;
            }
            return Some(Command::Send(due));
        }
        if self.ends && self.read_all && !self.retries_wait && self.gate.unsettled() == 0 {
            self.draining = true;
        }
        let at_rest = self.gate.in_flight() == 0;
        let last_call = at_rest && (self.draining || self.paused);
        let hurry = last_call || self.retries_are_next();
        if self.saving_since.is_none() && self.has_unsaved() && (now >= self.save_at || hurry) {
            self.saving_since = Some(now);
            self.saving_dead = self.unsaved_dead.touches_dead_letters();
            return Some(Command::Checkpoint(self.take_checkpoint()));
        }
        (self.draining && at_rest && self.saving_since.is_none()).then_some(Command::Done)
    }

    /// When [`Core::next`] may have something to do although nothing happens; none when only an
    /// answer can bring something to do.
    #[must_use]
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let stands = self.draining || self.paused;
        let may_look = !(self.reading || stands || self.retries_are_next());
        let may_poll = may_look && !(self.ends && self.read_all) && self.read_limit().is_some();
        let poll = may_poll.then_some(if self.has_news() { self.read_at } else { self.poll_at });
        let look = (may_look && self.frontier.wants_holders()).then_some(self.look_at);
        let save = (self.saving_since.is_none() && self.has_unsaved()).then_some(self.save_at);
        let probe = self.circuit.as_ref().filter(|c| !c.probing && !stands).map(|c| c.until);
        [poll, look, save, probe].into_iter().flatten().min()
    }

    /// Why nothing is sent at the moment, if so.
    #[must_use]
    pub(crate) fn circuit_reason(&self) -> Option<&str> {
        self.circuit.as_ref().map(|c| c.reason.as_str())
    }

    /// Events that are with Kafka.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.gate.in_flight()
    }

    /// The lowest number of those; to be asked now and then.
    #[must_use]
    pub(crate) fn oldest_in_flight(&self) -> Option<i64> {
        self.gate.oldest_in_flight()
    }

    /// Bytes of what is in memory.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.gate.held_bytes()
    }

    /// Numbers that were drawn and are not visible.
    #[cfg(test)]
    pub(crate) fn holes(&self) -> i64 {
        self.frontier.hole_count()
    }

    /// How often to read when no bell rings; shorter when there is nobody to ring it.
    pub(crate) fn poll_every(&mut self, poll: Duration) {
        self.limits.poll = poll;
    }

    fn rows(&mut self, now: Duration, rows: Vec<Row>, cut: bool) {
        self.reading = false;
        self.more = cut;
        self.read_all |= !cut;
        self.poll_at = now + self.limits.poll;
        if rows.len() < BUSY_ROWS {
            self.read_at = now;
        }
        let seen: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        let had_holes = self.frontier.hole_count();
        self.unsaved.extend(self.frontier.end_read(&seen, cut));
        if self.frontier.hole_count() > had_holes {
            self.look_pace = *LOOK.start();
            self.look_at = self.look_at.min(now + self.look_pace);
        }
        if !rows.is_empty() {
            let mean = rows.iter().map(Row::bytes).sum::<usize>() / rows.len();
            // Up at once, down slowly: a wrong guess upwards costs time, downwards memory.
            self.row_bytes = mean.max(self.row_bytes - self.row_bytes / 4).max(1);
        }
        for row in rows {
            if let Some(row) = self.gate.admit(row) {
                self.park(row.seq, None);
            }
        }
    }

    /// What to ask the database next, one question at a time.
    fn next_question(&mut self, now: Duration) -> Option<Command> {
        if self.reading || self.draining || self.paused {
            return None;
        }
        if self.retries_are_next() {
            return self.read_retries();
        }
        if self.frontier.wants_holders() && now >= self.look_at {
            return Some(Command::LookUpHolders);
        }
        self.next_read(now)
    }

    /// Dead letters are read when everything that was decided about them is saved: then those in
    /// the database are all that there are. None of those under way is read a second time, and an
    /// order that shows no others has none (invariant 4 rests on it).
    fn read_retries(&mut self) -> Option<Command> {
        if self.saving_dead || self.unsaved_dead.touches_dead_letters() {
            return None;
        }
        let limit = self.read_limit()?.min(RETRIED);
        self.retries_wait = false;
        self.parked_meanwhile = false;
        Some(Command::ReadRetries { limit, bytes: self.room() })
    }

    fn retries(&mut self, retries: Vec<Retry>) {
        self.reading = false;
        // There may be more behind them. And what was parked meanwhile is not among them: again.
        self.retries_wait |= self.parked_meanwhile || !retries.is_empty();
        if !self.parked_meanwhile {
            for retry in retries {
                let over = self.gate.retry(retry);
                self.unsaved_dead.ended.extend(over);
            }
        }
    }

    fn next_read(&mut self, now: Duration) -> Option<Command> {
        let limit = self.read_limit()?;
        let wanted = self.gate.wanted(limit);
        if self.ends && self.read_all && wanted.is_empty() {
            return None;
        }
        let asked = self.more || now >= self.poll_at || (self.has_news() && now >= self.read_at);
        if !asked && wanted.is_empty() {
            return None;
        }
        self.rung = false;
        self.read_at = now + PACE;
        let mut open = self.frontier.begin_read();
        open.extend(wanted);
        let (above, bytes) = (self.frontier.high(), self.room());
        Some(Command::Read { open: open.into_iter().collect(), above, limit, bytes })
    }

    /// There may be rows that were not there when it was read last.
    fn has_news(&self) -> bool {
        self.rung || self.frontier.wants_read()
    }

    /// How many rows memory probably has room for; none when it is full. What bounds memory is the
    /// read's own limit of bytes; this one is a guess that keeps reads from running into it.
    fn read_limit(&self) -> Option<usize> {
        if self.gate.is_empty() {
            return Some((self.limits.bytes / self.row_bytes).clamp(1, self.limits.rows));
        }
        let room = self.room();
        let limit = self.limits.rows.min(room / self.row_bytes);
        // A full memory is not read into by the spoonful.
        let spoonful = room < self.limits.bytes / 2 && limit < self.limits.rows / 4;
        (limit > 0 && !spoonful).then_some(limit)
    }

    /// Bytes that memory has room for.
    fn room(&self) -> usize {
        self.limits.bytes.saturating_sub(self.gate.held_bytes())
    }

    /// Dead letters are read next, before anything else.
    fn retries_are_next(&self) -> bool {
        self.retries_wait && !self.gate.is_retrying()
    }

    /// What is parked counts as settled in the very checkpoint that parks it (invariant 3).
    fn take_checkpoint(&mut self) -> Checkpoint {
        let mut checkpoint = std::mem::take(&mut self.unsaved_dead);
        if checkpoint.parked.len() > PARKED {
            self.unsaved_dead.parked = checkpoint.parked.split_off(PARKED);
        }
        self.unsaved.extend(checkpoint.parked.iter().map(|event| event.seq..=event.seq));
        Checkpoint { settled: joined(std::mem::take(&mut self.unsaved)), ..checkpoint }
    }

    fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty() || self.unsaved_dead.touches_dead_letters()
    }

    fn may_send(&self, now: Duration) -> bool {
        !self.draining
            && !self.paused
            && self.gate.in_flight() < self.limits.in_flight
            && self.circuit.as_ref().is_none_or(|circuit| now >= circuit.until && !circuit.probing)
    }

    fn open_circuit(&mut self, now: Duration, reason: String) {
        let pause = match &self.circuit {
            // Others that were under way fail with the first: one outage, one pause.
            Some(circuit) if !circuit.probing => return,
            Some(circuit) => (circuit.pause * 2).min(*PAUSE.end()),
            None => *PAUSE.start(),
        };
        self.circuit = Some(Circuit { until: now + pause, pause, probing: false, reason });
    }

    fn park(&mut self, seq: i64, refusal: Option<String>) {
        self.unsaved_dead.parked.push(ParkedEvent { seq, refusal });
        self.parked_meanwhile = true;
    }
}

/// The same numbers, ascending, in as few ranges as possible.
fn joined(mut ranges: Vec<RangeInclusive<i64>>) -> Vec<RangeInclusive<i64>> {
    ranges.sort_unstable_by_key(|range| *range.start());
    ranges.dedup_by(|next, range| {
        let touches = *next.start() <= range.end().saturating_add(1);
        if touches {
            *range = *range.start()..=*range.end().max(next.end());
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::row::testing::row;

    #[test]
    fn a_checkpoint_is_as_few_ranges_as_possible() {
        assert_eq!(joined(vec![9..=9, 3..=5, 1..=1, 2..=2, 7..=7, 4..=4]), [1..=5, 7..=7, 9..=9]);
        assert_eq!(joined(Vec::new()), []);
    }

    /// The checkpoint that [`Core::next`] wants at `now`, everything else done on the way.
    fn checkpoint(core: &mut Core, now: Duration) -> bool {
        while let Some(command) = core.next(now) {
            match command {
                Command::Send(due) => core.handle(now, Input::Acknowledged(due.row)),
                Command::Checkpoint(_) => return true,
                _ => {}
            }
        }
        false
    }

    /// What [`Core::next`] hands to Kafka at `now`.
    fn sent(core: &mut Core, now: Duration) -> Vec<Arc<Row>> {
        let mut sent = Vec::new();
        while let Some(command) = core.next(now) {
            if let Command::Send(due) = command {
                sent.push(due.row);
            }
        }
        sent
    }

    #[test]
    fn a_circuit_opens_probes_with_one_event_waits_longer_and_closes() {
        let at = Duration::from_millis;
        let mut core = Core::new(Limits::default(), &Numbers::new(), HashSet::new());
        let rows = (1..=3).map(|seq| row(seq, Uuid::from_u128(seq.unsigned_abs().into()))).collect();
        core.handle(at(0), Input::Rows { rows, cut: false });
        let refused = |event: &Arc<Row>| Input::Refused {
            event: Arc::clone(event),
            verdict: Verdict::Transient,
            detail: "away".to_owned(),
        };
        for event in sent(&mut core, at(0)) {
            core.handle(at(0), refused(&event));
        }
        assert_eq!(core.circuit_reason(), Some("away"));
        assert_eq!(sent(&mut core, at(99)), [], "it is open");
        let probe = sent(&mut core, at(100));
        assert_eq!(probe.len(), 1, "one event finds out");
        core.handle(at(100), refused(&probe[0]));
        assert_eq!(sent(&mut core, at(299)), [], "twice as long");
        let probe = sent(&mut core, at(300));
        assert_eq!(probe.len(), 1);
        core.handle(at(301), Input::Acknowledged(Arc::clone(&probe[0])));
        assert_eq!(core.circuit_reason(), None);
        assert_eq!(sent(&mut core, at(301)).len(), 2, "it is closed");
    }

    #[test]
    fn a_long_order_is_parked_in_portions_and_each_is_settled_where_it_is_parked() {
        let now = Duration::from_secs(1);
        let mut core = Core::new(Limits::default(), &Numbers::new(), HashSet::new());
        let rows = (1..=2_500).map(|seq| row(seq, Uuid::from_u128(1))).collect();
        core.handle(now, Input::Rows { rows, cut: false });
        for _ in 0..2 {
            for event in sent(&mut core, now) {
                let detail = "too large".to_owned();
                core.handle(now, Input::Refused { event, verdict: Verdict::Permanent, detail });
            }
        }
        let mut parked = Vec::new();
        let mut later = now;
        while parked.len() < 2_500 {
            later += Duration::from_secs(1);
            while let Some(command) = core.next(later) {
                let Command::Checkpoint(checkpoint) = command else { continue };
                assert!(checkpoint.parked.len() <= PARKED, "{}", checkpoint.parked.len());
                let seqs: Vec<i64> = checkpoint.parked.iter().map(|event| event.seq).collect();
                assert_eq!(joined(seqs.iter().map(|seq| *seq..=*seq).collect()), checkpoint.settled);
                parked.extend(seqs);
                core.handle(later, Input::Saved);
            }
        }
        assert!(parked.is_sorted() && parked.len() == 2_500);
    }

    #[test]
    fn while_reads_give_many_rows_the_next_one_waits_and_after_few_it_does_not() {
        let at = Duration::from_millis;
        let mut core = Core::new(Limits::default(), &Numbers::new(), HashSet::new());
        let mut seq = 0;
        let mut rows = |count| {
            let rows = (0..count).map(|_| {
                seq += 1;
                row(seq, Uuid::from_u128(seq.unsigned_abs().into()))
            });
            Input::Rows { rows: rows.collect(), cut: false }
        };
        let reads = |core: &mut Core, now| {
            std::iter::from_fn(|| core.next(now)).any(|command| matches!(command, Command::Read { .. }))
        };
        assert!(reads(&mut core, at(1)), "at the start");
        core.handle(at(2), rows(BUSY_ROWS - 1));
        assert!(!reads(&mut core, at(2)), "nobody rings");
        core.handle(at(2), Input::Bell);
        assert!(reads(&mut core, at(2)));
        core.handle(at(3), rows(BUSY_ROWS));
        core.handle(at(3), Input::Bell);
        assert!(!reads(&mut core, at(3)) && !reads(&mut core, at(5)));
        assert_eq!(core.wake_at(), Some(at(2) + PACE));
        assert!(reads(&mut core, at(2) + PACE));
    }

    #[test]
    fn a_producer_beyond_use_is_replaced_and_what_was_with_it_is_settled_by_nobody() {
        let now = Duration::from_secs(1);
        let mut core = Core::new(Limits::default(), &Numbers::new(), HashSet::new());
        let rows = (1..=3).map(|seq| row(seq, Uuid::from_u128(seq.unsigned_abs().into()))).collect();
        core.handle(now, Input::Rows { rows, cut: false });
        let mut sent = Vec::new();
        while let Some(command) = core.next(now) {
            if let Command::Send(due) = command {
                sent.push(due.row);
            }
        }
        assert_eq!(sent.len(), 3);
        core.handle(now, Input::Acknowledged(Arc::clone(&sent[0])));
        core.handle(now, Input::BeyondUse("fatal".to_owned()));
        let next = core.next(now);
        assert!(matches!(&next, Some(Command::Rebuild(words)) if words == "fatal"), "{next:?}");
        // Were there no new producer, nothing of what the old one had would be settled.
        let later = now + Duration::from_secs(60);
        while let Some(command) = core.next(later) {
            match command {
                Command::Checkpoint(checkpoint) => assert_eq!(checkpoint.settled, [1..=1]),
                Command::Send(due) => panic!("{due:?} while its order is with Kafka"),
                _ => {}
            }
        }
    }

    #[test]
    fn a_checkpoint_that_waited_for_the_database_does_not_put_off_the_next_one_for_long() {
        let mut core = Core::new(Limits::default(), &Numbers::new(), HashSet::new());
        let second = Duration::from_secs;
        let event = |seq| Input::Rows { rows: vec![row(seq, Uuid::from_u128(1))], cut: false };
        assert!(!checkpoint(&mut core, second(1)), "nothing is settled");
        core.handle(second(1), event(1));
        assert!(checkpoint(&mut core, second(1)));
        // A minute's outage.
        core.handle(second(61), Input::Saved);
        assert!(!checkpoint(&mut core, second(61)));
        core.handle(second(61), event(2));
        assert!(!checkpoint(&mut core, second(61)), "a slow database is not pressed");
        assert!(checkpoint(&mut core, second(64)));
    }
}
