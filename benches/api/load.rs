//! The two load generators, pgbench and wrk: how each is called and how its figures are read.
//! Neither is ours.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::process::Command;

use crate::shared::Outcome;
use crate::shared::figures::Percentiles;

/// What is done at a point.
pub(crate) enum Load {
    /// `orders` rows of each kind per transaction of `script`.
    Pgbench { name: &'static str, script: &'static str, orders: u32, clients: u32 },
    /// wrk against the API.
    Api { mode: Mode, connections: u32 },
}

/// What wrk sends; `wrk.lua` says more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    New,
    Repeated,
    Mixed,
    Health,
}

impl Mode {
    fn argument(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Repeated => "repeated",
            Self::Mixed => "mixed",
            Self::Health => "health",
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, connections) = match self {
            Self::Pgbench { name, .. } => return f.write_str(name),
            Self::Api { mode: Mode::New, connections } => ("new orders", connections),
            Self::Api { mode: Mode::Repeated, connections } => ("replays", connections),
            Self::Api { mode: Mode::Mixed, connections } => ("90/5/5 new/replay/conflict", connections),
            Self::Api { mode: Mode::Health, connections } => ("GET /healthz", connections),
        };
        write!(f, "API, {what}, {connections} connection{}", if *connections == 1 { "" } else { "s" })
    }
}

/// What a generator saw. Orders or requests per second.
pub(crate) struct Seen {
    pub(crate) rate: f64,
    pub(crate) latency: Percentiles,
    /// Answers that were not the ones asked for, and connections that broke.
    pub(crate) errors: u64,
}

/// The last line of `wrk.lua`.
#[derive(Deserialize)]
struct WrkResult {
    requests: u64,
    micros: u64,
    p50: u32,
    p99: u32,
    p999: u32,
    refused: u64,
    broken: u64,
}

/// Runs wrk. `tag` makes the keys differ from those of any other run on the same database.
pub(crate) async fn wrk(
    script: &Path,
    url: &str,
    mode: Mode,
    connections: u32,
    tag: &str,
    duration: Duration,
) -> Outcome<Seen> {
    let threads = connections.min(2).to_string();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t", &threads, "-c", &connections.to_string(), "--timeout", "10s"])
        .args(["-d", &format!("{}s", duration.as_secs()), "-s"])
        .arg(script)
        .args([url, "--", tag, mode.argument()]);
    let output = text(wrk).await?;
    let line = output.lines().find_map(|line| line.strip_prefix("RESULT "));
    let result: WrkResult = serde_json::from_str(line.ok_or("wrk did not say what came of it")?)?;
    let milliseconds = |micros: u32| f64::from(micros) / 1e3;
    Ok(Seen {
        rate: result.requests as f64 / (result.micros as f64 / 1e6),
        latency: Percentiles {
            p50: milliseconds(result.p50),
            p99: milliseconds(result.p99),
            p999: milliseconds(result.p999),
        },
        errors: result.refused + result.broken,
    })
}

/// Runs pgbench. Its percentiles come from its log of every transaction, which it writes into
/// `directory`, an empty one.
pub(crate) async fn pgbench(
    script: &Path,
    directory: &Path,
    url: &str,
    orders: u32,
    clients: u32,
    duration: Duration,
) -> Outcome<Seen> {
    // A counter that no later run on the same database meets again.
    let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let mut pgbench = Command::new(pgbench_file()?);
    pgbench
        .args(["--no-vacuum", "--protocol=prepared", "--log"])
        .args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()])
        .args(["-T", &duration.as_secs().to_string()])
        .args(["-D", &format!("orders={orders}"), "-D", &format!("n={first}"), "-f"])
        .arg(script)
        .arg(url)
        .current_dir(directory);
    let output = text(pgbench).await?;
    let tps =
        output.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    let mut micros = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let log = std::fs::read_to_string(file?.path())?;
        // client, transaction, microseconds, …
        micros.extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
    }
    let rate = tps.ok_or("pgbench did not say how many transactions it ran")? * f64::from(orders);
    Ok(Seen { rate, latency: Percentiles::of(micros), errors: 0 })
}

/// Debian keeps it beside the server, outside the search path.
fn pgbench_file() -> Outcome<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join("bin/pgbench")))
        .filter(|file| file.is_file())
        .collect();
    found.sort();
    Ok(found.pop().unwrap_or_else(|| PathBuf::from("pgbench")))
}

async fn text(mut command: Command) -> Outcome<String> {
    let name = command.as_std().get_program().display().to_string();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output =
        output.map_err(|error| format!("{name} cannot be started ({error}): `make bench` installs it"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
