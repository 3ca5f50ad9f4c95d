//! The unencrypted beginning of a connection that STARTTLS encrypts: greeting, EHLO, STARTTLS. It is ours and
//! not lettre's, whose reader outlives the handshake: what somebody on the way writes behind the server's 220
//! would be taken for answers that came encrypted (RFC 3207, section 6). Here nothing read before the
//! handshake is left after it.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use lettre::transport::smtp::commands::{Ehlo, Starttls};
use lettre::transport::smtp::extension::{ClientId, Extension, ServerInfo};
use lettre::transport::smtp::response::Response;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Step;
use super::connection::{Failure, within_io};

/// A reply is no longer than this: RFC 5321 allows lines of 512 bytes.
const LONGEST: u64 = 16 * 1024;

/// What the server says to STARTTLS.
pub(super) enum Answer {
    /// The next byte is the handshake's.
    Ready(TcpStream),
    /// It does not offer it; the conversation can go on unencrypted.
    NotOffered(TcpStream),
}

/// Asks for STARTTLS if the server offers it.
///
/// # Errors
/// The step that failed.
pub(super) async fn ask(stream: TcpStream, hello: &ClientId, limit: Duration) -> Result<Answer, Failure> {
    let mut wire = BufReader::new(stream);
    let greeting = within_io(limit, Step::Greeting, reply(&mut wire)).await?;
    Failure::unless_positive(Step::Greeting, &greeting)?;
    let ehlo = within_io(limit, Step::Greeting, command(&mut wire, Ehlo::new(hello.clone()))).await?;
    Failure::unless_positive(Step::Greeting, &ehlo)?;
    let server = ServerInfo::from_response(&ehlo).map_err(|error| Failure::of(Step::Greeting, &error))?;
    let is_offered = server.supports_feature(Extension::StartTls);
    if is_offered {
        let answer = within_io(limit, Step::StartTls, command(&mut wire, Starttls)).await?;
        Failure::unless_positive(Step::StartTls, &answer)?;
    }
    // What is not in this buffer yet stays in the socket: there it is no handshake, and nothing goes on.
    if !wire.buffer().is_empty() {
        return Err(Failure::broken(Step::StartTls, "answers that nobody asked for"));
    }
    let stream = wire.into_inner();
    Ok(if is_offered { Answer::Ready(stream) } else { Answer::NotOffered(stream) })
}

async fn command(wire: &mut BufReader<TcpStream>, command: impl Display) -> io::Result<Response> {
    wire.write_all(command.to_string().as_bytes()).await?;
    reply(wire).await
}

/// Reads one reply, of one line or more.
async fn reply(wire: &mut BufReader<TcpStream>) -> io::Result<Response> {
    let mut wire = wire.take(LONGEST);
    let mut text = String::new();
    loop {
        let start = text.len();
        wire.read_line(&mut text).await?;
        let line = &text[start..];
        if !line.ends_with('\n') {
            let why = if wire.limit() == 0 { "a reply that does not end" } else { "the server hung up" };
            return Err(io::Error::other(why));
        }
        // `250-` goes on, `250 ` is the last.
        if line.as_bytes().get(3) != Some(&b'-') {
            return text.parse().map_err(|_| io::Error::other("what came is no SMTP"));
        }
    }
}
