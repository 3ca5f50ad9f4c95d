//! Erases addresses of mails that are long done with. Nothing else in the pipeline keeps them but the
//! order itself, for which `orders erase` is there.

use std::time::Duration;

use sqlx::PgPool;

use crate::db::notifications;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60);

/// Erases for ever. To be run beside the stage; several of them share the work.
pub(super) async fn run(pool: &PgPool, keep: Duration) {
    loop {
        match notifications::erase(pool, keep).await {
            Ok(0) => tokio::time::sleep(EVERY).await,
            Ok(erased) => tracing::info!(erased, "erased the addresses of e-mails that are done with"),
            Err(error) => {
                tracing::debug!(%error, "no addresses erased this time");
                tokio::time::sleep(EVERY).await;
            }
        }
    }
}
