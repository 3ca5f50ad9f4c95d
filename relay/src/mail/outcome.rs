//! What became of one attempt to send a mail, before it is recorded.

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
            Self::Deferred(_) | Self::NotTried => State::Pending,
        }
    }

    /// The server's words, or what stood in for them.
    #[must_use]
    pub(crate) fn words(&self) -> Option<&str> {
        match self {
            Self::Deferred(words) | Self::Failed(words) | Self::Unknown(words) => Some(words),
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
            (Attempt::NotTried, Server::Away(_)) => Some("away"),
            (Attempt::NotTried, Server::NotAsked | Server::Answered) => None,
        }
    }

    /// Whether it counts against the mail. An outage spends nothing.
    #[must_use]
    pub(crate) fn spends_an_attempt(&self) -> bool {
        let refused = match self.attempt {
            Attempt::Deferred(_) | Attempt::Failed(_) | Attempt::Unknown(_) => true,
            Attempt::Sent | Attempt::NotTried => false,
        };
        refused && !matches!(self.server, Server::Away(_))
    }
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
    fn the_servers_words_are_kept_without_the_address() {
        let words = "550 5.1.1 <Ada@Example.com>: no mailbox\r\nada@example.com, ädä";
        assert_eq!(without(words, "ada@example.com"), "550 5.1.1 <…>: no mailbox  …, ädä");
    }
}
