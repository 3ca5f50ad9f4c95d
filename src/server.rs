//! Puts the parts together, and takes them down in order: stop accepting, finish what was
//! accepted, drain the writer, then the bell.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bell::Bell;
use crate::config::{Auth, InvalidDatabaseUrl, Serve};
use crate::domain::ClientId;
use crate::http::{self, Access, AppState, KeyRing, router};
use crate::janitor;
use crate::metrics::Metrics;
use crate::writer::Writer;

/// How long accepted requests may take to finish after the signal.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);
const READERS: u32 = 10;
const WAITERS: u32 = 8;

/// Why the server did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting is wrong.
    #[error(transparent)]
    Database(#[from] InvalidDatabaseUrl),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The metrics contradict each other.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] prometheus::Error),
    /// The writer has no thread.
    #[error("the writer cannot be started")]
    Writer(#[source] io::Error),
    /// A part ended though nobody asked for it.
    #[error("the {0} stopped unexpectedly")]
    Stopped(&'static str),
    /// Accepted requests were not finished within the deadline.
    #[error("accepted requests were not finished within {} s", SHUTDOWN_DEADLINE.as_secs())]
    Deadline,
}

/// Serves until `shutdown`, as the settings say.
///
/// # Errors
/// [`ServeError`]
pub async fn run(config: Serve, shutdown: CancellationToken) -> Result<(), ServeError> {
    // Checked before the port is taken.
    config.database.options()?;
    let listen = |source| ServeError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    serve(listener, config, shutdown).await
}

fn access(auth: Auth, pool: &PgPool) -> Access {
    match auth {
        Auth::Keys => Access::Keys(KeyRing::new(pool.clone())),
        Auth::Off => {
            tracing::warn!("ORDERS_AUTH=off: everyone is taken as client `anonymous`");
            Access::Open(ClientId::anonymous())
        }
    }
}

/// Serves on `listener` (not on the address in `config`) until `shutdown`, then finishes what was
/// accepted. The database need not be there yet: `/readyz` says when it is.
///
/// # Errors
/// Any [`ServeError`] but `Listen`
pub async fn serve(
    listener: TcpListener,
    config: Serve,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let options = config.database.options()?;
    let readers = pool(&options, READERS);
    let waiters = pool(&options, WAITERS);
    // Names the task that ended; the first one to end ends the rest.
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let (bell, ringing) = Bell::new(options.clone());
    tasks.spawn(async move {
        ringing.await;
        "bell"
    });
    let metrics = Arc::new(Metrics::new(readers.clone(), waiters.clone())?);
    let pools = (readers.clone(), waiters.clone());
    let writer = Writer::start(&mut tasks, options, pools, bell, metrics.batch_size(), config.queue)
        .map_err(ServeError::Writer)?;
    let access = access(config.auth, &readers);
    let keys_deleted = metrics.keys_deleted();
    let state = AppState { pool: readers.clone(), writer, access, metrics };
    let app = router(
        state,
        &http::Options {
            rate_limit: config.rate_limit,
            cors_origins: config.cors_origins,
            traces: config.otlp_endpoint.is_some(),
        },
    );

    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "listening");
    }
    let stop = shutdown.child_token();
    let (stopping, cleaning) = (stop.clone(), stop.clone());
    let pool = readers.clone();
    tasks.spawn(async move {
        janitor::run(pool, keys_deleted, cleaning).await;
        "janitor"
    });
    // An answer is one small write: waiting to fill a packet only adds delay.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    tasks.spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(stopping.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "serving failed");
        }
        "listener"
    });

    // The router held the last way into the writer: when it is gone, the writer drains and ends,
    // and after it the bell.
    let first = tokio::select! {
        // A stop that was asked for may end an idle part before it is seen here.
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = tasks.join_next() => Err(ServeError::Stopped(ended.and_then(Result::ok).unwrap_or("program"))),
    };
    stop.cancel();
    tracing::info!("stopping: finishing what was accepted");
    let drained = tokio::time::timeout(SHUTDOWN_DEADLINE, async {
        while tasks.join_next().await.is_some() {}
        readers.close().await;
        waiters.close().await;
    });
    let drained = drained.await.map_err(|_| ServeError::Deadline);
    tasks.shutdown().await;
    first.and(drained)
}

/// Connects when first used, so that the API starts before its database does.
fn pool(options: &PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(3))
        .connect_lazy_with(options.clone())
}

/// Says how it ended; 2 when a setting was wrong.
#[must_use]
pub fn exit_code(result: Result<(), ServeError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    match std::error::Error::source(&error) {
        Some(source) => eprintln!("orders: {error}: {source}"),
        None => eprintln!("orders: {error}"),
    }
    match error {
        ServeError::Database(_) => ExitCode::from(2),
        ServeError::Listen { .. }
        | ServeError::Metrics(_)
        | ServeError::Writer(_)
        | ServeError::Stopped(_)
        | ServeError::Deadline => ExitCode::from(1),
    }
}
