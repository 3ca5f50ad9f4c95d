//! What a relay costs that has nothing to do.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use demo::programs::Server;

use crate::cpu;
use crate::shared::Outcome;

const READY: Duration = Duration::from_secs(60);
/// Until everything is connected and each connection has prepared what it asks.
const SETTLED: Duration = Duration::from_secs(5);
/// A multiple of every pause that the stages make.
const IDLE: Duration = Duration::from_secs(30);

/// Has PostgreSQL log each statement with the database that it is for.
pub(crate) const LOGGING: [&str; 3] = [
    "alter system set log_statement = 'all'",
    "alter system set log_line_prefix = 'database=%d '",
    "select pg_reload_conf()",
];
pub(crate) const NO_LOGGING: [&str; 3] =
    ["alter system reset log_statement", "alter system reset log_line_prefix", "select pg_reload_conf()"];

pub(crate) struct Seen {
    pub(crate) statements_per_second: f64,
    /// In percent of a core.
    pub(crate) cpu_share: Option<f64>,
}

/// `log` is that of a PostgreSQL that was told [`LOGGING`], and `database` the relay's own.
pub(crate) async fn measure(mut relay: Server, log: &Path, database: &str) -> Outcome<Seen> {
    relay.ready(READY).await?;
    tokio::time::sleep(SETTLED).await;
    let pid = relay.process().id();
    let (used, from) = (cpu::time(pid), log.metadata()?.len());
    tokio::time::sleep(IDLE).await;
    let statements = statements(log, from, database)?;
    let cpu_share = cpu::since(pid, used).map(|used| 100.0 * used.as_secs_f64() / IDLE.as_secs_f64());
    relay.terminate().await?;
    Ok(Seen { statements_per_second: statements as f64 / IDLE.as_secs_f64(), cpu_share })
}

/// Statements that were run from that place of the log on.
fn statements(log: &Path, from: u64, database: &str) -> Outcome<usize> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    let marks = ["LOG:  execute ", "LOG:  statement: "].map(|mark| format!("database={database} {mark}"));
    let mut count = 0;
    for line in BufReader::new(file).lines() {
        let line = line?;
        count += usize::from(marks.iter().any(|mark| line.starts_with(mark)));
    }
    Ok(count)
}
