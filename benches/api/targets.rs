//! What should come out. Each ratio is taken within a round, of points that were visited shortly
//! after one another, and the median over the rounds is what counts: the speed of the machine and
//! its neighbours cancel out.

use crate::load::{Load, Mode};
use crate::place::Sample;
use crate::shared::figures::{by_round, median};
use crate::shared::run::{Point, samples};
use crate::shared::target::{Bound, Target};

/// All targets, in the order in which they are shown.
pub(crate) fn all(points: &[Point<Load, Sample>]) -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    use Mode::{Health, New, Repeated};
    let api = |mode, connections| {
        samples(
            points,
            move |load| matches!(load, Load::Api { mode: m, connections: c } if *m == mode && *c == connections),
        )
    };
    let pgbench = |start: &'static str| {
        samples(points, move |load| matches!(load, Load::Pgbench { name, .. } if name.starts_with(start)))
    };
    let p50 = |sample: &Sample| sample.seen.latency.p50;
    let rates = |a: &[Sample], b: &[Sample]| by_round(a, b, |a, b| a.seen.rate / b.seen.rate);
    let target = Target::new;

    let busy = api(New, 128);
    let many = api(New, 1024);
    let floor: Vec<f64> = pgbench("pgbench, one statement, 1 client")
        .iter()
        .zip(api(Health, 1))
        .map(|(statement, exchange)| p50(statement) + p50(exchange))
        .collect();
    let single = api(New, 1).iter().zip(floor).map(|(sample, floor)| p50(sample) / floor).collect();
    vec![
        target(
            "128 connections / pgbench with one statement per order",
            rates(busy, pgbench("pgbench, one statement, 32")),
            AtLeast(2.0),
        ),
        target(
            "128 connections / pgbench with 50 orders a statement",
            rates(busy, pgbench("pgbench, 50 orders")),
            AtLeast(0.5),
        ),
        target(
            "128 connections / pgbench with four statements per order",
            rates(busy, pgbench("pgbench, four")),
            Bound::None,
        ),
        target(
            "p99 / p50 at 128 connections",
            median(busy.iter().map(|s| s.seen.latency.p99 / s.seen.latency.p50).collect()),
            AtMost(5.0),
        ),
        target(
            "p50 of one connection / (p50 of one pgbench client + of GET /healthz)",
            median(single),
            AtMost(1.5),
        ),
        target("replays / new orders, at 128 connections", rates(api(Repeated, 128), busy), AtLeast(1.0)),
        // 5 % are left to noise.
        target("1,024 connections / 128 connections", rates(many, busy), AtLeast(0.95)),
        target(
            "megabytes of memory at 1,024 connections",
            median(many.iter().filter_map(|sample| sample.memory).collect()),
            AtMost(100.0),
        ),
    ]
}
