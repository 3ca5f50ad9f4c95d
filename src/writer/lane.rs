//! The one owner of the queue: takes everything that waits as one statement on a connection of
//! its own. Idle, a batch is one request; busy, it fills by itself, so there is no timer.
//!
//! Never waits for long: what has to wait for another transaction is handed to the settler.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use super::settle::Settler;
use super::{Job, STATEMENT_DEADLINE, Sent, WriteError};
use crate::bell::Bell;
use crate::db::create::{Claims, create};
use crate::db::{self, Failure, session};
use crate::domain::{NewOrder, Outcome};
use crate::telemetry::SPANS;

/// The most orders in one statement; past this, larger batches are hardly faster but fail together.
const MAX_BATCH: usize = 128;
/// How long the whole lane may wait for a foreign transaction.
const LANE_LOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a lock on a whole table (a migration, say) is waited for; nobody could do better elsewhere.
const TABLE_LOCK_WAIT: Duration = Duration::from_secs(2);
/// Requests that wait for a foreign transaction at the same time.
const MAX_STRAGGLERS: usize = 64;
/// Groups of replays that are looked up at the same time.
const MAX_LOOKUPS: usize = 8;
/// Deadlocks and serialisation failures in a row that are run again.
const MAX_CONTENTIONS: u32 = 5;
/// How long a statement whose outcome is unknown waits for the database to come back.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Why a statement did not run to its end.
#[derive(Clone, Copy, Debug)]
enum Stopped {
    /// A foreign transaction holds one of the keys.
    KeyHeld(Sent),
    /// For all of the batch.
    Error(WriteError),
    /// One of the batch cannot be written; the error was not logged yet if there are others.
    Refused(Sent),
}

pub(super) struct Lane {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    settler: Arc<Settler>,
    bell: Bell,
    batch_size: Histogram,
    stragglers: Arc<Semaphore>,
    lookups: JoinSet<()>,
    waits: JoinSet<()>,
    /// Where look-ups and waits run: not on the lane's own thread.
    others: Handle,
}

impl Lane {
    pub(super) fn new(
        options: PgConnectOptions,
        settler: Arc<Settler>,
        bell: Bell,
        batch_size: Histogram,
        others: Handle,
    ) -> Self {
        Self {
            options,
            connection: None,
            settler,
            bell,
            batch_size,
            stragglers: Arc::new(Semaphore::new(MAX_STRAGGLERS)),
            lookups: JoinSet::new(),
            waits: JoinSet::new(),
            others,
        }
    }

