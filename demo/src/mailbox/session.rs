//! The sockets of the SMTP conversation; the protocol's state machine is `mailin`'s.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mailin::response::{AUTH_OK, INTERNAL_ERROR, INVALID_CREDENTIALS, NO_STORAGE, OK};
use mailin::{Action, AuthMechanism, Handler, Response, SessionBuilder};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::fault::Faults;
use super::{Fault, Login, Mail, Manners, Store, Tls};

/// A line longer than this is no mail of ours (RFC 5321 allows 1,000 bytes).
const LONGEST_LINE: u64 = 64 * 1024;
const LARGEST_MAIL: usize = 10 * 1024 * 1024;

/// What every connection shares.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) store: Store,
    pub(super) manners: Manners,
    pub(super) faults: Faults,
}

/// A connection, encrypted or not.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Serves connections until cancelled, then closes the port and all of them.
pub(super) async fn accept(listener: TcpListener, host: Host, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
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
    }
    drop(listener);
    connections.shutdown().await;
}

async fn converse(stream: TcpStream, peer: IpAddr, host: Host) {
    let _open = host.store.connected();
    if let Err(error) = conversation(stream, peer, host).await {
        tracing::debug!(%error, "an SMTP connection broke");
    }
}

async fn conversation(stream: TcpStream, peer: IpAddr, host: Host) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut builder = SessionBuilder::new("mailbox");
    let mut wire: Box<dyn Wire> = Box::new(stream);
    let mut upgrade = None;
    match &host.manners.tls {
        None => {}
        Some(Tls::Implicit(config)) => {
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
    if let Some(line) = host.faults.greeting() {
        wire.write_all(format!("{line}\r\n").as_bytes()).await?;
        return wire.shutdown().await;
    }
    let fault = Arc::default();
    let inbound = Inbound {
        store: host.store,
        login: host.manners.login,
        faults: host.faults,
        fault: Arc::clone(&fault),
        ..Inbound::default()
    };
    let mut session = builder.build(peer, inbound);
    let mut wire = BufReader::new(wire);
    wire.write_all(&session.greeting().buffer()?).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut wire).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        let response = session.process(&line);
        let fault = *fault.lock().unwrap_or_else(PoisonError::into_inner);
        match (fault, response.code) {
            (Some(Fault::ClosesAfterMessage), 250) if line == b".\r\n" => return Ok(()),
            (Some(Fault::SilentAfterMessage), 250) if line == b".\r\n" => {
                return std::future::pending().await;
            }
            _ => {}
        }
        match response.action {
            Action::NoReply => {}
            Action::Reply => wire.write_all(&response.buffer()?).await?,
            Action::Close => {
                wire.write_all(&response.buffer()?).await?;
                return wire.shutdown().await;
            }
            Action::UpgradeTls => {
                wire.write_all(&response.buffer()?).await?;
                let Some(acceptor) = upgrade.take() else { return Ok(()) };
                // What came before the handshake is dropped with the buffer (RFC 3207, section 6).
                wire = BufReader::new(Box::new(acceptor.accept(wire.into_inner()).await?));
                session.tls_active();
            }
        }
        match fault {
            Some(Fault::SilentAfterData) if response.code == 354 => std::future::pending().await,
            Some(Fault::ClosesAfterData) if response.code == 354 => return Ok(()),
            Some(Fault::OneByteASecond) if response.code == 354 => loop {
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
    store: Store,
    login: Option<Login>,
    faults: Faults,
    /// What is done to this message; read by the socket's side too.
    fault: Arc<Mutex<Option<Fault>>>,
    from: String,
    to: Vec<String>,
    raw: Vec<u8>,
}

impl Inbound {
    fn fault(&mut self) -> Option<Fault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_fault(&mut self, fault: Option<Fault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

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

    fn mail(&mut self, _ip: IpAddr, _domain: &str, _from: &str) -> Response {
        self.set_fault(None);
        OK
    }

    fn rcpt(&mut self, to: &str) -> Response {
        let fault = self.faults.of(to);
        self.set_fault(fault);
        match fault {
            Some(Fault::Recipient(code)) => Response::custom(code, format!("<{to}>: not now, not here")),
            _ => OK,
        }
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
        if let Some(Fault::Message(code)) = self.fault() {
            return Response::custom(code, "not this message".to_owned());
        }
        if raw.len() > LARGEST_MAIL {
            return NO_STORAGE;
        }
        if raw.is_empty() {
            return INTERNAL_ERROR;
        }
        self.store.add(Mail::parse(std::mem::take(&mut self.from), std::mem::take(&mut self.to), raw));
        OK
    }
}
