//! The mail server: its URL, its connections, and what its answers mean.

use std::time::Duration;

use lettre::transport::smtp::{Error, PoolConfig};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use super::{Attempt, CONNECTIONS};

/// How long a connection, or a command on it, may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A pool of connections to the server.
#[derive(Clone, Debug)]
pub(crate) struct Smtp(AsyncSmtpTransport<Tokio1Executor>);

/// What comes of calling the mail server without a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reachable {
    /// A mail could be sent.
    Yes,
    /// It answers, and would take none: its words.
    Refused(String),
    /// It does not answer: why.
    No(String),
}

impl Smtp {
    /// Connections to the server at `url`, made when they are needed.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let connections = u32::try_from(CONNECTIONS).unwrap_or(1);
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)?
            .timeout(Some(TIMEOUT))
            .pool_config(PoolConfig::new().max_size(connections))
            .build();
        Ok(Self(transport))
    }

    /// Connects, says hello, starts TLS and logs in as the URL says. Sends nothing.
    pub(crate) async fn reach(&self) -> Reachable {
        match self.0.test_connection().await {
            Ok(true) => Reachable::Yes,
            Ok(false) => Reachable::Refused("it takes the login and then no command".to_owned()),
            Err(error) => {
                let words = with_sources(&error);
                // It was there to refuse: a login, TLS, or a hello.
                let answered =
                    error.is_permanent() || error.is_transient() || error.is_client() || error.is_tls();
                if answered { Reachable::Refused(words) } else { Reachable::No(words) }
            }
        }
    }

    pub(super) async fn send(&self, message: Message) -> Attempt {
        match self.0.send(message).await {
            Ok(_) => Attempt::Sent,
            Err(error) => classify(&error),
        }
    }
}

/// A 5xx concerns this mail for good and a 4xx for now; everything else is the server being away.
fn classify(error: &Error) -> Attempt {
    let words = with_sources(error);
    if error.is_permanent() {
        Attempt::Failed(words)
    } else if error.is_transient() {
        Attempt::Deferred(words)
    } else {
        Attempt::Away(words)
    }
}

fn with_sources(error: &Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let more = cause.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        source = cause.source();
    }
    words
}
