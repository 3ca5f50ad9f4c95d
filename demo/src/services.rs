//! Real servers of our own: PostgreSQL, Kafka and PgBouncer, each in a directory of the run, on free ports.

mod disk;
mod distribution;
mod kafka;
mod pgbouncer;
mod postgres;

use std::io;
use std::net::TcpListener;

pub use disk::Disk;
pub use kafka::{Kafka, MockKafka, java_is_there};
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;

use crate::guard;
use crate::process::ProcessError;

/// Why a server of our own is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It is not in the cache and could not be fetched.
    #[error("{distribution} cannot be fetched with Maven")]
    Fetch {
        /// What was to be fetched.
        distribution: String,
        /// What Maven or tar said.
        #[source]
        source: ProcessError,
    },
    /// Nobody builds it for this kind of machine.
    #[error("there is no PostgreSQL to fetch for {0}: set DATABASE_URL")]
    Platform(String),
    /// One of its processes did not do what it should.
    #[error("{service} cannot be run")]
    Process {
        /// Its name.
        service: &'static str,
        /// Which process, and the end of its log.
        #[source]
        source: ProcessError,
    },
    /// Its files or ports cannot be made.
    #[error("no place for {service}")]
    Io {
        /// Its name.
        service: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// librdkafka's mock cluster does not start.
    #[error("librdkafka's mock cluster cannot be started")]
    Mock(#[source] rdkafka::error::KafkaError),
}

impl ServiceError {
    fn io(service: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { service, source }
    }

    fn process(service: &'static str) -> impl FnOnce(ProcessError) -> Self {
        move |source| Self::Process { service, source }
    }
}

/// What a server of our own has beside the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// More settings, as its configuration file calls them.
    pub settings: &'a [(&'a str, &'a str)],
    /// More environment variables.
    pub environment: &'a [(&'a str, &'a str)],
    /// User and password of a second listener of the broker ([`Kafka::login_brokers`]): SASL PLAIN, unencrypted.
    pub login: Option<(&'a str, &'a str)>,
    /// Options of the broker's Java virtual machine in place of ours, which start fast and take little memory.
    pub jvm: &'a [&'a str],
    /// Where its data lies; in the directory of the run when there is none.
    pub disk: Option<&'a Disk>,
}

/// How often a start is tried again on other ports: another program may take a free port between
/// our look and the server's bind.
const STARTS: usize = 3;

/// PostgreSQL and PgBouncer refuse to run as root, and want a user that has a name; this is `nobody`
/// on Debian.
const UNPRIVILEGED: u32 = 65534;

/// Whom such a server runs as when it may not be us.
fn unprivileged() -> io::Result<Option<u32>> {
    Ok(guard::is_root()?.then_some(UNPRIVILEGED))
}

/// A port of 127.0.0.1 on which nobody listens.
///
/// Below the range from which the kernel takes ports of outgoing connections: a client that
/// reconnects to a server which is down would sooner or later get the server's own port as its
/// source, be connected to itself, and keep the server from coming back.
///
/// # Errors
/// When no port can be bound.
pub fn free_port() -> io::Result<u16> {
    let mut tried = Ok(0);
    for _ in 0..100 {
        let port = fastrand::u16(11_000..32_000);
        tried = TcpListener::bind(("127.0.0.1", port)).map(|_| port);
        if tried.is_ok() {
            break;
        }
    }
    tried
}
