//! The API beside its limits, in one run and on one PostgreSQL: what pgbench gets out of the same
//! schema, and what wrk gets out of the API. Prints a table and whether each target is met; a
//! missed target fails nothing, because times depend on the machine.

mod load;
mod place;
mod report;
mod targets;

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::load::{Load, Mode};
use crate::place::Place;
use crate::report::{Point, Report};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the REST API beside pgbench.
#[derive(Debug, Parser)]
struct Cli {
    /// Seconds per point and round
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often every point is visited; the medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// One round of two seconds per point
    #[arg(long)]
    quick: bool,
    /// Only the points whose name contains one of these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
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

async fn measure(cli: &Cli) -> Outcome<()> {
    let (seconds, rounds) = if cli.quick { (2, 1) } else { (cli.seconds, cli.rounds) };
    let mut points: Vec<Point> = loads()
        .into_iter()
        .filter(|load| {
            cli.only.is_empty() || cli.only.iter().any(|part| load.to_string().contains(part.as_str()))
        })
        .map(Point::new)
        .collect();
    let place = Place::start().await?;
    for round in 1..=rounds {
        // There and back again: what warms up or fills up with time favours no point.
        let mut visits: Vec<&mut Point> = points.iter_mut().collect();
        if round % 2 == 0 {
            visits.reverse();
        }
        for point in visits {
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[Kround {round} of {rounds}: {}", point.load);
            }
            point.samples.push(place.visit(&point.load, Duration::from_secs(seconds)).await?);
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let report = Report { seconds, rounds, points };
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report.to_json())?);
    } else {
        print!("{report}");
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.bench {
        // `cargo test --all-targets` comes here too, and must not take minutes.
        eprintln!("this measures: run it with `make bench`");
        return ExitCode::SUCCESS;
    }
    let outcome = measure(&cli).await;
    demo::guard::finish();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("error: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
