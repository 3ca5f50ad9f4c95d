//! What a mailbox asks for, and what it does wrong. For tests of whoever sends mail.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// What a mailbox does to a recipient's mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers RCPT TO with this code.
    Recipient(u16),
    /// Answers the whole message with this code, and does not keep it.
    Message(u16),
    /// Answers DATA with 354 and says nothing more.
    SilentAfterData,
    /// Answers DATA with 354 and closes.
    ClosesAfterData,
    /// Keeps the message and closes without an answer.
    ClosesAfterMessage,
    /// Keeps the message and never answers.
    SilentAfterMessage,
    /// Reads one byte of the message a second.
    OneByteASecond,
}

/// The faults of a mailbox, which may change while it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Now>>);

#[derive(Debug, Default)]
struct Now {
    greeting: Option<String>,
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

    pub(super) fn set_greeting(&self, line: Option<&str>) {
        self.lock().greeting = line.map(str::to_owned);
    }

    pub(super) fn greeting(&self) -> Option<String> {
        self.lock().greeting.clone()
    }

    pub(super) fn of(&self, recipient: &str) -> Option<Fault> {
        self.lock().recipients.get(recipient).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
