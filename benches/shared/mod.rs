//! What every bench has: its options, the order of its visits, its targets and how all that is told.

pub(crate) mod figures;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod target;

use std::error::Error;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
