//! The desk: leases mails, hands them to the senders, records what became of them, and decides what an
//! outage of the server means: the circuit. The only task of the stage that speaks with the database.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::outcome::{Outcome, Server};
use super::{OnUnknown, STOP_TIME, State};
use crate::backoff::Backoff;
use crate::bell::Bell;
use crate::db::notifications::{self, Leased};
use crate::health::StageHealth;
use crate::metrics::MailMetrics;

/// Mails leased for each connection: enough that none waits for the database.
const AHEAD: usize = 8;
/// When this long nobody has renewed the lease of a mail that is being sent, its outcome counts as
/// unknown. It is renewed all the time that the sending takes.
const LEASE_TIME: Duration = Duration::from_secs(15);
/// How often to look while the bell can be heard: for what is tried again later, and waits anyway.
const POLL: Duration = Duration::from_secs(10);
/// How often to look while no bell can be heard.
const POLL_WITHOUT_BELL: Duration = Duration::from_secs(1);

/// Whether the server is there.
enum Circuit {
    /// It is.
    Closed,
    /// It is away: one mail at a time finds out whether it is back, the next not before `probe_at`.
    Open { probe_at: Instant, probe: Option<Uuid> },
}

/// The desk.
pub(super) struct Desk {
    pool: PgPool,
    holder: String,
    on_unknown: OnUnknown,
    health: StageHealth,
    metrics: MailMetrics,
    /// The most mails that are leased at a time.
    capacity: usize,
    /// More are leased when no more than so many are out.
    low: usize,
    /// What we have leased: with the senders, waiting for them, or `unrecorded`.
    held: HashSet<Uuid>,
    /// When the database last failed us. A statement of ours may have been carried out all the same, and others
    /// may not have been able to renew their leases.
    failed: Option<Instant>,
    /// There may be due mails.
    due: bool,
    unrecorded: Vec<Outcome>,
    circuit: Circuit,
    backoff: Backoff,
}

impl Desk {
    pub(super) fn new(
        pool: PgPool,
        holder: String,
        on_unknown: OnUnknown,
        connections: usize,
        health: StageHealth,
        metrics: MailMetrics,
    ) -> Self {
        let (capacity, low) = match on_unknown {
            // Half of it at a time: a statement for each mail that has gone would cost more than it sends.
            OnUnknown::Resend => (connections * AHEAD, connections * AHEAD / 2),
            // Whatever we hold when we are killed is left to the operator: only what a connection is there for.
            OnUnknown::Hold => (connections, connections - 1),
        };
        Self {
            pool,
            holder,
            on_unknown,
            health,
            metrics,
            capacity,
            low,
            held: HashSet::new(),
            failed: None,
            due: true,
            unrecorded: Vec::new(),
            circuit: Circuit::Closed,
            backoff: Backoff::for_outage(),
        }
    }

    /// Works until shutdown, and then until every mail that was out is recorded. `mails` is the senders' end
    /// of `hand_out`: what they have not taken yet is taken back from there.
    pub(super) async fn run(
        mut self,
        bell: &Bell,
        hand_out: async_channel::Sender<Leased>,
        mails: async_channel::Receiver<Leased>,
        mut outcomes: UnboundedReceiver<Outcome>,
        shutdown: &CancellationToken,
    ) {
        let mut renew = tokio::time::interval(LEASE_TIME / 3);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let mut stopping: Option<Instant> = None;
        loop {
            if shutdown.is_cancelled() && stopping.is_none() {
                stopping = Some(Instant::now());
                self.take_back(&mails);
            }
            self.record().await;
            match stopping {
                None => self.lease(&hand_out).await,
                Some(_) if self.held.is_empty() => return,
                Some(since) if self.out() == 0 && since.elapsed() > STOP_TIME => {
                    tracing::warn!(
                        mails = self.unrecorded.len(),
                        "what became of mails could not be recorded"
                    );
                    return;
                }
                Some(_) => {}
            }
            let probe_at = match self.circuit {
                Circuit::Open { probe_at, probe: None } if self.due && stopping.is_none() => Some(probe_at),
                Circuit::Open { .. } | Circuit::Closed => None,
            };
            let poll = if bell.is_connected() { POLL } else { POLL_WITHOUT_BELL };
            let look_at = looked.map_or_else(Instant::now, |looked| looked + poll);
            tokio::select! {
                Some(outcome) = outcomes.recv() => {
                    self.take(outcome, &mails);
                    // What has come in meanwhile shares the statement.
                    while let Ok(outcome) = outcomes.try_recv() {
                        self.take(outcome, &mails);
                    }
                }
                () = bell.heard() => self.due = true,
                () = tokio::time::sleep_until(look_at) => {
                    looked = Some(Instant::now());
                    self.due = true;
                    self.settle().await;
                }
                _ = renew.tick() => {
                    // Not renewed, a mail may go twice, with the same Message-ID.
                    let renewed = notifications::renew(&self.pool, &self.holder, LEASE_TIME).await;
                    self.tried(renewed);
                }
                () = tokio::time::sleep_until(probe_at.unwrap_or_else(Instant::now)), if probe_at.is_some() => {}
                () = shutdown.cancelled(), if stopping.is_none() => {}
            }
        }
    }

