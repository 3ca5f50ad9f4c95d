//! All SQL of the relay. Every statement stands beside the invariant that it keeps.

pub(crate) mod adoption;
pub(crate) mod audit;
pub(crate) mod changes;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod foreign;
pub(crate) mod gauges;
pub(crate) mod inbox;
pub(crate) mod lease;
pub(crate) mod notifications;
pub(crate) mod outbox;
pub(crate) mod replays;
pub(crate) mod retention;
pub(crate) mod sinks;
pub(crate) mod status;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// A pool for one stage. Connections are not pinged before use: every caller copes with a broken
/// one anyway, and a ping would double the round trips.
#[must_use]
pub(crate) fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(options)
}
