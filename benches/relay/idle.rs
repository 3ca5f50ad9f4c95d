//! What a relay costs that has nothing to do.
//!
//! PostgreSQL counts a session's statements at the latest when the session ends, so two relays are
//! run to their end, one longer than the other: the difference is what the idle time cost.

use std::time::Duration;

use demo::programs::Server;
use sqlx::PgConnection;

use crate::cpu;
use crate::shared::Outcome;

const READY: Duration = Duration::from_secs(60);
/// Until everything is connected, and half a second away from what happens every second.
const SETTLED: Duration = Duration::from_millis(3500);
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Seen {
    pub(crate) statements_per_second: f64,
    /// In percent of a core.
    pub(crate) cpu_share: Option<f64>,
}

/// `start` starts a relay; `postgres` is connected to another database than `database`, the relay's.
pub(crate) async fn measure(
    start: impl Fn() -> Outcome<Server>,
    postgres: &mut PgConnection,
    database: &str,
) -> Outcome<Seen> {
    let mut counts = Vec::new();
    let mut cpu_share = None;
    for idle in [Duration::ZERO, IDLE] {
        let before = statements(postgres, database).await?;
        let mut relay = start()?;
        relay.ready(READY).await?;
        tokio::time::sleep(SETTLED).await;
        let pid = relay.process().id();
        let used = cpu::time(pid);
        tokio::time::sleep(idle).await;
        if !idle.is_zero() {
            cpu_share = cpu::since(pid, used).map(|used| 100.0 * used.as_secs_f64() / idle.as_secs_f64());
        }
        relay.terminate().await?;
        counts.push(statements(postgres, database).await? - before);
    }
    let [short, long] = counts[..] else { return Err("two relays, two counts".into()) };
    Ok(Seen { statements_per_second: (long - short) as f64 / IDLE.as_secs_f64(), cpu_share })
}

/// Transactions so far, each of one statement, of sessions that are gone.
async fn statements(postgres: &mut PgConnection, database: &str) -> Outcome<i64> {
    loop {
        let (sessions, transactions): (i64, i64) = sqlx::query_as(
            "select (select count(*) from pg_stat_activity
                     where datname = stats.datname and backend_type = 'client backend'),
                    xact_commit + xact_rollback
             from pg_stat_database as stats where datname = $1",
        )
        .bind(database)
        .fetch_one(&mut *postgres)
        .await?;
        if sessions == 0 {
            return Ok(transactions);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
