//! Keeps the tables small: removes events that every sink has settled, and old dedup keys, while
//! everything else goes on. Runs beside the publisher, in every process that has one and whether or
//! not it holds the lease: what may be removed is decided by committed state that only ever grows, so
//! nothing rests on being alone, and one that stands by keeps the tables small for one that is busy.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::db::retention;
use crate::metrics::RetentionMetrics;
use crate::notify;
use crate::sink::SinkName;

/// The mean time between two passes.
const PAUSE: Duration = Duration::from_secs(60);
/// After so many removed rows the relay vacuums by itself: it removes faster than autovacuum follows.
const VACUUM_ROWS: u64 = 500_000;

/// How long rows are kept; `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ages {
    /// Events in the outbox.
    pub(crate) outbox: Option<Duration>,
    /// Dedup keys of `notify`.
    pub(crate) inbox: Option<Duration>,
}

/// The task.
#[derive(Debug)]
pub(crate) struct Retention {
    /// Its connections.
    pub pool: PgPool,
    /// The sink of the publisher beside it.
    pub sink: SinkName,
    /// What is old.
    pub ages: Ages,
    /// What it counts.
    pub metrics: RetentionMetrics,
}

impl Retention {
    /// Passes until shutdown: the first at once, the others so that processes drift apart.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut failing = false;
        while !shutdown.is_cancelled() {
            // A pass that is cut off has committed whole statements: the next one goes on from there.
            let passed = tokio::select! {
                passed = self.pass() => passed,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = &passed {
                self.metrics.failures.inc();
                if !failing {
                    tracing::warn!(%error, "old rows could not be removed; it is tried again every minute");
                }
            }
            failing = passed.is_err();
            tokio::select! {
                () = tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Removes everything that is old now.
    async fn pass(&self) -> Result<(), sqlx::Error> {
        if let Some(age) = self.ages.outbox {
            self.outbox(age).await?;
        }
        if let Some(age) = self.ages.inbox {
            self.inbox(age).await?;
        }
        Ok(())
    }

    async fn outbox(&self, age: Duration) -> Result<(), sqlx::Error> {
        let mut unvacuumed = 0;
        loop {
            let began = Instant::now();
            let removed = retention::outbox(&self.pool, self.sink.as_str(), age).await?;
            self.metrics.outbox.inc_by(removed.rows);
            unvacuumed += removed.rows;
            if unvacuumed >= VACUUM_ROWS {
                unvacuumed = 0;
                retention::vacuum_outbox(&self.pool).await?;
            }
            if !removed.more {
                return Ok(());
            }
            rest(began).await;
        }
    }

    async fn inbox(&self, age: Duration) -> Result<(), sqlx::Error> {
        loop {
            let began = Instant::now();
            let removed = retention::inbox(&self.pool, notify::CONSUMER, age).await?;
            self.metrics.inbox.inc_by(removed.rows);
            if !removed.more {
                return Ok(());
            }
            rest(began).await;
        }
    }
}

/// Rests for as long as the work took: the disk belongs to the orders.
async fn rest(began: Instant) {
    tokio::time::sleep(began.elapsed()).await;
}
