//! One connection to the mail server. A step that fails says which it was; what it means is judged
//! elsewhere.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::DEFAULT_MECHANISMS;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{Extension, MailParameter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::server::{Security, Server};
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

    fn of(step: Step, error: &Error) -> Self {
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

    fn broken(step: Step, why: impl std::fmt::Display) -> Self {
        Self { step, trouble: Trouble::Broken, words: format!("{step}: {why}") }
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
        let stream: Box<dyn AsyncTokioStream> = match &self.security {
            Security::Implicit(connector, name) => {
                let handshake = connector.connect(name.clone(), stream);
                Box::new(Encrypted(within_io(limit, Step::Tls, handshake).await?))
            }
            Security::Plain | Security::Opportunistic(_) | Security::Required(_) => Box::new(stream),
        };
        let greeting = AsyncSmtpConnection::connect_with_transport(stream, hello);
        let mut smtp = within(limit, Step::Greeting, greeting).await?;
        match &self.security {
            Security::Required(tls) => {
                within(limit, Step::StartTls, smtp.starttls(tls.clone(), hello)).await?;
            }
            Security::Opportunistic(tls) if smtp.can_starttls() => {
                within(limit, Step::StartTls, smtp.starttls(tls.clone(), hello)).await?;
            }
            Security::Plain | Security::Opportunistic(_) | Security::Implicit(..) => {}
        }
        if let Some(credentials) = &self.credentials {
            within(limit, Step::Login, smtp.auth(DEFAULT_MECHANISMS, credentials)).await?;
        }
        Ok(Connection { smtp, timeout: limit })
    }
}

async fn within_io<T>(
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

/// TLS from the first byte, in the form that lettre takes a stream in.
#[derive(Debug)]
struct Encrypted(TlsStream<TcpStream>);

impl AsyncTokioStream for Encrypted {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().0.peer_addr()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
