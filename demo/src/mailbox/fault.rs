//! What a mailbox asks for, and what it does wrong. For tests of whoever sends mail.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_rustls::rustls::ServerConfig;

/// What a mailbox asks of its clients.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Encryption, if it offers any.
    pub tls: Option<Tls>,
    /// Who may send; everybody when left out.
    pub login: Option<Login>,
}

/// Encryption.
#[derive(Clone)]
pub enum Tls {
    /// From the first byte.
    Implicit(Arc<ServerConfig>),
    /// Offered by STARTTLS.
    StartTls(Arc<ServerConfig>),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Implicit(_) => "Implicit",
            Self::StartTls(_) => "StartTls",
        })
    }
}

/// Who may send, and how they say so.
#[derive(Clone, Debug)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// AUTH PLAIN is offered, beside AUTH LOGIN.
    pub plain: bool,
}

/// A step of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The TLS handshake, at the first byte or after STARTTLS.
    Tls,
    /// The greeting.
    Greeting,
    /// EHLO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Login,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA.
    Data,
    /// The final dot of the message.
    Message,
}

/// What a mailbox does in a step instead of answering as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Answers with this code, and does not do what it was asked for. After 421 it hangs up.
    Reply(u16),
    /// Says nothing more. A message is kept.
    Silence,
    /// Hangs up. A message is kept.
    Close,
    /// Closes its port and every connection, and is back a second later. A message is kept.
    Die,
    /// Answers as it should, after so long. A message is kept at once.
    Late(Duration),
}

/// What a mailbox does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This, in this step.
    At(Step, Wrong),
    /// Answers DATA with 354 and says nothing more.
    SilentAfterData,
    /// Answers DATA with 354 and closes.
    ClosesAfterData,
    /// Reads one byte of the message a second.
    OneByteASecond,
    /// Writes this behind its answer to STARTTLS, unencrypted, as somebody between the two would.
    Injects(&'static str),
}

impl Fault {
    /// What it does in `step`.
    pub(super) fn at(self, step: Step) -> Option<Wrong> {
        match self {
            Self::At(at, wrong) if at == step => Some(wrong),
            _ => None,
        }
    }
}

/// The faults of a mailbox, which may change while it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Now>>);

#[derive(Debug, Default)]
struct Now {
    everybody: Option<Fault>,
    recipients: HashMap<String, Fault>,
}

impl Faults {
    pub(super) fn set(&self, recipient: &str, fault: Option<Fault>) {
        let recipients = &mut self.lock().recipients;
        match fault {
            Some(fault) => recipients.insert(recipient.to_owned(), fault),
            None => recipients.remove(recipient),
        };
    }

    pub(super) fn set_for_everybody(&self, fault: Option<Fault>) {
        self.lock().everybody = fault;
    }

    /// What is done to everybody.
    pub(super) fn of_everybody(&self) -> Option<Fault> {
        self.lock().everybody
    }

    pub(super) fn of(&self, recipient: &str) -> Option<Fault> {
        self.lock().recipients.get(recipient).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
