//! Cancellations: one short transaction each, several at a time, because each is about an order
//! of its own. Concurrent ones of the same order meet at its row lock.

use std::sync::Arc;

use sqlx::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::settle::{Settler, not_sent};
use super::{Job, KEY_WAIT, Reply, Sent, WriteError};
use crate::db::cancel::{Cancelled, cancel};
use crate::db::{self, Failure, session};
use crate::domain::{CancelOrder, Fingerprint, Operation, Outcome};

/// Transactions at the same time; each holds a connection.
const MAX_RUNNING: usize = 8;
/// Deadlocks, lost connections and keys that came free, in all.
const MAX_ROUNDS: u32 = 5;

/// Runs until nobody can send any more and everything accepted is answered.
pub(super) async fn run(settler: Arc<Settler>, mut queue: mpsc::Receiver<Job<CancelOrder>>) {
    let mut running = JoinSet::new();
    while let Some(job) = queue.recv().await {
        while running.len() >= MAX_RUNNING {
            running.join_next().await;
        }
        let settler = settler.clone();
        running.spawn(async move {
            let reply = settle(&settler, &job.request).await;
            job.finish(reply);
        });
    }
    while running.join_next().await.is_some() {}
}

async fn settle(settler: &Settler, request: &CancelOrder) -> Reply {
    let mut sent = Sent::No;
    for _ in 0..MAX_ROUNDS {
        let error = match settler.within(attempt(settler, request)).await {
            Ok(Cancelled::Done(answer)) => {
                settler.bell.ring();
                return Ok(Outcome::Done(answer));
            }
            Ok(Cancelled::NoSuchOrder) => return Ok(Outcome::NoSuchOrder),
            Ok(Cancelled::KeyTaken) => match replay(settler, request, sent).await? {
                Some(outcome) => return Ok(outcome),
                None => continue,
            },
            Err(error) => error,
        };
        match Failure::of(&error) {
            Failure::Contention => {}
            Failure::Gone if sent == Sent::No => sent = Sent::Unknown,
            Failure::KeyHeld => {
                return match (replay(settler, request, sent).await?, sent) {
                    (Some(outcome), _) => Ok(outcome),
                    (None, Sent::No) => Ok(Outcome::InProgress),
                    (None, Sent::Unknown) => Err(WriteError::OutcomeUnknown),
                };
            }
            Failure::Gone | Failure::Locked | Failure::Unavailable => {
                tracing::warn!(error = db::chain(&error), "an order could not be cancelled now");
                return Err(sent.unavailable());
            }
            Failure::Permanent => {
                tracing::error!(error = db::chain(&error), "an order could not be cancelled");
                return Err(WriteError::Failed);
            }
        }
    }
    Err(sent.unavailable())
}

/// The whole transaction. Anything but `Done` is rolled back.
async fn attempt(settler: &Settler, request: &CancelOrder) -> Result<Cancelled, Error> {
    let mut transaction = settler.waiters.begin().await.map_err(not_sent)?;
    session::set_local_lock_timeout(&mut transaction, KEY_WAIT).await.map_err(not_sent)?;
    let cancelled = cancel(&mut transaction, request).await?;
    match cancelled {
        Cancelled::Done(_) => transaction.commit().await?,
        Cancelled::KeyTaken | Cancelled::NoSuchOrder => transaction.rollback().await.map_err(not_sent)?,
    }
    Ok(cancelled)
}

async fn replay(settler: &Settler, request: &CancelOrder, sent: Sent) -> Result<Option<Outcome>, WriteError> {
    let fingerprint = Fingerprint::cancel(request.order_id);
    let stored = settler.lookup(&request.client, &request.key, sent).await?;
    Ok(stored.map(|stored| stored.judge(Operation::Cancel, &fingerprint, None)))
}
