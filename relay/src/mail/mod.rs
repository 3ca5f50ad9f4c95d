//! The `mail` stage: leases due notifications and sends them by SMTP.
//!
//! `pending → sending → sent | pending (transient, backoff) | failed (permanent) | unknown`.
//! A notification whose lease ran out while `sending` is `unknown`: the server may or may not have
//! taken it. It is sent again with the same Message-ID, or held.

mod message;
mod smtp;

use std::fmt;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream;
use lettre::message::Mailbox;
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::smtp::{Reachable, Smtp};
use crate::backoff::Backoff;
use crate::bell::{self, Bell};
use crate::config::OnUnknown;
use crate::db::notifications::{self, Leased};
use crate::health::StageHealth;
use crate::metrics::MailMetrics;
use crate::traces::Traces;

/// Notifications leased at a time.
const LEASE: i64 = 64;
/// Mails sent at the same time.
const CONNECTIONS: usize = 8;
/// When this long nobody has renewed the lease of a mail that is being sent, its outcome counts as
/// unknown. It is renewed all the time that the sending takes.
const LEASE_TIME: Duration = Duration::from_secs(15);
/// How long an outcome is kept for a database that is away.
const RECORD_TIME: Duration = Duration::from_secs(60);
/// How often to look while the bell can be heard: for what is tried again later, and waits anyway.
const POLL: Duration = Duration::from_secs(10);
/// How often to look while no bell can be heard.
const POLL_WITHOUT_BELL: Duration = Duration::from_secs(1);

/// What an e-mail is about; with order and version it is the dedup key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The order was accepted.
    Confirmation,
    /// The order was cancelled.
    Cancellation,
}

impl Kind {
    /// The word in the database and in the Message-ID.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Confirmation => "confirmation",
            Self::Cancellation => "cancellation",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of one attempt to send.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The server has taken it.
    Sent,
    /// The server refused it for now.
    Deferred(String),
    /// The server refused it for good, or it cannot be sent at all.
    Failed(String),
    /// The server is away. That is no attempt.
    Away(String),
    /// Shutdown came first.
    NotTried,
}

/// What one pass did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Notifications that were leased.
    pub leased: usize,
    /// Notifications that are sent now.
    pub sent: usize,
    /// Why the server is away, if it is.
    pub outage: Option<String>,
}

/// The stage.
#[derive(Debug)]
pub(crate) struct Mailer {
    /// Its connections.
    pub pool: PgPool,
    /// The mail server.
    pub smtp: Smtp,
    /// Sender.
    pub from: Mailbox,
    /// The name under which it leases.
    pub holder: String,
    /// What to do with unknown outcomes.
    pub on_unknown: OnUnknown,
    /// Where it says how it is.
    pub health: StageHealth,
    /// What it counts.
    pub metrics: MailMetrics,
    /// The spans of its e-mails.
    pub traces: Traces,
}

impl Mailer {
    /// Sends mail until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let bell = Bell::new(bell::MAIL);
        tokio::select! {
            () = bell.listen(self.pool.clone()) => {}
            () = self.passes(&bell, &shutdown) => {}
        }
    }

    async fn passes(&self, bell: &Bell, shutdown: &CancellationToken) {
        let mut backoff = Backoff::for_outage();
        let mut limit = LEASE;
        while !shutdown.is_cancelled() {
            let poll = if bell.is_connected() { POLL } else { POLL_WITHOUT_BELL };
            let wait = match self.run_once(limit, shutdown).await {
                Ok(Pass { outage: Some(reason), .. }) => {
                    self.health.trouble(format!("SMTP: {reason}"));
                    // One mail finds out whether the server is back.
                    limit = 1;
                    Some(backoff.next_wait())
                }
                Ok(Pass { leased, .. }) => {
                    self.health.well("sending mail");
                    backoff.reset();
                    limit = LEASE;
                    (leased == 0).then_some(poll)
                }
                Err(error) => {
                    self.health.trouble(format!("PostgreSQL: {error}"));
                    Some(backoff.next_wait())
                }
            };
            if let Some(wait) = wait {
                tokio::select! {
                    () = bell.heard(), if limit > 1 => {}
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
    }

    /// Leases up to `limit` due notifications, sends them and records each outcome. A stop lets
    /// those under way end and gives the others back, so it leaves no `unknown`.
    ///
    /// # Errors
    /// Whatever the database says. A mail that was sent and could not be recorded becomes `unknown`.
    pub(crate) async fn run_once(
        &self,
        limit: i64,
        shutdown: &CancellationToken,
    ) -> Result<Pass, sqlx::Error> {
        self.metrics.became_unknown(notifications::expire_leases(&self.pool).await?);
        let resend_unknown = self.on_unknown == OnUnknown::Resend;
        let leased =
            notifications::lease(&self.pool, &self.holder, LEASE_TIME, limit, resend_unknown).await?;
        let mut pass = Pass { leased: leased.len(), ..Pass::default() };
        let away = &CancellationToken::new();
        let mut attempts = stream::iter(leased)
            .map(|mail| async move {
                let attempt = if shutdown.is_cancelled() || away.is_cancelled() {
                    Attempt::NotTried
                } else {
                    let began = SystemTime::now();
                    let attempt = self.send(&mail).await;
                    self.metrics.attempted(&attempt);
                    self.traces.mailed(&mail, &attempt, began);
                    attempt
                };
                if matches!(attempt, Attempt::Away(_)) {
                    away.cancel();
                }
                (self.record(&mail, &attempt).await, attempt)
            })
            .buffer_unordered(CONNECTIONS);
        let mut recorded = Ok(());
        let mut renew = tokio::time::interval_at(Instant::now() + LEASE_TIME / 3, LEASE_TIME / 3);
        loop {
            let (result, attempt) = tokio::select! {
                next = attempts.next() => match next {
                    Some(next) => next,
                    None => break,
                },
                _ = renew.tick() => {
                    // Not renewed, a mail may go twice, with the same Message-ID.
                    if let Err(error) = notifications::renew(&self.pool, &self.holder, LEASE_TIME).await {
                        tracing::warn!(%error, "the leases of the mails under way could not be renewed");
                    }
                    continue;
                }
            };
            // The others are under way: they are recorded all the same.
            recorded = recorded.and(result);
            match attempt {
                Attempt::Sent => pass.sent += 1,
                Attempt::Away(reason) => pass.outage = Some(reason),
                Attempt::Deferred(_) | Attempt::Failed(_) | Attempt::NotTried => {}
            }
        }
        recorded.map(|()| pass)
    }

    /// Records an outcome, also through a short absence of the database: a mail that was sent and
    /// cannot be recorded is sent again.
    async fn record(&self, mail: &Leased, attempt: &Attempt) -> Result<(), sqlx::Error> {
        let mut backoff = Backoff::for_outage();
        let give_up = Instant::now() + RECORD_TIME;
        loop {
            match notifications::record(&self.pool, &self.holder, mail, attempt).await {
                Err(error) if Instant::now() < give_up => {
                    self.health.trouble(format!("PostgreSQL: {error}"));
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                done => return done,
            }
        }
    }

    async fn send(&self, mail: &Leased) -> Attempt {
        match message::build(&self.from, mail) {
            Ok(message) => self.smtp.send(message).await,
            Err(error) => Attempt::Failed(error.to_string()),
        }
    }
}
