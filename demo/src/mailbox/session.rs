//! The sockets of the SMTP conversation; the protocol's state machine is `mailin`'s.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mailin::response::{AUTH_OK, INTERNAL_ERROR, INVALID_CREDENTIALS, NO_STORAGE, OK};
use mailin::{Action, AuthMechanism, Handler, Response, SessionBuilder};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::fault::Faults;
use super::{Fault, Login, Mail, Manners, Step, Store, Tls, Wrong};

/// A line longer than this is no mail of ours (RFC 5321 allows 1,000 bytes).
const LONGEST_LINE: u64 = 64 * 1024;
const LARGEST_MAIL: usize = 10 * 1024 * 1024;
/// The words of a refusal.
const NO: &str = "not now, not here";

/// For so long it is away when it dies.
const AWAY: Duration = Duration::from_secs(1);

/// What every connection shares.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) store: Store,
    pub(super) manners: Manners,
    pub(super) faults: Faults,
    /// Told by the connection at which it dies.
    pub(super) dies: Arc<Notify>,
    /// Told when every connection is to be closed.
    pub(super) hangs_up: Arc<Notify>,
}

/// A connection, encrypted or not.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Serves connections until cancelled, then closes the port and all of them.
pub(super) async fn accept(mut listener: TcpListener, host: Host, cancel: CancellationToken) {
    loop {
        let mut connections = JoinSet::new();
        let dies = loop {
            tokio::select! {
                () = cancel.cancelled() => break false,
                () = host.dies.notified() => break true,
                () = host.hangs_up.notified() => connections.shutdown().await,
                Some(_) = connections.join_next() => {}
                connection = listener.accept() => match connection {
                    Ok((stream, peer)) => {
                        connections.spawn(converse(stream, peer.ip(), host.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: accepting at once would spin.
                        tracing::warn!(%error, "the mailbox cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        };
        let Ok(address) = listener.local_addr() else { return };
        drop(listener);
        connections.shutdown().await;
        if !dies {
            return;
        }
        let back = async {
            tokio::time::sleep(AWAY).await;
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    // A process that is just being started may hold the port for a moment.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        listener = match cancel.run_until_cancelled(back).await {
            Some(listener) => listener,
            None => return,
        };
    }
}

async fn converse(stream: TcpStream, peer: IpAddr, host: Host) {
    let _open = host.store.connected();
    if let Err(error) = conversation(stream, peer, host).await {
        tracing::debug!(%error, "an SMTP connection broke");
    }
}

/// What comes after a step.
enum Next {
    /// The answer, as it should be.
    Answer,
    /// The next command: this one was answered.
    Command,
    /// Nothing.
    HangUp,
}

/// Does what is wrong with a step.
async fn misbehave(
    wrong: Option<Wrong>,
    wire: &mut (impl AsyncWrite + Unpin),
    words: &str,
    host: &Host,
) -> io::Result<Next> {
    match wrong {
        None => Ok(Next::Answer),
        Some(Wrong::Late(wait)) => {
            tokio::time::sleep(wait).await;
            Ok(Next::Answer)
        }
        Some(Wrong::Reply(code)) => {
            wire.write_all(format!("{code} {words}\r\n").as_bytes()).await?;
            if code == 421 {
                wire.shutdown().await?;
                return Ok(Next::HangUp);
            }
            Ok(Next::Command)
        }
        Some(Wrong::Silence) => std::future::pending().await,
        Some(Wrong::Close) => Ok(Next::HangUp),
        Some(Wrong::Die) => {
            host.dies.notify_one();
            std::future::pending().await
        }
    }
}

/// Which step a line is.
fn step_of(line: &[u8], in_message: bool) -> Option<Step> {
    if in_message {
        return (line == b".\r\n").then_some(Step::Message);
    }
    let word = line.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    match word.to_ascii_uppercase().as_slice() {
        b"EHLO" | b"HELO" => Some(Step::Hello),
        b"STARTTLS" => Some(Step::StartTls),
        b"AUTH" => Some(Step::Login),
        b"MAIL" => Some(Step::Sender),
        b"RCPT" => Some(Step::Recipient),
        b"DATA" => Some(Step::Data),
        _ => None,
    }
}

/// The address between the angle brackets.
fn address_in(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    let address = line.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    address.map(|(address, _)| address.to_owned()).unwrap_or_default()
}

async fn conversation(stream: TcpStream, peer: IpAddr, host: Host) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let at = |step| host.faults.of_everybody().and_then(|fault| fault.at(step));
    let mut builder = SessionBuilder::new("mailbox");
    let mut wire: Box<dyn Wire> = Box::new(stream);
    let mut upgrade = None;
    match &host.manners.tls {
        None => {}
        Some(Tls::Implicit(config)) => {
            let Next::Answer = misbehave(at(Step::Tls), &mut wire, NO, &host).await? else { return Ok(()) };
            wire = Box::new(TlsAcceptor::from(Arc::clone(config)).accept(wire).await?);
        }
        Some(Tls::StartTls(config)) => {
            builder.enable_start_tls();
            upgrade = Some(TlsAcceptor::from(Arc::clone(config)));
        }
    }
    if let Some(login) = &host.manners.login {
        builder.enable_auth(AuthMechanism::Login).insecure_enable_plaintext_auth();
        if login.plain {
            builder.enable_auth(AuthMechanism::Plain);
        }
    }
    let Next::Answer = misbehave(at(Step::Greeting), &mut wire, NO, &host).await? else {
        return wire.shutdown().await;
    };
    let taken: Arc<Mutex<Option<Mail>>> = Arc::default();
    let inbound =
        Inbound { login: host.manners.login.clone(), taken: Arc::clone(&taken), ..Inbound::default() };
    let mut session = builder.build(peer, inbound);
    let mut wire = BufReader::new(wire);
    wire.write_all(&session.greeting().buffer()?).await?;
    let mut line = Vec::new();
    // What is done to the recipient of this mail.
    let mut of_recipient = None;
    let mut in_message = false;
    loop {
        line.clear();
        (&mut wire).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        let step = step_of(&line, in_message);
        let mut words = NO.to_owned();
        match step {
            Some(Step::Sender) => of_recipient = None,
            Some(Step::Recipient) => {
                let recipient = address_in(&line);
                of_recipient = host.faults.of(&recipient);
                words = format!("<{recipient}>: {NO}");
            }
            Some(Step::Message) => in_message = false,
            _ => {}
        }
        let fault = of_recipient.or_else(|| host.faults.of_everybody());
        let wrong = fault.zip(step).and_then(|(fault, step)| fault.at(step));
        let is_refused = matches!(wrong, Some(Wrong::Reply(_)));
        // A command that is refused has not happened; a message that is refused has ended all the same.
        let response = (!is_refused || step == Some(Step::Message)).then(|| session.process(&line));
        let mail = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mail) = mail.filter(|_| !is_refused) {
            host.store.add(mail);
        }
        let response = match (misbehave(wrong, &mut wire, &words, &host).await?, response) {
            (Next::Answer, Some(response)) => response,
            (Next::Answer | Next::Command, _) => continue,
            (Next::HangUp, _) => return Ok(()),
        };
        match response.action {
            Action::NoReply => {}
            Action::Reply => wire.write_all(&response.buffer()?).await?,
            Action::Close => {
                wire.write_all(&response.buffer()?).await?;
                return wire.shutdown().await;
            }
            Action::UpgradeTls => {
                let mut answer = response.buffer()?;
                if let Some(Fault::Injects(more)) = fault {
                    answer.extend_from_slice(more.as_bytes());
                }
                wire.write_all(&answer).await?;
                let Next::Answer = misbehave(at(Step::Tls), &mut wire, NO, &host).await? else {
                    return Ok(());
                };
                let Some(acceptor) = upgrade.take() else { return Ok(()) };
                // What came before the handshake is dropped with the buffer (RFC 3207, section 6).
                wire = BufReader::new(Box::new(acceptor.accept(wire.into_inner()).await?));
                session.tls_active();
            }
        }
        if response.code != 354 {
            continue;
        }
        in_message = true;
        match fault {
            Some(Fault::SilentAfterData) => std::future::pending().await,
            Some(Fault::ClosesAfterData) => return Ok(()),
            Some(Fault::OneByteASecond) => loop {
                wire.get_mut().read_u8().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            },
            _ => {}
        }
    }
}

/// The message that is coming in on a connection.
#[derive(Default)]
struct Inbound {
    login: Option<Login>,
    from: String,
    to: Vec<String>,
    raw: Vec<u8>,
    /// The message when it is whole; the socket's side keeps it.
    taken: Arc<Mutex<Option<Mail>>>,
}

impl Inbound {
    fn check(&self, user: &str, password: &str) -> Response {
        match &self.login {
            Some(login) if login.user == user && login.password == password => AUTH_OK,
            _ => INVALID_CREDENTIALS,
        }
    }
}

impl Handler for Inbound {
    fn auth_plain(&mut self, _authorization: &str, user: &str, password: &str) -> Response {
        self.check(user, password)
    }

    fn auth_login(&mut self, user: &str, password: &str) -> Response {
        self.check(user, password)
    }

    fn data_start(&mut self, _domain: &str, from: &str, _is8bit: bool, to: &[String]) -> Response {
        from.clone_into(&mut self.from);
        self.to = to.to_vec();
        self.raw.clear();
        mailin::response::START_DATA
    }

    fn data(&mut self, buf: &[u8]) -> io::Result<()> {
        // The rest of a mail that is too large is read and dropped; the end of it is refused.
        if self.raw.len() <= LARGEST_MAIL {
            self.raw.extend_from_slice(buf);
        }
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        let raw = std::mem::take(&mut self.raw);
        if raw.len() > LARGEST_MAIL {
            return NO_STORAGE;
        }
        if raw.is_empty() {
            return INTERNAL_ERROR;
        }
        let mail = Mail::parse(std::mem::take(&mut self.from), std::mem::take(&mut self.to), raw);
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(mail);
        OK
    }
}