    /// Mails with the senders or waiting for them.
    fn out(&self) -> usize {
        self.held.len().saturating_sub(self.unrecorded.len())
    }

    /// Settles what is leased and nobody holds.
    async fn settle(&mut self) {
        if let Some(failed) = self.failed {
            let held: Vec<Uuid> = self.held.iter().copied().collect();
            let given_back = notifications::give_back(&self.pool, &self.holder, &held).await;
            if self.tried(given_back).is_none() || failed.elapsed() < LEASE_TIME {
                return;
            }
            self.failed = None;
        }
        let expired = notifications::expire_leases(&self.pool, &self.holder).await;
        if let Some(expired) = self.tried(expired) {
            self.metrics.became_unknown(expired);
        }
    }

    /// Leases as many mails as the senders can use.
    async fn lease(&mut self, hand_out: &async_channel::Sender<Leased>) {
        let limit = match self.circuit {
            Circuit::Closed if self.out() <= self.low => self.capacity - self.out(),
            Circuit::Open { probe_at, probe: None } if probe_at <= Instant::now() => 1,
            Circuit::Closed | Circuit::Open { .. } => 0,
        };
        // What is not recorded would be leased again, were its lease to run out.
        if !self.due || limit == 0 || !self.unrecorded.is_empty() {
            return;
        }
        let (pool, holder) = (&self.pool, &self.holder);
        let asked = i64::try_from(limit).unwrap_or(i64::MAX);
        let leased = notifications::lease(pool, holder, LEASE_TIME, asked, self.on_unknown).await;
        let Some(leased) = self.tried(leased) else {
            // Asked again at the next look.
            self.due = false;
            return;
        };
        self.due = leased.len() == limit;
        self.held.extend(leased.iter().map(|mail| mail.notification_id));
        match &mut self.circuit {
            Circuit::Closed => self.health.well("sending mail"),
            Circuit::Open { probe, .. } => *probe = leased.first().map(|mail| mail.notification_id),
        }
        for mail in leased {
            // Unbounded, and closed only when every sender has panicked: the lease runs out then.
            let _ = hand_out.try_send(mail);
        }
    }

    /// Takes an outcome in, and what it tells about the server.
    fn take(&mut self, outcome: Outcome, mails: &async_channel::Receiver<Leased>) {
        self.metrics.attempted(&outcome);
        let is_probe = match self.circuit {
            Circuit::Open { probe, .. } => probe == Some(outcome.notification_id),
            Circuit::Closed => false,
        };
        match &outcome.server {
            Server::Away(reason) => {
                self.health.trouble(format!("SMTP: {reason}"));
                // Those that found out together wait together, once.
                if is_probe || matches!(self.circuit, Circuit::Closed) {
                    let probe_at = Instant::now() + self.backoff.next_wait();
                    self.circuit = Circuit::Open { probe_at, probe: None };
                    // Only now: later it is the probe that waits for a sender, and taken back it would end nothing.
                    self.take_back(mails);
                }
            }
            Server::Answered if is_probe => {
                self.circuit = Circuit::Closed;
                self.backoff.reset();
                self.due = true;
            }
            Server::NotAsked if is_probe => {
                self.circuit = Circuit::Open { probe_at: Instant::now(), probe: None };
            }
            Server::Answered | Server::NotAsked => {}
        }
        self.metrics.circuit_open.set(i64::from(matches!(self.circuit, Circuit::Open { .. })));
        self.unrecorded.push(outcome);
    }

