//! The bell: a PostgreSQL NOTIFY that says "look now". It only saves waiting; every stage polls
//! anyway, so nothing rests on a bell that is heard.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::backoff::Backoff;

/// How long a ring may take to come back before the connection counts as deaf.
const PROOF: Duration = Duration::from_secs(5);
/// How often the listener's session is looked for on other connections.
const LOOKS: usize = 20;
/// How long until a deaf connection is tried again.
const DEAF: Duration = Duration::from_secs(60);

/// Rung by a publisher that gives its lease up, and by commands that ask something of a publisher.
pub(crate) const LEASE: &str = "relay_lease";
/// Rung by `notify` after new notifications are committed.
pub(crate) const MAIL: &str = "relay_mail";

/// Hears one channel. Register it before the first read: what rings in between is remembered.
#[derive(Debug)]
pub(crate) struct Bell {
    channel: &'static str,
    rung: Arc<Notify>,
    connected: Arc<AtomicBool>,
}

impl Bell {
    /// A bell that hears nothing until [`Bell::listen`] runs.
    #[must_use]
    pub(crate) fn new(channel: &'static str) -> Self {
        Self { channel, rung: Arc::default(), connected: Arc::default() }
    }

    /// Waits for a ring since the last call. Cancelling loses none.
    pub(crate) async fn heard(&self) {
        self.rung.notified().await;
    }

    /// Whether rings can be heard at the moment; if not, poll more often.
    #[must_use]
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Listens for ever, connecting again as often as needed. To be run beside the stage.
    pub(crate) fn listen(&self, pool: PgPool) -> impl Future<Output = ()> + Send + use<> {
        let (channel, rung, connected) = (self.channel, Arc::clone(&self.rung), Arc::clone(&self.connected));
        async move {
            let mut backoff = Backoff::for_outage();
            loop {
                if let Err(error) = hear(&pool, channel, &rung, &connected, &mut backoff).await {
                    tracing::debug!(channel, %error, "the bell is not connected; polling instead");
                }
                connected.store(false, Ordering::Relaxed);
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

async fn hear(
    pool: &PgPool,
    channel: &str,
    rung: &Notify,
    connected: &AtomicBool,
    backoff: &mut Backoff,
) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    if is_shared(pool, &mut listener).await? || !is_heard(pool, channel, &mut listener).await? {
        tracing::warn!(channel, "NOTIFY is not heard, as through a pooler in transaction mode: polling");
        // It takes a LISTEN back, on that server connection if it can.
        drop(listener);
        tokio::time::sleep(DEAF).await;
        return Ok(());
    }
    connected.store(true, Ordering::Relaxed);
    backoff.reset();
    loop {
        // What was rung while the connection was away is not delivered again.
        rung.notify_one();
        if listener.try_recv().await?.is_none() {
            return Ok(());
        }
    }
}

/// Whether other clients meet the listener's session, as behind a pooler in transaction mode. A yes is
/// certain; a no is not, because the pooler chooses. Asked before LISTEN is sent: one that stays behind
/// on a server connection makes a ring fail the statement of whoever is there, for sqlx takes
/// a notification that was not asked for as a breach of the protocol.
async fn is_shared(pool: &PgPool, listener: &mut PgListener) -> Result<bool, sqlx::Error> {
    // A mark of this look alone: nobody else sets it, and it stays wherever the listener has been.
    let mark = format!("relay.session_{}", Uuid::now_v7().simple());
    for _ in 0..LOOKS {
        sqlx::query!("select set_config($1, 'here', false)", mark).fetch_one(&mut *listener).await?;
        let found = sqlx::query_scalar!("select current_setting($1, true)", mark).fetch_one(pool).await?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Listens, and says whether a ring of our own is heard. No other ring proves that: on a server
/// connection where LISTEN was sent before, it may come with the answer to ours, and be the last.
async fn is_heard(pool: &PgPool, channel: &str, listener: &mut PgListener) -> Result<bool, sqlx::Error> {
    listener.listen(channel).await?;
    let word = Uuid::now_v7().to_string();
    let heard = async {
        notify(pool, channel, &word).await?;
        while let Some(ring) = listener.try_recv().await? {
            if ring.payload() == word {
                return Ok(true);
            }
        }
        Err(sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into()))
    };
    match tokio::time::timeout(PROOF, heard).await {
        // A breach of the protocol: it came to the connection that rang, which does not listen.
        Err(_) | Ok(Err(sqlx::Error::Protocol(_))) => Ok(false),
        Ok(heard) => heard,
    }
}

/// Rings a channel.
///
/// # Errors
/// Whatever the database says; the listener's polling then finds the work.
pub(crate) async fn ring(pool: &PgPool, channel: &str) -> Result<(), sqlx::Error> {
    notify(pool, channel, "").await
}

async fn notify(pool: &PgPool, channel: &str, payload: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("select pg_notify($1, $2)", channel, payload).execute(pool).await.map(drop)
}