    /// Runs until nobody can send any more and everything accepted is answered.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job<NewOrder>>) {
        let mut jobs = Vec::with_capacity(MAX_BATCH);
        while queue.recv_many(&mut jobs, MAX_BATCH).await > 0 {
            self.batch_size.observe(jobs.len() as f64);
            let batch = tracing::info_span!(target: SPANS, "batch", orders = jobs.len());
            for job in &jobs {
                batch.follows_from(&job.span);
            }
            self.batch(std::mem::take(&mut jobs)).instrument(batch).await;
            while self.waits.try_join_next().is_some() {}
            while self.lookups.try_join_next().is_some() {}
            while self.lookups.len() >= MAX_LOOKUPS {
                self.lookups.join_next().await;
            }
        }
        while self.lookups.join_next().await.is_some() {}
        while self.waits.join_next().await.is_some() {}
    }

    async fn batch(&mut self, jobs: Vec<Job<NewOrder>>) {
        let (firsts, repeats) = one_per_key(jobs);
        let mut losers: Vec<_> = repeats.into_iter().map(|job| (job, Sent::No)).collect();
        match self.write(&firsts, Sent::No).await {
            Ok((claims, sent)) => losers.extend(self.finish(firsts, &claims, sent)),
            Err(Stopped::KeyHeld(sent) | Stopped::Refused(sent)) if firsts.len() > 1 => {
                for job in firsts {
                    losers.extend(self.alone(job, sent).await);
                }
            }
            Err(stopped) => {
                for job in firsts {
                    self.stop(job, stopped);
                }
            }
        }
        if !losers.is_empty() {
            let settler = self.settler.clone();
            self.lookups.spawn_on(async move { settler.all(losers).await }, &self.others);
        }
    }

    /// One request of a batch that failed, so that one bad request fails alone.
    async fn alone(&mut self, job: Job<NewOrder>, sent: Sent) -> Option<(Job<NewOrder>, Sent)> {
        let jobs = vec![job];
        match self.write(&jobs, sent).await {
            Ok((claims, sent)) => self.finish(jobs, &claims, sent).pop(),
            Err(stopped) => {
                for job in jobs {
                    self.stop(job, stopped);
                }
                None
            }
        }
    }

    /// Answers those who got their key; gives back the others.
    fn finish(&self, jobs: Vec<Job<NewOrder>>, claims: &Claims, sent: Sent) -> Vec<(Job<NewOrder>, Sent)> {
        if !claims.is_empty() {
            self.bell.ring();
        }
        let mut losers = Vec::new();
        for job in jobs {
            let key = (job.request.client.as_str().to_owned(), job.request.key.as_str().to_owned());
            if claims.contains(&key) {
                // A client that is gone does not need it.
                let _ = job.reply.send(Ok(Outcome::Done(job.request.answer)));
            } else {
                losers.push((job, sent));
            }
        }
        losers
    }

    fn stop(&mut self, job: Job<NewOrder>, stopped: Stopped) {
        match stopped {
            Stopped::Error(error) => job.finish(Err(error)),
            Stopped::Refused(_) => job.finish(Err(WriteError::Failed)),
            Stopped::KeyHeld(sent) => match self.stragglers.clone().try_acquire_owned() {
                Ok(permit) => {
                    let settler = self.settler.clone();
                    let wait = async move {
                        settler.one(job, sent).await;
                        drop(permit);
                    };
                    self.waits.spawn_on(wait, &self.others);
                }
                // Enough others wait: this one has waited as long as the lane does.
                Err(_) => job.finish(match sent {
                    Sent::No => Ok(Outcome::InProgress),
                    Sent::Unknown => Err(WriteError::OutcomeUnknown),
                }),
            },
        }
    }

    /// Runs the statement. A broken connection leaves its outcome unknown: it is run once more with
    /// the same ids, which finds our own row if there is one.
    async fn write(&mut self, jobs: &[Job<NewOrder>], mut sent: Sent) -> Result<(Claims, Sent), Stopped> {
        let orders: Vec<&NewOrder> = jobs.iter().map(|job| &job.request).collect();
        let began = Instant::now();
        let mut contentions = 0;
        let mut runs_lost = 0;
        loop {
            let connection = match self.connection(sent).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(
                        error = db::chain(&error),
                        orders = orders.len(),
                        "the database cannot be reached"
                    );
                    return Err(Stopped::Error(sent.unavailable()));
                }
            };
            let run = tokio::time::timeout(STATEMENT_DEADLINE, create(connection, &orders)).await;
            let error = match run {
                Ok(Ok(claims)) => return Ok((claims, sent)),
                Ok(Err(error)) => error,
                Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
            };
            let failure = Failure::of(&error);
            match failure {
                Failure::KeyHeld => return Err(Stopped::KeyHeld(sent)),
                Failure::Contention if contentions < MAX_CONTENTIONS => {
                    contentions += 1;
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=1 << contentions))).await;
                    continue;
                }
                Failure::Locked if began.elapsed() < TABLE_LOCK_WAIT => continue,
                Failure::Gone => {
                    self.connection = None;
                    sent = Sent::Unknown;
                    runs_lost += 1;
                    if runs_lost == 1 {
                        tracing::warn!(
                            error = db::chain(&error),
                            orders = orders.len(),
                            "the connection broke; running the orders again"
                        );
                        continue;
                    }
                }
                Failure::Unavailable => self.connection = None,
                Failure::Contention | Failure::Locked | Failure::Permanent => {}
            }
            if failure == Failure::Permanent {
                if orders.len() == 1 {
                    tracing::error!(error = db::chain(&error), "an order could not be written");
                }
                return Err(Stopped::Refused(sent));
            }
            tracing::warn!(
                error = db::chain(&error),
                orders = orders.len(),
                "orders could not be written now"
            );
            return Err(Stopped::Error(sent.unavailable()));
        }
    }

    /// The lane's connection. Only a request whose outcome is unknown is worth waiting for one.
    async fn connection(&mut self, sent: Sent) -> Result<&mut PgConnection, sqlx::Error> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(25);
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => loop {
                match session::writing(&self.options, LANE_LOCK_TIMEOUT).await {
                    Ok(connection) => break connection,
                    Err(_) if sent == Sent::Unknown && began.elapsed() < RECONNECT_DEADLINE => {
                        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                        pause = (pause * 2).min(Duration::from_millis(400));
                    }
                    Err(error) => return Err(error),
                }
            },
        };
        Ok(self.connection.insert(connection))
    }
}

/// The first request of each key, and the repeats, which are answered afterwards.
fn one_per_key(jobs: Vec<Job<NewOrder>>) -> (Vec<Job<NewOrder>>, Vec<Job<NewOrder>>) {
    let mut seen = HashSet::with_capacity(jobs.len());
    jobs.into_iter().partition(|job| seen.insert((job.request.client.clone(), job.request.key.clone())))
}
