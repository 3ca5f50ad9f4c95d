//! The table that a publisher reads: our own outbox, or one of another program.

use std::ops::RangeInclusive;
use std::time::Duration;

use sqlx::PgPool;

use super::core::Checkpoint;
use super::frontier::Holders;
use super::gate::Retry;
use crate::db::dead;
use crate::db::foreign::{ForeignTable, Unreadable};
use crate::db::lease::{self, Epoch, Fenced};
use crate::db::outbox::{self, Read};
use crate::foreign::ForeignOutbox;
use crate::sink::SinkName;

/// Our own outbox, as `relay_sinks.source` names it.
pub(crate) const OUTBOX: &str = "outbox";

/// Which table a publisher is to read.
#[derive(Clone, Debug)]
pub(crate) enum Outbox {
    /// Our own.
    Orders,
    /// One of another program.
    Foreign(ForeignOutbox),
}

impl Outbox {
    /// Looks at the table; our own is what the migrations say.
    ///
    /// # Errors
    /// [`Unreadable`]
    pub(crate) async fn open(&self, pool: &PgPool) -> Result<Source, Unreadable> {
        match self {
            Self::Orders => Ok(Source::Orders),
            Self::Foreign(outbox) => ForeignTable::open(pool, outbox).await.map(Source::Foreign),
        }
    }

    /// Whether who writes to it rings the bell after a commit.
    #[must_use]
    pub(crate) fn rings(&self) -> bool {
        matches!(self, Self::Orders)
    }
}

/// A table that can be read.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Our own outbox.
    Orders,
    /// One of another program.
    Foreign(ForeignTable),
}

impl Source {
    /// As `relay_sinks.source` names it.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Orders => OUTBOX,
            Self::Foreign(table) => table.name(),
        }
    }

    /// The rows in `open` and those above `above`, ascending: `limit` at most, and no more once `bytes` are
    /// spent. None from a server that started at another time than that of `epoch`.
    ///
    /// # Errors
    /// Whatever the database says; the read can be repeated.
    pub(crate) async fn read(
        &self,
        pool: &PgPool,
        epoch: &Epoch,
        open: &[RangeInclusive<i64>],
        above: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Read, sqlx::Error> {
        match self {
            Self::Orders => outbox::read(pool, Some(epoch.server_started()), open, above, limit, bytes).await,
            Self::Foreign(table) => table.read(pool, epoch.server_started(), open, above, limit, bytes).await,
        }
    }

    /// The transactions that hold the writers' lock now.
    ///
    /// # Errors
    /// Whatever the database says; the question can be repeated.
    pub(crate) async fn lock_holders(&self, pool: &PgPool) -> Result<Holders, sqlx::Error> {
        outbox::lock_holders(pool, self.name()).await
    }

    /// The dead letters that are to be published again, as [`dead::retries`].
    ///
    /// # Errors
    /// Whatever the database says; the read can be repeated.
    pub(crate) async fn retries(
        &self,
        pool: &PgPool,
        sink: &SinkName,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Retry>, sqlx::Error> {
        let topic = |aggregate_type: &str| match self {
            // The orders' dead letters have no type of their own to name a topic by.
            Self::Orders => String::new(),
            Self::Foreign(table) => table.topic(aggregate_type),
        };
        dead::retries(pool, sink, topic, limit, bytes).await
    }

    /// Commits that events are settled, and which of them are parked, in one transaction.
    ///
    /// # Errors
    /// Whatever the database says; the checkpoint can be repeated.
    pub(crate) async fn checkpoint(
        &self,
        pool: &PgPool,
        sink: &SinkName,
        epoch: &Epoch,
        ttl: Duration,
        checkpoint: &Checkpoint,
    ) -> Result<Fenced, sqlx::Error> {
        match self {
            Self::Foreign(table) if !checkpoint.parked.is_empty() => {
                let mut transaction = pool.begin().await?;
                table.park(&mut transaction, sink, &checkpoint.parked).await?;
                let settled = Checkpoint { parked: Vec::new(), ..checkpoint.clone() };
                let fenced = lease::checkpoint(&mut *transaction, sink, epoch, ttl, &settled).await?;
                // Who has lost the lease parks nothing either.
                if fenced == Fenced::Held {
                    transaction.commit().await?;
                }
                Ok(fenced)
            }
            _ => lease::checkpoint(pool, sink, epoch, ttl, checkpoint).await,
        }
    }
}
