//! Requests that did not get their key at once: looks up whose it is, waits for its owner, and
//! writes the order after all when the owner goes away. One at a time, off the lane.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::PgPool;
use tokio::time::Instant;

use super::{Job, KEY_WAIT, Reply, STATEMENT_DEADLINE, Sent, WriteError};
use crate::bell::Bell;
use crate::db::idempotency::{self, Stored};
use crate::db::{self, Failure, create, session};
use crate::domain::{ClientId, IdempotencyKey, NewOrder, Operation, Outcome};

/// Each round finds the key taken and then free again, which needs the janitor or a rollback.
const MAX_ROUNDS: u32 = 8;
/// What is left of the wait is at least this much, however long the queue was.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

pub(super) struct Settler {
    readers: PgPool,
    pub(super) waiters: PgPool,
    pub(super) bell: Bell,
}

impl Settler {
    pub(super) fn new(readers: PgPool, waiters: PgPool, bell: Bell) -> Self {
        Self { readers, waiters, bell }
    }

    /// Answers requests that lost their key to a committed one, with a single look-up.
    pub(super) async fn all(&self, losers: Vec<(Job<NewOrder>, Sent)>) {
        let keys: Vec<_> = losers.iter().map(|(job, _)| (&job.request.client, &job.request.key)).collect();
        let stored = match self.within(idempotency::lookup(&self.readers, &keys)).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(
                    error = db::chain(&error),
                    requests = losers.len(),
                    "stored answers could not be read"
                );
                for (job, sent) in losers {
                    job.finish(Err(sent.unavailable()));
                }
                return;
            }
        };
        let mut others = Vec::new();
        for (job, sent) in losers {
            let key = (job.request.client.as_str().to_owned(), job.request.key.as_str().to_owned());
            match stored.get(&key).filter(|stored| !stored.expired) {
                Some(stored) => {
                    let outcome = judge(&job.request, stored.clone());
                    job.finish(Ok(outcome));
                }
                None => others.push(self.one(job, sent)),
            }
        }
        join_all(others).await;
    }

    /// Answers one request, waiting for whoever holds its key.
    pub(super) async fn one(&self, job: Job<NewOrder>, sent: Sent) {
        let reply = self.settle(&job.request, job.accepted + KEY_WAIT, sent).await;
        job.finish(reply);
    }

    async fn settle(&self, order: &NewOrder, deadline: Instant, mut sent: Sent) -> Reply {
        for _ in 0..MAX_ROUNDS {
            if let Some(stored) = self.lookup(&order.client, &order.key, sent).await? {
                return Ok(judge(order, stored));
            }
            let wait = deadline.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT);
            let error = match self.within(self.create(order, wait)).await {
                Ok(true) => {
                    self.bell.ring();
                    return Ok(Outcome::Done(order.answer.clone()));
                }
                Ok(false) => continue,
                Err(error) => error,
            };
            match Failure::of(&error) {
                Failure::Contention => {}
                Failure::Gone if sent == Sent::No => sent = Sent::Unknown,
                Failure::KeyHeld => {
                    // Its owner may have committed in this moment.
                    return match (self.lookup(&order.client, &order.key, sent).await?, sent) {
                        (Some(stored), _) => Ok(judge(order, stored)),
                        (None, Sent::No) => Ok(Outcome::InProgress),
                        (None, Sent::Unknown) => Err(WriteError::OutcomeUnknown),
                    };
                }
                Failure::Gone | Failure::Locked | Failure::Unavailable => {
                    tracing::warn!(error = db::chain(&error), "an order could not be written now");
                    return Err(if Failure::of(&error) == Failure::Gone {
                        WriteError::OutcomeUnknown
                    } else {
                        sent.unavailable()
                    });
                }
                Failure::Permanent => {
                    tracing::error!(error = db::chain(&error), "an order could not be written");
                    return Err(WriteError::Failed);
                }
            }
        }
        Err(sent.unavailable())
    }

    /// The key's row unless it is past its time, in which case it is removed.
    pub(super) async fn lookup(
        &self,
        client: &ClientId,
        key: &IdempotencyKey,
        sent: Sent,
    ) -> Result<Option<Stored>, WriteError> {
        let look = async {
            let stored = idempotency::lookup(&self.readers, &[(client, key)]).await?.into_values().next();
            if stored.as_ref().is_some_and(|stored| stored.expired) {
                idempotency::delete_expired(&self.readers, client, key).await?;
                return Ok(None);
            }
            Ok(stored)
        };
        self.within(look).await.map_err(|error: sqlx::Error| {
            tracing::warn!(error = db::chain(&error), "a stored answer could not be read");
            sent.unavailable()
        })
    }

    /// The same statement as the lane's, for one order and with a longer wait for its key.
    async fn create(&self, order: &NewOrder, wait: Duration) -> Result<bool, sqlx::Error> {
        let mut transaction = self.waiters.begin().await.map_err(not_sent)?;
        session::set_local_lock_timeout(&mut transaction, wait).await.map_err(not_sent)?;
        let claims = create::create(&mut transaction, &[order]).await?;
        transaction.commit().await?;
        Ok(!claims.is_empty())
    }

    /// Bounds a wait for the database.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        tokio::time::timeout(STATEMENT_DEADLINE, work)
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
    }
}

/// A connection that broke before anything was written leaves nothing unknown.
pub(super) fn not_sent(error: sqlx::Error) -> sqlx::Error {
    match Failure::of(&error) {
        Failure::Gone => sqlx::Error::PoolTimedOut,
        _ => error,
    }
}

fn judge(order: &NewOrder, stored: Stored) -> Outcome {
    stored.judge(Operation::Create, &order.request.fingerprint, Some(order.order_id))
}
