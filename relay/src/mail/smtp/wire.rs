//! A connection in the form that lettre takes one in.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// lettre begins every connection by reading a greeting. Where the server has greeted us already, it gets this one.
const GREETED: &[u8] = b"220 greeted before\r\n";

/// A connection, encrypted or not.
#[derive(Debug)]
pub(super) struct Wire<S> {
    peer: SocketAddr,
    /// What is read before anything that the server sends.
    first: &'static [u8],
    stream: S,
}

impl Wire<TcpStream> {
    /// Unencrypted.
    pub(super) fn plain(stream: TcpStream, is_greeted: bool) -> io::Result<Self> {
        Ok(Self { peer: stream.peer_addr()?, first: first(is_greeted), stream })
    }
}

impl Wire<TlsStream<TcpStream>> {
    /// Encrypted.
    pub(super) fn encrypted(stream: TlsStream<TcpStream>, is_greeted: bool) -> io::Result<Self> {
        Ok(Self { peer: stream.get_ref().0.peer_addr()?, first: first(is_greeted), stream })
    }
}

fn first(is_greeted: bool) -> &'static [u8] {
    if is_greeted { GREETED } else { b"" }
}

impl<S> AsyncTokioStream for Wire<S>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug,
{
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let (now, later) = self.first.split_at(self.first.len().min(buf.remaining()));
        buf.put_slice(now);
        self.first = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
