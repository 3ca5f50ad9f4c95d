//! The relay beside its limits, in one run on one PostgreSQL and one Kafka: what a bare loop around
//! the client library gets out of the same messages, and what the poller does that people write
//! themselves. Prints a table and whether each target is met.

mod bare;
mod commits;
mod cpu;
mod idle;
mod kafka;
mod outbox;
mod place;
mod poller;
#[path = "../shared/mod.rs"]
mod shared;
mod targets;

use std::fmt;
use std::process::ExitCode;

use clap::Parser;

use crate::outbox::Shape;
use crate::place::Place;
use crate::shared::Outcome;
use crate::shared::figures::Percentiles;
use crate::shared::report::{Column, Report};
use crate::shared::run::Options;

/// Measures the relay beside a bare producer loop and a plain poller.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Events that a drain begins with; a tenth of it with --quick
    #[arg(long, env = "BENCH_EVENTS", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(20_000..=20_000_000))]
    events: i64,
    /// The best rate of the API, orders a second: at half of it the latencies are measured too
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    api_rate: u64,
}

/// What is done at a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// The events of a full outbox, produced from memory.
    Bare(Shape),
    /// The same in a program that has the relay's allocator.
    BareJemalloc(Shape),
    /// The relay on a full outbox.
    Drain { shape: Shape, old_snapshot: bool },
    /// The poller on a table of the same rows.
    Poller { old_snapshot: bool },
    /// The relay on an outbox that is written to, `at_once` events in a transaction at most.
    Commits { per_second: u64, at_once: usize },
    /// The same without a relay, single commits: who commits an event produces it.
    Direct { per_second: u64 },
    /// Two relays, of which the one that publishes is killed, or asked to end.
    Takeover { killed: bool },
    /// The relay on an empty outbox: `relay run`, or the publisher alone.
    Idle { all_stages: bool },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = |old_snapshot| if old_snapshot { " with an old snapshot held" } else { "" };
        match *self {
            Self::Bare(shape) => write!(f, "bare loop: {shape}"),
            Self::BareJemalloc(shape) => write!(f, "bare loop with jemalloc: {shape}"),
            Self::Drain { shape, old_snapshot } => write!(f, "relay: {shape}{}", held(old_snapshot)),
            Self::Poller { old_snapshot } => write!(f, "poller: {}{}", Shape::One, held(old_snapshot)),
            Self::Commits { per_second, at_once: 1 } => write!(f, "relay: {per_second} commits a second"),
            Self::Commits { per_second, .. } => write!(f, "relay: {per_second} events a second in groups"),
            Self::Direct { per_second } => write!(f, "no relay: {per_second} commits a second"),
            Self::Takeover { killed: true } => write!(f, "takeover after SIGKILL, 200 commits a second"),
            Self::Takeover { killed: false } => write!(f, "takeover after SIGTERM, 200 commits a second"),
            Self::Idle { all_stages: false } => write!(f, "idle publisher: statements"),
            Self::Idle { all_stages: true } => write!(f, "idle relay with all stages: statements"),
        }
    }
}

/// A visit to a point.
struct Sample {
    /// Events; statements when the relay is idle.
    per_second: f64,
    /// From the return of the commit to Kafka's acknowledgement.
    to_ack: Option<Percentiles>,
    /// From the return of the commit to the receipt by a consumer.
    to_consumer: Option<Percentiles>,
    /// Processor time of the program that is measured, in microseconds.
    cpu_per_event: Option<f64>,
    /// The same as a share of one core, in percent.
    cpu_share: Option<f64>,
    /// The most resident memory of the relay that was seen, in megabytes.
    memory: Option<f64>,
    /// Events that did not come, or came more than once.
    errors: u64,
}

const COLUMNS: &[Column<Sample>] = &[
    Column { heading: "per second", name: "perSecond", digits: 0, of: |s| Some(s.per_second) },
    Column { heading: "ack p50", name: "ackP50Milliseconds", digits: 2, of: |s| Some(s.to_ack?.p50) },
    Column { heading: "ack p99", name: "ackP99Milliseconds", digits: 2, of: |s| Some(s.to_ack?.p99) },
    Column { heading: "ack p99.9", name: "ackP999Milliseconds", digits: 2, of: |s| Some(s.to_ack?.p999) },
    Column { heading: "consumer p50", name: "p50Milliseconds", digits: 2, of: |s| Some(s.to_consumer?.p50) },
    Column { heading: "p99", name: "p99Milliseconds", digits: 2, of: |s| Some(s.to_consumer?.p99) },
    Column { heading: "p99.9", name: "p999Milliseconds", digits: 2, of: |s| Some(s.to_consumer?.p999) },
    Column { heading: "CPU µs/event", name: "cpuMicrosecondsPerEvent", digits: 2, of: |s| s.cpu_per_event },
    Column { heading: "% of a core", name: "cpuPercent", digits: 2, of: |s| s.cpu_share },
    Column { heading: "MB", name: "memoryMegabytes", digits: 0, of: |s| s.memory },
];

/// In the order in which they are visited, so that what is compared lies close together.
fn loads(api_rate: u64) -> Vec<Load> {
    let drain = |shape| Load::Drain { shape, old_snapshot: false };
    let commits = |per_second| Load::Commits { per_second, at_once: 1 };
    vec![
        drain(Shape::Hot),
        drain(Shape::One),
        Load::Bare(Shape::One),
        Load::BareJemalloc(Shape::One),
        Load::BareJemalloc(Shape::Five),
        Load::Bare(Shape::Five),
        drain(Shape::Five),
        drain(Shape::Thousand),
        Load::Poller { old_snapshot: false },
        Load::Poller { old_snapshot: true },
        Load::Drain { shape: Shape::One, old_snapshot: true },
        commits(500),
        commits(2_000),
        commits(5_000),
        Load::Direct { per_second: 5_000 },
        // What the API does at such a rate: single commits would be limited by the disk.
        Load::Commits { per_second: api_rate / 2, at_once: 64 },
        Load::Takeover { killed: true },
        Load::Takeover { killed: false },
        Load::Idle { all_stages: false },
        Load::Idle { all_stages: true },
    ]
}

async fn measure(cli: &Cli) -> Outcome<()> {
    let options = &cli.options;
    let mut points = options.points(loads(cli.api_rate));
    if points.is_empty() {
        return Ok(());
    }
    let events = if options.quick { cli.events / 10 } else { cli.events };
    let place = Place::start(events, options.duration()).await?;
    options.visit(&mut points, async |load| place.visit(*load).await).await?;
    let targets = targets::all(&points);
    Report { bench: "relay", options, points, columns: COLUMNS, errors: |sample| sample.errors, targets }
        .print()
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.options.run(Box::pin(measure(&cli))).await
}
