//! What became of one attempt to send a mail, before it is recorded.

use std::time::Duration;

use uuid::Uuid;

use super::State;
use crate::db::notifications::Leased;

/// What became of the mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The server has taken it.
    Sent,
    /// The server refused it for now.
    Deferred(String),
    /// The server refused it for good, or no message can be made of it.
    Failed(String),
    /// It was handed over whole, and no answer came.
    Unknown(String),
    /// The server went away in the middle of it: an outage, but perhaps of this mail's making.
    PutBack(String),
    /// Nothing was sent: the server is away, or shutdown came first.
    NotTried,
}

/// What the attempt tells about the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// Nothing.
    NotAsked,
    /// It is there.
    Answered,
    /// It is away, or refuses everything; why.
    Away(String),
}

/// One attempt, ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The mail.
    pub notification_id: Uuid,
    /// Attempts that were refused before this one.
    pub attempts: i32,
    /// What became of it.
    pub attempt: Attempt,
    /// What it tells about the server.
    pub server: Server,
}

impl Attempt {
    /// What the mail is now.
    #[must_use]
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Sent => State::Sent,
            Self::Failed(_) => State::Failed,
            Self::Unknown(_) => State::Unknown,
            Self::Deferred(_) | Self::PutBack(_) | Self::NotTried => State::Pending,
        }
    }

    /// The server's words, or what stood in for them.
    #[must_use]
    pub(crate) fn words(&self) -> Option<&str> {
        match self {
            Self::Deferred(words) | Self::Failed(words) | Self::Unknown(words) | Self::PutBack(words) => {
                Some(words)
            }
            Self::Sent | Self::NotTried => None,
        }
    }
}

impl Outcome {
    /// The outcome of an attempt at `mail`. The words are kept without the recipient's address, which the
    /// servers like to repeat: they are shown to operators, and outlive the address.
    #[must_use]
    pub(super) fn new(mail: &Leased, attempt: Attempt, server: Server) -> Self {
        let clean = |words: String| without(&words, &mail.recipient);
        let attempt = match attempt {
            Attempt::Deferred(words) => Attempt::Deferred(clean(words)),
            Attempt::Failed(words) => Attempt::Failed(clean(words)),
            Attempt::Unknown(words) => Attempt::Unknown(clean(words)),
            Attempt::PutBack(words) => Attempt::PutBack(clean(words)),
            Attempt::Sent | Attempt::NotTried => attempt,
        };
        Self { notification_id: mail.notification_id, attempts: mail.attempts, attempt, server }
    }

    /// The mail goes back untried.
    #[must_use]
    pub(super) fn not_tried(mail: &Leased) -> Self {
        Self::new(mail, Attempt::NotTried, Server::NotAsked)
    }

    /// What the attempt came to, for those who count; `None` when the server was not asked.
    #[must_use]
    pub(crate) fn word(&self) -> Option<&'static str> {
        match (&self.attempt, &self.server) {
            (Attempt::Sent, _) => Some("sent"),
            (Attempt::Deferred(_), _) => Some("deferred"),
            (Attempt::Failed(_), _) => Some("failed"),
            (Attempt::Unknown(_), _) => Some("unknown"),
            (Attempt::PutBack(_), _) | (Attempt::NotTried, Server::Away(_)) => Some("away"),
            (Attempt::NotTried, Server::NotAsked | Server::Answered) => None,
        }
    }

    /// Whether it counts against the mail. An outage spends nothing; but what may have been taken counts whatever
    /// the server does next, or a mail at which it dies would be delivered whenever it comes back.
    #[must_use]
    pub(crate) fn spends_an_attempt(&self) -> bool {
        match self.attempt {
            Attempt::Deferred(_) | Attempt::Failed(_) | Attempt::Unknown(_) => true,
            Attempt::Sent | Attempt::PutBack(_) | Attempt::NotTried => false,
        }
    }

    /// Before the next attempt, at least; `None` leaves the mail where it stands in the queue.
    #[must_use]
    pub(crate) fn wait(&self) -> Option<Duration> {
        match self.attempt {
            Attempt::Deferred(_) | Attempt::Failed(_) | Attempt::Unknown(_) => {
                Some(retry_after(self.attempts))
            }
            // Behind the others: whatever the server dies of is not what it is probed with.
            Attempt::PutBack(_) => Some(retry_after(0)),
            Attempt::Sent | Attempt::NotTried => None,
        }
    }
}

/// 30 s, doubling up to an hour, each shortened by up to half so that a crowd does not come back as one.
fn retry_after(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 7)).unwrap_or(0);
    let whole = Duration::from_secs(30 * 2_u64.pow(doublings)).min(Duration::from_secs(3600));
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// `words` on one line, at most 1,000 characters, with every occurrence of `address` taken out.
fn without(words: &str, address: &str) -> String {
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1_000).collect();
    // ASCII: lower case moves no byte, so positions in one are positions in the other.
    let (lower, address) = (line.to_ascii_lowercase(), address.to_ascii_lowercase());
    let mut clean = String::with_capacity(line.len());
    let mut rest = 0;
    for (start, found) in lower.match_indices(&address) {
        clean.push_str(&line[rest..start]);
        clean.push('…');
        rest = start + found.len();
    }
    clean.push_str(&line[rest..]);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_a_refusal_doubles_from_half_a_minute_up_to_an_hour_and_spreads_a_crowd() {
        let wholes = [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600];
        for (attempts, whole) in (0..).zip(wholes).chain([(i32::MAX, 3_600), (-1, 30)]) {
            let whole = Duration::from_secs(whole);
            let waits: Vec<Duration> = (0..200).map(|_| retry_after(attempts)).collect();
            assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "{attempts}: {waits:?}");
            let (least, most) = (waits.iter().min().expect("waits"), waits.iter().max().expect("waits"));
            assert!(*most - *least > whole / 4, "{attempts}: a crowd is spread");
        }
    }

    #[test]
    fn the_servers_words_are_kept_without_the_address() {
        let words = "550 5.1.1 <Ada@Example.com>: no mailbox\r\nada@example.com, ädä";
        assert_eq!(without(words, "ada@example.com"), "550 5.1.1 <…>: no mailbox  …, ädä");
    }
}
