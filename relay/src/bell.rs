//! The bell: a PostgreSQL NOTIFY that says "look now". It only saves waiting; every stage polls
//! anyway, so nothing rests on a bell that is heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use crate::backoff::Backoff;

/// How long a ring may take to come back before the connection counts as deaf.
const PROOF: Duration = Duration::from_secs(5);
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
    listener.listen(channel).await?;
    // Through a pooler in transaction mode LISTEN succeeds and nothing is ever heard: a ring of our
    // own tells. Any other one proves the same.
    ring(pool, channel).await?;
    match tokio::time::timeout(PROOF, listener.try_recv()).await {
        Ok(Ok(Some(_))) => {}
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            tracing::warn!(channel, "NOTIFY is not heard, as through a pooler in transaction mode: polling");
            tokio::time::sleep(DEAF).await;
            return Ok(());
        }
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

/// Rings a channel.
///
/// # Errors
/// Whatever the database says; the listener's polling then finds the work.
pub(crate) async fn ring(pool: &PgPool, channel: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("select pg_notify($1, '')", channel).execute(pool).await.map(drop)
}
