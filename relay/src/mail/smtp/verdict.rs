//! What an answer of the mail server means. The table in `docs/mail.md` says the same.

use std::fmt;

/// A step of the conversation, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The TCP connection.
    Connect,
    /// The TLS handshake of `smtps://`.
    Tls,
    /// The server's greeting, and EHLO.
    Greeting,
    /// STARTTLS, its handshake, and EHLO again.
    StartTls,
    /// AUTH.
    Login,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA, up to 354.
    Data,
    /// The message, its final dot, and the answer to it.
    Message,
}

/// What went wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Answered with 4xx.
    Transient,
    /// Answered with 421: the server closes the connection (RFC 5321, 3.8).
    Closing,
    /// Answered with 5xx.
    Permanent,
    /// The connection broke, nothing came in time, or what came is no SMTP.
    Broken,
}

impl Trouble {
    /// What a reply with this code is, that says no.
    pub(super) fn of(code: u16) -> Self {
        match code {
            421 => Self::Closing,
            400..=499 => Self::Transient,
            _ => Self::Permanent,
        }
    }
}

/// What it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server is away, or refuses whatever is sent: no matter of this mail.
    Outage,
    /// This mail is to be tried again later.
    Deferred,
    /// One of the two: a new connection tells whether the server has gone or cannot stand this mail.
    Doubtful,
    /// This mail is refused for good.
    Failed,
    /// The server may have taken this mail.
    Unknown,
}

/// The one place that decides what a failure means. Up to MAIL FROM nothing has been said that differs
/// from mail to mail, so it is the server that is in trouble; from RCPT TO on it is the mail.
#[must_use]
pub(crate) fn judge(step: Step, trouble: Trouble) -> Verdict {
    use Step::{Connect, Data, Greeting, Login, Message, Recipient, Sender, StartTls, Tls};
    use Trouble::{Broken, Closing, Permanent, Transient};
    match (step, trouble) {
        (Connect | Tls | Greeting | StartTls | Login | Sender, Transient | Closing | Permanent | Broken) => {
            Verdict::Outage
        }
        (Recipient | Data | Message, Transient) => Verdict::Deferred,
        (Recipient | Data | Message, Closing) | (Recipient | Data, Broken) => Verdict::Doubtful,
        (Recipient | Data | Message, Permanent) => Verdict::Failed,
        // The final dot may have been read.
        (Message, Broken) => Verdict::Unknown,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Tls => "TLS",
            Self::Greeting => "greeting, EHLO",
            Self::StartTls => "STARTTLS",
            Self::Login => "AUTH",
            Self::Sender => "MAIL FROM",
            Self::Recipient => "RCPT TO",
            Self::Data => "DATA",
            Self::Message => "message",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::documented;

    #[test]
    fn the_table_in_the_documentation_says_what_the_code_does() {
        let steps = [
            Step::Connect,
            Step::Tls,
            Step::Greeting,
            Step::StartTls,
            Step::Login,
            Step::Sender,
            Step::Recipient,
            Step::Data,
            Step::Message,
        ];
        let word = |step, trouble| match judge(step, trouble) {
            // Nothing is answered there.
            _ if matches!(step, Step::Connect | Step::Tls) && trouble != Trouble::Broken => "–",
            Verdict::Outage => "outage",
            Verdict::Deferred => "`pending`",
            Verdict::Doubtful => "`pending` or outage",
            Verdict::Failed => "`failed`",
            Verdict::Unknown => "`unknown`",
        };
        let code: Vec<String> = steps
            .into_iter()
            .map(|step| {
                let troubles = [Trouble::Transient, Trouble::Closing, Trouble::Permanent, Trouble::Broken];
                let [transient, closing, permanent, broken] = troubles.map(|trouble| word(step, trouble));
                format!("| {step} | {transient} | {closing} | {permanent} | {broken} |")
            })
            .collect();
        let table = documented("| step | 4xx | 421 | 5xx | broken or silent |", "\n\n");
        let table: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(table, code);
    }
}
