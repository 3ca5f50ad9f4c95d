//! A TCP proxy that cuts a PostgreSQL connection between a statement and its answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the proxy does next.
#[derive(Clone, Debug)]
pub(crate) enum Mode {
    /// Lets everything through.
    Pass,
    /// Forwards the first request that contains `marker`, waits for the server's answer, keeps it
    /// and closes the connection. Afterwards as `then`.
    Cut { marker: String, then: Box<Mode> },
    /// Closes new connections at once.
    Refuse,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    _tasks: JoinSet<()>,
    server: PgConnectOptions,
}

impl Proxy {
    pub(crate) async fn before(database_url: &str) -> Self {
        let server: PgConnectOptions = database_url.parse().unwrap();
        let target = (server.get_host().to_owned(), server.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(Mutex::new(Mode::Pass));
        let shared = mode.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let mode = shared.clone();
                if matches!(*mode.lock().unwrap(), Mode::Refuse) {
                    continue;
                }
                let target = target.clone();
                connections.spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    let _ = forward(client, server, &mode).await;
                });
            }
        });
        Self { address, mode, _tasks: tasks, server }
    }

    /// The URL of the database by way of the proxy.
    pub(crate) fn url(&self) -> String {
        self.server.clone().host("127.0.0.1").port(self.address.port()).to_url_lossy().to_string()
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, mode: &Mutex<Mode>) -> std::io::Result<()> {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read? {
                0 => return Ok(()),
                n => {
                    server.write_all(&up[..n]).await?;
                    if cuts(mode, &up[..n]) {
                        // The answer's first bytes come after the commit; nobody reads them.
                        server.readable().await?;
                        return Ok(());
                    }
                }
            },
            read = server.read(&mut down) => match read? {
                0 => return Ok(()),
                n => client.write_all(&down[..n]).await?,
            },
        }
    }
}

/// Whether this request is the one to cut after; the mode moves on with it.
fn cuts(mode: &Mutex<Mode>, sent: &[u8]) -> bool {
    let mut mode = mode.lock().unwrap();
    let Mode::Cut { marker, then } = &*mode else { return false };
    let found = sent.windows(marker.len()).any(|window| window == marker.as_bytes());
    if found {
        let then = (**then).clone();
        *mode = then;
    }
    found
}
