//! What should come out. Ratios are taken within a round, of points that were visited shortly after
//! one another, and the median over the rounds is what counts: the speed of the machine and its
//! neighbours cancel out.

use crate::outbox::Shape;
use crate::shared::figures::{by_round, median};
use crate::shared::run::{Point, samples};
use crate::shared::target::{Bound, Target};
use crate::{Load, Sample};

/// A writer that got no further than this share of its rate has measured another rate.
const RATE_REACHED: f64 = 0.95;

/// All targets, in the order in which they are shown.
pub(crate) fn all(points: &[Point<Load, Sample>]) -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    let visits = |load: Load| samples(points, move |other| *other == load);
    let rates = |a: Load, b: Load| by_round(visits(a), visits(b), |a, b| a.per_second / b.per_second);
    let middle =
        |load: Load, of: fn(&Sample) -> Option<f64>| median(visits(load).iter().filter_map(of).collect());
    let latency = |per_second: u64, of: fn(&Sample) -> Option<f64>| {
        let reached = |sample: &&Sample| sample.per_second >= RATE_REACHED * per_second as f64;
        let visits = visits(Load::Commits { per_second, at_once: 1 });
        median(visits.iter().filter(reached).filter_map(of).collect())
    };
    let p99 = |sample: &Sample| sample.to_ack.map_or(f64::NAN, |to_ack| to_ack.p99);
    let drain = |shape| Load::Drain { shape, old_snapshot: false };
    let held = Load::Drain { shape: Shape::One, old_snapshot: true };
    let longest = |killed| middle(Load::Takeover { killed }, |sample| Some(sample.to_consumer?.p999));
    let idle = |all_stages| Load::Idle { all_stages };
    vec![
        Target::new(
            "relay / bare loop, one event per order",
            rates(drain(Shape::One), Load::Bare(Shape::One)),
            AtLeast(0.8),
        ),
        Target::new(
            "relay / bare loop, five events per order",
            rates(drain(Shape::Five), Load::Bare(Shape::Five)),
            AtLeast(0.8),
        ),
        Target::new(
            "relay / bare loop with jemalloc, one event per order",
            rates(drain(Shape::One), Load::BareJemalloc(Shape::One)),
            Bound::None,
        ),
        Target::new(
            "relay / bare loop with jemalloc, five events per order",
            rates(drain(Shape::Five), Load::BareJemalloc(Shape::Five)),
            Bound::None,
        ),
        Target::new(
            "a thousand orders / one event per order",
            rates(drain(Shape::Thousand), drain(Shape::One)),
            Bound::None,
        ),
        Target::new(
            "the others beside a hot order / without it",
            rates(drain(Shape::Hot), drain(Shape::One)),
            AtLeast(0.9),
        ),
        Target::new(
            "relay / poller",
            rates(drain(Shape::One), Load::Poller { old_snapshot: false }),
            AtLeast(1.0),
        ),
        Target::new(
            "relay / poller, an old snapshot held",
            rates(held, Load::Poller { old_snapshot: true }),
            AtLeast(3.0),
        ),
        Target::new(
            "megabytes of memory while draining, one event per order",
            middle(drain(Shape::One), |sample| sample.memory),
            AtMost(300.0),
        ),
        Target::new(
            "p50 from commit to ack at 500 commits a second, ms",
            latency(500, |sample| Some(sample.to_ack?.p50)),
            AtMost(1.5),
        ),
        Target::new(
            "p99 from commit to ack at 500 commits a second, ms",
            latency(500, |sample| Some(sample.to_ack?.p99)),
            AtMost(6.0),
        ),
        Target::new(
            "p99 from commit to ack at 5,000 commits a second, ms",
            latency(5_000, |sample| Some(sample.to_ack?.p99)),
            AtMost(10.0),
        ),
        Target::new(
            "the same / of a writer that produces itself",
            by_round(
                visits(Load::Commits { per_second: 5_000, at_once: 1 }),
                visits(Load::Direct { per_second: 5_000 }),
                |relay, direct| p99(relay) / p99(direct),
            ),
            Bound::None,
        ),
        Target::new("longest wait after the publisher's SIGKILL, ms", longest(true), AtMost(10_000.0)),
        Target::new("longest wait after the publisher's SIGTERM, ms", longest(false), AtMost(1_000.0)),
        Target::new(
            "statements a second of an idle publisher",
            middle(idle(false), |sample| Some(sample.per_second)),
            AtMost(2.0),
        ),
        Target::new(
            "statements a second of an idle relay with all stages",
            middle(idle(true), |sample| Some(sample.per_second)),
            AtMost(2.0),
        ),
        Target::new(
            "% of a core of an idle relay with all stages",
            middle(idle(true), |sample| sample.cpu_share),
            AtMost(1.0),
        ),
    ]
}
