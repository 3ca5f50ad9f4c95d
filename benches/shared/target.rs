//! What should come out, and whether it did.

use std::fmt;

use serde_json::{Value, json};

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Shown and not judged.
    None,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(value) => write!(f, ">= {value}"),
            Self::AtMost(value) => write!(f, "<= {value}"),
            Self::None => Ok(()),
        }
    }
}

pub(crate) struct Target {
    pub(crate) what: &'static str,
    /// `None` when one of its points was left out.
    pub(crate) value: Option<f64>,
    pub(crate) bound: Bound,
}

impl Target {
    pub(crate) fn new(what: &'static str, value: Option<f64>, bound: Bound) -> Self {
        Self { what, value, bound }
    }

    /// `None` when there is nothing to judge.
    fn met(&self) -> Option<bool> {
        match (self.value?, self.bound) {
            (value, Bound::AtLeast(bound)) => Some(value >= bound),
            (value, Bound::AtMost(bound)) => Some(value <= bound),
            (_, Bound::None) => None,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "target": self.what, "value": self.value, "bound": self.bound.to_string(), "met": self.met() })
    }
}

/// One line of the table.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.met() {
            None if self.value.is_some() => "",
            None => "not measured",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        let value = self.value.map_or("-".into(), |value| format!("{value:.2}"));
        writeln!(f, "{:<76}{value:>8}  {:<10}{verdict}", self.what, self.bound.to_string())
    }
}
