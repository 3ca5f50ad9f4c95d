//! Wakes the relay after a commit: one coalesced NOTIFY from a connection of its own. The relay
//! listens on [`OUTBOX_CHANNEL`] and polls anyway, so a lost ring costs latency and nothing else.
//!
//! Never part of an order's transaction: a NOTIFY takes a database-wide lock when it commits.

use std::time::Duration;

use events::OUTBOX_CHANNEL;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::db::{self, session};

/// The shortest time between two rings while commits come faster than they can be rung.
const QUIET: Duration = Duration::from_millis(2);
/// Commits that wait to be rung are told apart up to here: one while the bell is rung is not many.
const WAITING: usize = 2;
/// A ring that takes longer is given up and its connection with it.
const RING_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// Rings without waiting. The task ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Bell(mpsc::Sender<()>);

impl Bell {
    /// The bell and the loop behind it, which the caller has to run.
    pub fn new(options: PgConnectOptions) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, rings) = mpsc::channel(WAITING);
        (Self(sender), answer(options, rings))
    }

    /// Says that something was committed. A ring that already waits stands for this one too.
    pub fn ring(&self) {
        let _ = self.0.try_send(());
    }
}

async fn answer(options: PgConnectOptions, mut rings: mpsc::Receiver<()>) {
    let mut connection = None;
    let mut backoff = FIRST_BACKOFF;
    while rings.recv().await.is_some() {
        // This ring is for all that was committed before it.
        while rings.try_recv().is_ok() {}
        let rung = Instant::now();
        match tokio::time::timeout(RING_DEADLINE, notify(&options, &mut connection)).await {
            Ok(Ok(())) => {
                backoff = FIRST_BACKOFF;
                if rings.len() == WAITING {
                    tokio::time::sleep_until(rung + QUIET).await;
                }
            }
            failed => {
                let cause = match &failed {
                    Ok(Err(error)) => db::chain(error),
                    _ => "no answer".to_owned(),
                };
                connection = None;
                tracing::warn!(error = cause, "the relay could not be woken; it will notice by polling");
                // Nobody waits for this sleep but a later ring; shutdown ends it.
                let pause = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
                backoff = (backoff * 2).min(LAST_BACKOFF);
                if closed_within(&rings, pause).await {
                    return;
                }
            }
        }
    }
}

async fn notify(options: &PgConnectOptions, slot: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
    if slot.is_none() {
        *slot = Some(session::connect(options).await?);
    }
    match slot {
        Some(connection) => session::notify(connection, OUTBOX_CHANNEL).await,
        None => Ok(()),
    }
}

/// Sleeps; `true` at once when nobody can ring any more.
async fn closed_within(rings: &mpsc::Receiver<()>, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        if rings.sender_strong_count() == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}
