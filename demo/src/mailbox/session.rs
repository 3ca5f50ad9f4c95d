//! The sockets of the SMTP conversation; the protocol's state machine is `mailin`'s.

use std::io;
use std::net::IpAddr;

use mailin::response::{INTERNAL_ERROR, NO_STORAGE, OK};
use mailin::{Action, Handler, Response, SessionBuilder};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Mail, Store};

/// A line longer than this is no mail of ours (RFC 5321 allows 1,000 bytes).
const LONGEST_LINE: u64 = 64 * 1024;
const LARGEST_MAIL: usize = 10 * 1024 * 1024;

/// Serves connections until cancelled, then closes the port and all of them.
pub(super) async fn accept(listener: TcpListener, store: Store, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            connection = listener.accept() => match connection {
                Ok((stream, peer)) => {
                    connections.spawn(converse(stream, peer.ip(), store.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: accepting at once would spin.
                    tracing::warn!(%error, "the mailbox cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn converse(stream: TcpStream, peer: IpAddr, store: Store) {
    if let Err(error) = conversation(stream, peer, store).await {
        tracing::debug!(%error, "an SMTP connection broke");
    }
}

async fn conversation(stream: TcpStream, peer: IpAddr, store: Store) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut session = SessionBuilder::new("mailbox").build(peer, Inbound { store, ..Inbound::default() });
    stream.write_all(&session.greeting().buffer()?).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        if stream.buffer().is_empty() {
            acknowledge(stream.get_ref())?;
        }
        let response = session.process(&line);
        match response.action {
            Action::NoReply => {}
            Action::Reply => stream.write_all(&response.buffer()?).await?,
            Action::Close | Action::UpgradeTls => {
                stream.write_all(&response.buffer()?).await?;
                return stream.shutdown().await;
            }
        }
    }
}

/// Many clients (lettre is one) send a message and its final dot as two writes and leave Nagle's
/// algorithm on: the dot then waits for our acknowledgement, which Linux delays by 40 ms, and a
/// connection takes 25 mails a second. The kernel falls back by itself, hence at every read.
#[cfg(target_os = "linux")]
fn acknowledge(stream: &TcpStream) -> io::Result<()> {
    stream.set_quickack(true)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the same signature as on Linux")]
fn acknowledge(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// The message that is coming in on a connection.
#[derive(Default)]
struct Inbound {
    store: Store,
    from: String,
    to: Vec<String>,
    raw: Vec<u8>,
}

impl Handler for Inbound {
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
        self.store.add(Mail::parse(std::mem::take(&mut self.from), std::mem::take(&mut self.to), raw));
        OK
    }
}
