//! A mailbox that takes mail by a real SMTP conversation and keeps it in memory.
//!
//! For the demo and for tests: it accepts every address and relays nothing. For tests it speaks TLS, asks
//! for a login, and does what servers should not do.

mod fault;
mod page;
mod session;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::fault::Faults;
pub use self::fault::{Fault, Login, Manners, Step, Tls, Wrong};
use crate::services::free_port;

/// A message as it was taken.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mail {
    /// `MAIL FROM` of the envelope.
    pub envelope_from: String,
    /// `RCPT TO` of the envelope.
    pub envelope_to: Vec<String>,
    /// The `From` header, as written.
    pub from: String,
    /// The `To` header, as written.
    pub to: String,
    /// The `Subject` header, decoded.
    pub subject: String,
    /// The `Date` header, RFC 3339.
    pub date: Option<String>,
    /// The `Message-ID` header without the angle brackets.
    pub message_id: String,
    /// The text body, decoded.
    pub text: String,
    /// When the last line arrived.
    pub received_at: DateTime<Utc>,
    /// Everything between `DATA` and the final dot.
    #[serde(skip)]
    pub raw: Vec<u8>,
}

impl Mail {
    fn parse(envelope_from: String, envelope_to: Vec<String>, raw: Vec<u8>) -> Self {
        let message = mail_parser::MessageParser::default().parse(&raw).unwrap_or_default();
        let written = |name| message.header_raw(name).unwrap_or_default().trim().to_owned();
        Self {
            envelope_from,
            envelope_to,
            from: written("From"),
            to: written("To"),
            subject: message.subject().unwrap_or_default().to_owned(),
            date: message.date().map(mail_parser::DateTime::to_rfc3339),
            message_id: message.message_id().unwrap_or_default().to_owned(),
            text: message.body_text(0).unwrap_or_default().into_owned(),
            received_at: Utc::now(),
            raw,
        }
    }

    fn received(&self) -> String {
        self.received_at.to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

/// What has arrived, in order.
#[derive(Clone, Debug, Default)]
struct Store {
    mails: Arc<Mutex<Vec<Mail>>>,
    count: watch::Sender<usize>,
    connections: Arc<Mutex<Connections>>,
}

/// How many connections there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// All of them.
    pub accepted: usize,
    /// Those that are open.
    pub open: usize,
    /// The most that were open at a time.
    pub most: usize,
}

impl Store {
    fn add(&self, mail: Mail) {
        let mut mails = self.mails.lock().unwrap_or_else(PoisonError::into_inner);
        mails.push(mail);
        self.count.send_replace(mails.len());
    }

    /// Counts a connection for as long as what is given back lives.
    fn connected(&self) -> Open {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.accepted += 1;
        connections.open += 1;
        connections.most = connections.most.max(connections.open);
        Open(Arc::clone(&self.connections))
    }

    fn read<T>(&self, read: impl FnOnce(&[Mail]) -> T) -> T {
        read(&self.mails.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An open connection.
struct Open(Arc<Mutex<Connections>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
    }
}

/// Fewer mails than wanted had arrived in time.
#[derive(Debug, thiserror::Error)]
#[error("{arrived} of {wanted} mails have arrived after {} s", waited.as_secs())]
pub struct TooFew {
    /// How many had arrived.
    pub arrived: usize,
    /// How many were waited for.
    pub wanted: usize,
    /// For how long.
    pub waited: Duration,
}

/// A mailbox on 127.0.0.1; dropping it closes it.
#[derive(Debug)]
pub struct Mailbox {
    address: SocketAddr,
    store: Store,
    manners: Manners,
    faults: Faults,
    hangs_up: Arc<Notify>,
    cancel: CancellationToken,
    smtp: JoinSet<()>,
    pages: JoinSet<()>,
}

impl Mailbox {
    /// Listens on a port; 0 takes a free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(port: u16) -> io::Result<Self> {
        Self::start_with(port, Manners::default()).await
    }

    /// The same, with TLS or a login.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start_with(port: u16, manners: Manners) -> io::Result<Self> {
        let port = if port == 0 { free_port()? } else { port };
        let mut mailbox = Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            store: Store::default(),
            manners,
            faults: Faults::default(),
            hangs_up: Arc::default(),
            cancel: CancellationToken::new(),
            smtp: JoinSet::new(),
            pages: JoinSet::new(),
        };
        mailbox.start_again().await?;
        Ok(mailbox)
    }

    /// What goes into `SMTP_URL`.
    #[must_use]
    pub fn smtp_url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on does this to mail for `recipient`, or is well again.
    pub fn set_fault(&self, recipient: &str, fault: Option<Fault>) {
        self.faults.set(recipient, fault);
    }

    /// From now on does this to everybody whose recipient has no fault of its own, or is well again.
    pub fn set_fault_for_everybody(&self, fault: Option<Fault>) {
        self.faults.set_for_everybody(fault);
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> Connections {
        *self.store.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that has arrived, in order; a mail that was sent twice is here twice.
    #[must_use]
    pub fn messages(&self) -> Vec<Mail> {
        self.store.read(<[Mail]>::to_vec)
    }

    /// How many messages have arrived.
    #[must_use]
    pub fn count(&self) -> usize {
        self.store.read(<[Mail]>::len)
    }

    /// Looks at everything that has arrived without copying it.
    pub fn read<T>(&self, read: impl FnOnce(&[Mail]) -> T) -> T {
        self.store.read(read)
    }

    /// How often each Message-ID has arrived.
    #[must_use]
    pub fn message_ids(&self) -> HashMap<String, usize> {
        self.read(|mails| {
            let mut ids = HashMap::with_capacity(mails.len());
            for mail in mails {
                *ids.entry(mail.message_id.clone()).or_default() += 1;
            }
            ids
        })
    }

    /// Waits until `wanted` messages have arrived and gives all of them.
    ///
    /// # Errors
    /// [`TooFew`] past the limit.
    pub async fn wait_for(&self, wanted: usize, limit: Duration) -> Result<Vec<Mail>, TooFew> {
        let mut count = self.store.count.subscribe();
        // What it gives holds the count and must be gone before the mails are looked at: one that arrives holds
        // the mails while it counts itself.
        let enough = tokio::time::timeout(limit, count.wait_for(|count| *count >= wanted))
            .await
            .is_ok_and(|enough| enough.is_ok());
        if enough {
            return Ok(self.messages());
        }
        Err(TooFew { arrived: self.count(), wanted, waited: limit })
    }

    /// Closes every connection, soon, and goes on.
    pub fn hang_up(&self) {
        self.hangs_up.notify_one();
    }

    /// Closes the port and every connection; what has arrived stays.
    pub async fn stop(&mut self) {
        self.cancel.cancel();
        while self.smtp.join_next().await.is_some() {}
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port has been taken by another program.
    pub async fn start_again(&mut self) -> io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.cancel = CancellationToken::new();
        let host = session::Host {
            store: self.store.clone(),
            manners: self.manners.clone(),
            faults: self.faults.clone(),
            dies: Arc::default(),
            hangs_up: Arc::clone(&self.hangs_up),
        };
        self.smtp.spawn(session::accept(listener, host, self.cancel.clone()));
        Ok(())
    }

    /// Serves a page to read the mail (`GET /`, `GET /messages`) until the mailbox is dropped and
    /// gives its URL. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn serve_page(&mut self, port: u16) -> io::Result<String> {
        let port = if port == 0 { free_port()? } else { port };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = page::router(self.store.clone());
        self.pages.spawn(async move {
            // `serve` ends with its task only.
            let _ = axum::serve(listener, router).await;
        });
        Ok(url)
    }
}
