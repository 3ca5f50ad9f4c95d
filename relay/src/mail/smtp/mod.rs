//! The mail server: where it is, how one speaks with it, and what its answers mean. The protocol is
//! lettre's; the socket is ours, because what lettre opens leaves Nagle's algorithm on, and so is what comes
//! before TLS.

mod connection;
mod server;
mod starttls;
mod verdict;
mod wire;

pub(crate) use self::connection::Reachable;
pub(super) use self::connection::{Connection, Failure};
pub(crate) use self::server::{InvalidServer, Server};
pub(super) use self::verdict::{Step, Trouble, Verdict, judge};
