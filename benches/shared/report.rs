//! The figures as a table or as JSON: medians over the rounds.

use std::fmt;

use serde_json::{Map, Value, json};

use super::Outcome;
use super::run::{Options, Point};
use super::target::Target;

/// What is shown of the visits to a point.
pub(crate) struct Column<S> {
    pub(crate) heading: &'static str,
    /// In the JSON.
    pub(crate) name: &'static str,
    /// Digits after the point.
    pub(crate) digits: usize,
    pub(crate) of: fn(&S) -> Option<f64>,
}

/// Everything that was measured.
pub(crate) struct Report<'a, L, S> {
    pub(crate) bench: &'static str,
    pub(crate) options: &'a Options,
    pub(crate) points: Vec<Point<L, S>>,
    /// The first is shown round by round too.
    pub(crate) columns: &'a [Column<S>],
    /// What went wrong in a visit.
    pub(crate) errors: fn(&S) -> u64,
    pub(crate) targets: Vec<Target>,
}

impl<L: fmt::Display, S> Report<'_, L, S> {
    /// Prints it as the options want it.
    pub(crate) fn print(&self) -> Outcome<()> {
        if self.options.json {
            println!("{}", serde_json::to_string_pretty(&self.to_json())?);
        } else {
            print!("{self}");
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let points: Vec<Value> = self.points.iter().map(|point| self.point(point)).collect();
        let targets: Vec<Value> = self.targets.iter().map(Target::to_json).collect();
        json!({ "bench": self.bench, "secondsPerPoint": self.options.seconds(), "rounds": self.options.rounds(),
                "points": points, "targets": targets })
    }

    fn point(&self, point: &Point<L, S>) -> Value {
        let mut values = Map::new();
        values.insert("point".into(), point.load.to_string().into());
        for column in self.columns {
            values.insert(column.name.into(), point.median(column.of).into());
        }
        if let Some(first) = self.columns.first() {
            let by_round: Vec<Option<f64>> = point.samples.iter().map(first.of).collect();
            values.insert(format!("{}ByRound", first.name), by_round.into());
        }
        values.insert("errors".into(), self.errors(point).into());
        values.into()
    }

    fn errors(&self, point: &Point<L, S>) -> u64 {
        point.samples.iter().map(self.errors).sum()
    }
}

impl<L: fmt::Display, S> fmt::Display for Report<'_, L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rounds, seconds) = (self.options.rounds(), self.options.seconds());
        writeln!(f, "{}: {rounds} rounds of {seconds} s per point; medians; milliseconds\n", self.bench)?;
        write!(f, "{:<50}", "")?;
        for column in self.columns {
            write!(f, "{:>14}", column.heading)?;
        }
        writeln!(f, "{:>8}", "errors")?;
        for point in &self.points {
            write!(f, "{:<50}", point.load.to_string())?;
            for column in self.columns {
                let value = point.median(column.of);
                let value = value.map_or("-".into(), |value| format!("{value:.*}", column.digits));
                write!(f, "{value:>14}")?;
            }
            writeln!(f, "{:>8}", self.errors(point))?;
        }
        writeln!(f)?;
        self.targets.iter().try_for_each(|target| write!(f, "{target}"))
    }
}
