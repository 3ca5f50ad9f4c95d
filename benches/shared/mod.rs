//! What every bench has: its options, the order of its visits, its targets and how all that is told.

pub(crate) mod ending;
pub(crate) mod figures;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod target;

pub(crate) use ending::Outcome;
