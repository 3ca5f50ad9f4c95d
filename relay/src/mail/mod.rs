//! The `mail` stage: leases due notifications, sends them by SMTP and records what became of them.
//!
//! One task per connection sends ([`sender`]); one leases and records ([`desk`]), so that a mail that
//! takes its time holds up its own connection and nothing else. A notification whose lease ran out
//! while `sending` is `unknown`: the server may or may not have taken it. It is sent again with the
//! same Message-ID, or held. `docs/mail.md` has the picture.

mod desk;
mod eraser;
mod message;
mod outcome;
mod sender;
mod smtp;
mod state;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lettre::message::Mailbox;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
pub(crate) use self::message::Unsubscribe;
pub(crate) use self::outcome::{Attempt, Outcome};
use self::sender::Sender;
pub(crate) use self::smtp::{InvalidServer, Reachable, Server as SmtpServer};
pub(crate) use self::state::State;
use crate::bell::{self, Bell};
pub(crate) use crate::config::OnUnknown;
use crate::health::StageHealth;
use crate::metrics::MailMetrics;
use crate::traces::Traces;

/// After a stop, for so long an answer to a message that was handed over is waited for, and for so long
/// what became of it is kept for a database that is away.
const STOP_TIME: Duration = Duration::from_secs(8);

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

/// What goes into every mail.
#[derive(Debug)]
pub(crate) struct Letterhead {
    /// Sender.
    pub from: Mailbox,
    /// `List-Unsubscribe`, if there is one.
    pub unsubscribe: Option<Unsubscribe>,
}

/// The stage.
#[derive(Debug)]
pub(crate) struct Mailer {
    /// Its connections.
    pub pool: PgPool,
    /// The mail server.
    pub server: SmtpServer,
    /// What goes into every mail.
    pub letterhead: Letterhead,
    /// Mails sent at the same time, each on its own connection.
    pub connections: usize,
    /// Mails per second of this process; no limit when left out.
    pub rate: Option<NonZeroU32>,
    /// The name under which it leases.
    pub holder: String,
    /// What to do with unknown outcomes.
    pub on_unknown: OnUnknown,
    /// For how long addresses are kept after the mail is done with.
    pub keep_addresses: Duration,
    /// Where it says how it is.
    pub health: StageHealth,
    /// What it counts.
    pub metrics: MailMetrics,
    /// The spans of its e-mails.
    pub traces: Traces,
}

impl Mailer {
    /// Sends mail until shutdown. What is under way then is finished, the rest is given back, so a stop
    /// leaves no `unknown` as long as the server answers within [`STOP_TIME`].
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let bell = Bell::new(bell::MAIL);
        let (hand_out, mails) = async_channel::unbounded();
        let (report, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let letterhead = Arc::new(self.letterhead);
        // A burst of one: a limit per second is a limit in every second.
        let rate = self.rate.map(|rate| {
            let quota = Quota::per_second(rate).allow_burst(NonZeroU32::MIN);
            Arc::new(RateLimiter::direct(quota)) as Arc<DefaultDirectRateLimiter>
        });
        let mut senders = JoinSet::new();
        for _ in 0..self.connections {
            let sender = Sender::new(
                self.server.clone(),
                Arc::clone(&letterhead),
                rate.clone(),
                mails.clone(),
                report.clone(),
                self.traces.clone(),
                shutdown.clone(),
            );
            senders.spawn(sender.run());
        }
        drop(report);
        let desk = Desk::new(
            self.pool.clone(),
            self.holder,
            self.on_unknown,
            self.connections,
            self.health,
            self.metrics,
        );
        tokio::select! {
            () = bell.listen(self.pool.clone()) => {}
            () = eraser::run(&self.pool, self.keep_addresses) => {}
            () = desk.run(&bell, hand_out, mails, outcomes, &shutdown) => {}
        }
        // The desk has ended, so nothing is handed out any more: they say goodbye to the server.
        senders.join_all().await;
    }
}

/// The part of `docs/mail.md` from `start` up to `end`.
#[cfg(test)]
fn documented(start: &str, end: &str) -> String {
    let page = include_str!("../../../docs/mail.md");
    let from = page.find(start).unwrap_or_else(|| panic!("docs/mail.md has no {start:?}"));
    let rest = &page[from..];
    let length = rest[start.len()..].find(end).expect("its end") + start.len();
    rest[..length].to_owned()
}