    /// What waits for a sender goes back, untried.
    fn take_back(&mut self, mails: &async_channel::Receiver<Leased>) {
        self.due = true;
        while let Ok(mail) = mails.try_recv() {
            self.unrecorded.push(Outcome::not_tried(&mail));
        }
    }

    /// Records everything that has come in. What cannot be recorded now is kept: a mail that was sent and is
    /// not recorded is sent again.
    async fn record(&mut self) {
        if self.unrecorded.is_empty() {
            return;
        }
        fail::fail_point!("mail recording");
        let (pool, holder) = (&self.pool, &self.holder);
        let recorded = notifications::record(pool, holder, &self.unrecorded, self.on_unknown).await;
        let Some(recorded) = self.tried(recorded) else { return };
        fail::fail_point!("mail recorded");
        if recorded.len() < self.unrecorded.len() {
            let lost = self.unrecorded.len() - recorded.len();
            tracing::warn!(
                lost,
                "outcomes were recorded before, or their leases had run out: those mails may go twice"
            );
        }
        for outcome in self.unrecorded.drain(..) {
            self.held.remove(&outcome.notification_id);
        }
        for mail in recorded {
            let (id, words) = (mail.notification_id, mail.last_error.unwrap_or_default());
            match mail.state {
                State::Failed => tracing::warn!(mail.id = %id, "an e-mail has failed: {words}"),
                State::Unknown => {
                    tracing::warn!(mail.id = %id, "an e-mail may have been taken or not: {words}")
                }
                State::Pending | State::Sending | State::Sent => {}
            }
        }
    }

    /// Says how the database is.
    fn tried<T>(&mut self, result: Result<T, sqlx::Error>) -> Option<T> {
        let failed = |error| {
            self.failed = Some(Instant::now());
            self.health.trouble(format!("PostgreSQL: {error}"));
        };
        result.map_err(failed).ok()
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::config::Stage;
    use crate::health::Health;
    use crate::mail::Attempt;
    use crate::metrics::{Asks, Metrics};

    fn desk() -> Desk {
        let pool = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a pool");
        let asks = Asks { sink: "kafka".to_owned(), is_foreign: false, holder: String::new() };
        let metrics = Metrics::new(&[Stage::Mail], pool.clone(), asks).expect("metrics").mail;
        Desk::new(pool, String::new(), OnUnknown::Resend, 8, Health::default().stage("mail"), metrics)
    }

    fn mail() -> Leased {
        Leased {
            notification_id: Uuid::now_v7(),
            kind: "confirmation".to_owned(),
            recipient: "ada@example.com".to_owned(),
            message_id: String::new(),
            data: String::new(),
            attempts: 0,
            created_at: chrono::Utc::now(),
            traceparent: None,
        }
    }

    #[tokio::test]
    async fn those_that_find_out_late_that_the_server_is_away_take_no_probe_back() {
        let (hand_out, mails) = async_channel::unbounded();
        let mut desk = desk();
        let away = || Outcome::new(&mail(), Attempt::NotTried, Server::Away("gone".to_owned()));
        hand_out.try_send(mail()).expect("leased ahead");
        desk.take(away(), &mails);
        assert!(mails.is_empty(), "what was leased ahead goes back");

        let probe = mail();
        desk.circuit = Circuit::Open { probe_at: Instant::now(), probe: Some(probe.notification_id) };
        hand_out.try_send(probe).expect("handed out");
        desk.take(away(), &mails);
        assert_eq!(
            mails.len(),
            1,
            "the probe waits for a sender, and nothing else finds out that the server is back"
        );
    }
}
