//! Deletes idempotency keys that are past their time. Correctness does not rest on it: an expired
//! key is free whether or not its row is still there. Any number of processes may do it at once.

use std::time::Duration;

use prometheus::IntCounter;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::db;
use crate::db::idempotency::{BATCH, delete_oldest_expired};

/// The mean time between two passes. Keys are kept for 72 hours: a minute is early enough.
const PAUSE: Duration = Duration::from_secs(60);

/// Passes until `stop`: the first at once, the others so that processes started together drift apart.
pub(crate) async fn run(pool: PgPool, deleted: IntCounter, stop: CancellationToken) {
    loop {
        if let Err(error) = run_once(&pool, &deleted, &stop).await {
            tracing::warn!(
                error = db::chain(&error),
                "expired idempotency keys could not be deleted; a later pass will do it"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())) => {}
        }
    }
}

/// One pass: everything expired that no other process is deleting.
async fn run_once(pool: &PgPool, deleted: &IntCounter, stop: &CancellationToken) -> Result<(), sqlx::Error> {
    let mut after = None;
    while !stop.is_cancelled() {
        let batch = delete_oldest_expired(pool, after).await?;
        deleted.inc_by(batch.deleted);
        if batch.deleted < BATCH {
            break;
        }
        after = batch.newest;
    }
    Ok(())
}
