//! One connection to the mail server. A step that fails says which it was; what it means is judged
//! elsewhere.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::DEFAULT_MECHANISMS;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{Extension, MailParameter};
use lettre::transport::smtp::response::Response;
use tokio::net::TcpStream;

use super::server::{Security, Server};
use super::starttls::{self, Answer};
use super::wire::Wire;
use super::{Step, Trouble, Verdict, judge};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) trouble: Trouble,
    /// The step and the server's words.
    pub(crate) words: String,
}

impl Failure {
    /// What it means.
    pub(crate) fn verdict(&self) -> Verdict {
        judge(self.step, self.trouble)
    }

    pub(super) fn of(step: Step, error: &Error) -> Self {
        let trouble = error.status().map_or(Trouble::Broken, |code| Trouble::of(code.into()));
        let mut words = format!("{step}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let more = cause.to_string();
            if !words.contains(&more) {
                words = format!("{words}: {more}");
            }
            source = cause.source();
        }
        Self { step, trouble, words }
    }

    pub(super) fn broken(step: Step, why: impl std::fmt::Display) -> Self {
        Self { step, trouble: Trouble::Broken, words: format!("{step}: {why}") }
    }

    /// What a reply that did not come by way of lettre says.
    pub(super) fn unless_positive(step: Step, reply: &Response) -> Result<(), Self> {
        if reply.is_positive() {
            return Ok(());
        }
        let text: Vec<&str> = reply.message().collect();
        let words = format!("{step}: refused ({}): {}", reply.code(), text.join(" "));
        Err(Self { step, trouble: Trouble::of(reply.code().into()), words })
    }
}

/// Does one step, and waits no longer than `limit` for it.
async fn within<T>(
    limit: Duration,
    step: Step,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|error| Failure::of(step, &error)),
        Err(_) => Err(Failure::broken(step, format!("no answer within {limit:?}"))),
    }
}

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

/// A connection that is ready for mail.
pub(crate) struct Connection {
    smtp: AsyncSmtpConnection,
    timeout: Duration,
}

impl Server {
    /// Connects, says hello, starts TLS and logs in as the settings say. Sends nothing.
    pub(crate) async fn reach(&self) -> Reachable {
        let failure = match Box::pin(self.connect()).await {
            Ok(connection) => {
                connection.quit().await;
                return Reachable::Yes;
            }
            Err(failure) => failure,
        };
        match (failure.step, failure.trouble) {
            (_, Trouble::Transient | Trouble::Closing | Trouble::Permanent)
            // It was there to be talked to, and the two do not understand each other.
            | (Step::Tls | Step::StartTls | Step::Login, Trouble::Broken) => Reachable::Refused(failure.words),
            (_, Trouble::Broken) => Reachable::No(failure.words),
        }
    }

    /// Connects, encrypts and logs in, as far as the settings ask for it.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let (limit, hello) = (self.timeout, &self.hello);
        let address = (self.host.as_str(), self.port);
        let stream = within_io(limit, Step::Connect, TcpStream::connect(address)).await?;
        // lettre writes a message and its final dot separately. With Nagle's algorithm the dot waits for the
        // acknowledgement of the message, which many servers delay by 40 ms: 25 mails a second.
        stream.set_nodelay(true).map_err(|error| Failure::broken(Step::Connect, error))?;
        let (wire, step): (io::Result<Box<dyn AsyncTokioStream>>, Step) = match &self.security {
            Security::Plain => (boxed(Wire::plain(stream, false)), Step::Greeting),
            Security::Implicit(tls, name) => {
                let stream = within_io(limit, Step::Tls, tls.connect(name.clone(), stream)).await?;
                (boxed(Wire::encrypted(stream, false)), Step::Greeting)
            }
            Security::Opportunistic(tls, name) | Security::Required(tls, name) => {
                match (starttls::ask(stream, hello, limit).await?, &self.security) {
                    (Answer::Ready(stream), _) => {
                        let handshake = tls.connect(name.clone(), stream);
                        let stream = within_io(limit, Step::StartTls, handshake).await?;
                        (boxed(Wire::encrypted(stream, true)), Step::StartTls)
                    }
                    (Answer::NotOffered(_), Security::Required(..)) => {
                        return Err(Failure::broken(Step::StartTls, "the server does not offer it"));
                    }
                    (Answer::NotOffered(stream), _) => (boxed(Wire::plain(stream, true)), Step::Greeting),
                }
            }
        };
        let wire = wire.map_err(|error| Failure::broken(step, error))?;
        let mut smtp = within(limit, step, AsyncSmtpConnection::connect_with_transport(wire, hello)).await?;
        if let Some(credentials) = &self.credentials {
            within(limit, Step::Login, smtp.auth(DEFAULT_MECHANISMS, credentials)).await?;
        }
        Ok(Connection { smtp, timeout: limit })
    }
}

fn boxed<S: AsyncTokioStream + 'static>(wire: io::Result<S>) -> io::Result<Box<dyn AsyncTokioStream>> {
    Ok(Box::new(wire?))
}

/// The same for what is not lettre's.
pub(super) async fn within_io<T>(
    limit: Duration,
    step: Step,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|error| Failure::broken(step, error)),
        Err(_) => Err(Failure::broken(step, format!("no answer within {limit:?}"))),
    }
}

impl Connection {
    /// Says from whom and to whom, up to the server's 354. Until then nothing can have been taken:
    /// this may be given up at any moment.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) async fn begin(&mut self, envelope: &Envelope) -> Result<(), Failure> {
        let limit = self.timeout;
        let mut parameters = Vec::new();
        let mut addresses = envelope.to().iter().chain(envelope.from());
        if addresses.any(|address| !AsRef::<str>::as_ref(address).is_ascii()) {
            if !self.smtp.server_info().supports_feature(Extension::SmtpUtfEight) {
                return Err(Failure {
                    step: Step::Recipient,
                    trouble: Trouble::Permanent,
                    words: "the server takes no addresses beyond ASCII (SMTPUTF8)".to_owned(),
                });
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        let sender = Mail::new(envelope.from().cloned(), parameters);
        within(limit, Step::Sender, self.smtp.command(sender)).await?;
        for recipient in envelope.to() {
            let recipient = Rcpt::new(recipient.clone(), Vec::new());
            within(limit, Step::Recipient, self.smtp.command(recipient)).await?;
        }
        within(limit, Step::Data, self.smtp.command(Data)).await?;
        Ok(())
    }

    /// Hands the message over and waits for the answer. Given up, the outcome is unknown.
    ///
    /// # Errors
    /// [`Step::Message`]
    pub(crate) async fn finish(&mut self, message: &[u8]) -> Result<(), Failure> {
        within(10 * self.timeout, Step::Message, self.smtp.message(message)).await.map(drop)
    }

    /// Makes the connection ready for the next mail after a refusal; `None` when it is of no use any more.
    pub(crate) async fn reset(mut self) -> Option<Self> {
        within(self.timeout, Step::Sender, self.smtp.command(Rset)).await.ok().map(|_| self)
    }

    /// Says goodbye. Nothing depends on how the server takes it.
    pub(crate) async fn quit(mut self) {
        let _ = tokio::time::timeout(GOODBYE, self.smtp.quit()).await;
    }
}
