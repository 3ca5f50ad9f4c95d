//! The API beside its limits, in one run and on one PostgreSQL: what pgbench gets out of the same
//! schema, and what wrk gets out of the API. Prints a table and whether each target is met.

mod load;
mod place;
#[path = "../shared/mod.rs"]
mod shared;
mod targets;

use std::process::ExitCode;

use clap::Parser;

use crate::load::{Load, Mode};
use crate::place::{Place, Sample};
use crate::shared::Outcome;
use crate::shared::report::{Column, Report};
use crate::shared::run::Options;

/// Measures the REST API beside pgbench.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// In the order in which they are visited, so that what is compared lies close together.
fn loads() -> Vec<Load> {
    use Mode::{Health, Mixed, New, Repeated};
    let pgbench = |name, script, orders, clients| Load::Pgbench { name, script, orders, clients };
    let api = |mode, connections| Load::Api { mode, connections };
    let (one, four) = (include_str!("orders.sql"), include_str!("four_statements.sql"));
    vec![
        pgbench("pgbench, one statement, 1 client", one, 1, 1),
        api(Health, 1),
        api(New, 1),
        pgbench("pgbench, four statements, 32 clients", four, 1, 32),
        api(New, 16),
        pgbench("pgbench, one statement, 32 clients", one, 1, 32),
        api(New, 128),
        api(New, 1024),
        pgbench("pgbench, 50 orders a statement, 32 clients", one, 50, 32),
        api(Repeated, 128),
        api(Mixed, 128),
        api(New, 64),
        api(New, 256),
    ]
}

const COLUMNS: &[Column<Sample>] = &[
    Column { heading: "per second", name: "ratePerSecond", digits: 0, of: |s| Some(s.seen.rate) },
    Column { heading: "p50", name: "p50Milliseconds", digits: 2, of: |s| Some(s.seen.latency.p50) },
    Column { heading: "p99", name: "p99Milliseconds", digits: 2, of: |s| Some(s.seen.latency.p99) },
    Column { heading: "p99.9", name: "p999Milliseconds", digits: 2, of: |s| Some(s.seen.latency.p999) },
    Column { heading: "commits/order", name: "commitsPerOrder", digits: 3, of: |s| s.commits_per_order },
    Column { heading: "MB", name: "memoryMegabytes", digits: 0, of: |s| s.memory },
];

async fn measure(options: &Options) -> Outcome<()> {
    let mut points = options.points(loads());
    if points.is_empty() {
        return Ok(());
    }
    let place = Place::start().await?;
    options.visit(&mut points, async |load| place.visit(load, options.duration()).await).await?;
    let targets = targets::all(&points);
    Report { bench: "API", options, points, columns: COLUMNS, errors: |sample| sample.seen.errors, targets }
        .print()
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Cli::parse().options;
    options.run(measure(&options)).await
}
