//! Visits every point of a bench in every round and tells what came of it. A missed target fails
//! nothing, because times depend on the machine.

use std::fmt;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use super::ending::ended;
use super::figures::median;

/// The options of every bench.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds per point and round
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often every point is visited; the medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// One round of two seconds per point
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only the points whose name contains one of these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// JSON instead of the table
    #[arg(long)]
    pub(super) json: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured and what every visit to it gave.
pub(crate) struct Point<L, S> {
    pub(crate) load: L,
    pub(crate) samples: Vec<S>,
}

impl<L, S> Point<L, S> {
    /// `None` when no visit gave it.
    pub(crate) fn median(&self, of: impl Fn(&S) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(of).collect())
    }
}

/// What the visits to a point gave; nothing when it was left out.
pub(crate) fn samples<L, S>(points: &[Point<L, S>], is: impl Fn(&L) -> bool) -> &[S] {
    points.iter().find(|point| is(&point.load)).map_or(&[], |point| &point.samples)
}

impl Options {
    pub(crate) fn seconds(&self) -> u64 {
        if self.quick { 2 } else { self.seconds }
    }

    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds())
    }

    pub(crate) fn rounds(&self) -> u64 {
        if self.quick { 1 } else { self.rounds }
    }

    /// The points that were not left out.
    pub(crate) fn points<L: fmt::Display, S>(&self, loads: Vec<L>) -> Vec<Point<L, S>> {
        let wanted =
            |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()));
        loads
            .into_iter()
            .filter(|load| wanted(&load.to_string()))
            .map(|load| Point { load, samples: Vec::new() })
            .collect()
    }

    /// Visits every point in every round.
    pub(crate) async fn visit<L: fmt::Display, S>(
        &self,
        points: &mut [Point<L, S>],
        visit: impl AsyncFn(&L) -> Outcome<S>,
    ) -> Outcome<()> {
        let rounds = self.rounds();
        let terminal = std::io::stderr().is_terminal();
        let (begin, end) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        for round in 1..=rounds {
            // There and back again: what warms up or fills up with time favours no point.
            let mut visits: Vec<&mut Point<L, S>> = points.iter_mut().collect();
            if round % 2 == 0 {
                visits.reverse();
            }
            for point in visits {
                eprint!("{begin}round {round} of {rounds}: {}{end}", point.load);
                point.samples.push(visit(&point.load).await?);
            }
        }
        eprint!("{begin}");
        Ok(())
    }

    /// Runs a bench to its end, and ends what it started.
    pub(crate) async fn run(&self, measure: impl Future<Output = Outcome<()>>) -> ExitCode {
        if !self.bench {
            // `cargo test --all-targets` comes here too, and must not take minutes.
            eprintln!("this measures: run it with `make bench`");
            return ExitCode::SUCCESS;
        }
        ended(measure.await)
    }
}
