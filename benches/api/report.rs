//! The figures as a table or as JSON: medians over the rounds.

use std::fmt;

use serde_json::{Value, json};

use crate::load::Load;
use crate::place::Sample;
use crate::targets;

/// A load and what every visit to it gave.
pub(crate) struct Point {
    pub(crate) load: Load,
    pub(crate) samples: Vec<Sample>,
}

impl Point {
    pub(crate) fn new(load: Load) -> Self {
        Self { load, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect()).unwrap_or(f64::NAN)
    }

    fn errors(&self) -> u64 {
        self.samples.iter().map(|sample| sample.seen.errors).sum()
    }

    fn optional(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(of).collect())
    }
}

/// `None` when there are none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) seconds: u64,
    pub(crate) rounds: u64,
    pub(crate) points: Vec<Point>,
}

impl Report {
    pub(crate) fn to_json(&self) -> Value {
        let points: Vec<Value> = self
            .points
            .iter()
            .map(|point| {
                let rates: Vec<f64> = point.samples.iter().map(|sample| sample.seen.rate).collect();
                json!({
                    "point": point.load.to_string(),
                    "ratePerSecond": point.median(|sample| sample.seen.rate),
                    "ratePerSecondByRound": rates,
                    "p50Milliseconds": point.median(|sample| sample.seen.p50),
                    "p99Milliseconds": point.median(|sample| sample.seen.p99),
                    "p999Milliseconds": point.median(|sample| sample.seen.p999),
                    "commitsPerOrder": point.optional(|sample| sample.commits_per_order),
                    "memoryMegabytes": point.optional(|sample| sample.memory),
                    "errors": point.errors(),
                })
            })
            .collect();
        let targets: Vec<Value> = targets::all(&self.points)
            .into_iter()
            .map(|target| {
                json!({ "target": target.what, "value": target.value, "bound": target.bound.to_string(),
                        "met": target.met() })
            })
            .collect();
        json!({ "secondsPerPoint": self.seconds, "rounds": self.rounds, "points": points, "targets": targets })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds of {} s per point; medians; milliseconds\n", self.rounds, self.seconds)?;
        writeln!(
            f,
            "{:<50}{:>10}{:>9}{:>9}{:>9}{:>14}{:>9}{:>8}",
            "", "orders/s", "p50", "p99", "p99.9", "commits/order", "MB", "errors"
        )?;
        let optional = |value: Option<f64>, digits| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        for point in &self.points {
            writeln!(
                f,
                "{:<50}{:>10.0}{:>9.2}{:>9.2}{:>9.2}{:>14}{:>9}{:>8}",
                point.load.to_string(),
                point.median(|sample| sample.seen.rate),
                point.median(|sample| sample.seen.p50),
                point.median(|sample| sample.seen.p99),
                point.median(|sample| sample.seen.p999),
                optional(point.optional(|sample| sample.commits_per_order), 3),
                optional(point.optional(|sample| sample.memory), 0),
                point.errors(),
            )?;
        }
        writeln!(f)?;
        for target in targets::all(&self.points) {
            let verdict = match target.met() {
                None if target.value.is_some() => "",
                None => "not measured",
                Some(true) => "met",
                Some(false) => "MISSED",
            };
            let value = target.value.map_or("-".into(), |value| format!("{value:.2}"));
            writeln!(f, "{:<76}{value:>8}  {:<10}{verdict}", target.what, target.bound.to_string())?;
        }
        Ok(())
    }
}
