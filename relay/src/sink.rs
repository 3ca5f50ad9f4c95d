//! The sink: the name under which a publisher's work is kept. Everything about it in the database
//! (lease, what is settled, dead letters) stands under this name, so that several publishers, each
//! with a sink of its own, share one database and never touch each other's.

use std::fmt;
use std::str::FromStr;

/// The sink of the orders' own outbox.
pub(crate) const KAFKA: &str = "kafka";
/// The longest name.
const LONGEST: usize = 63;

/// A sink's name: 1 to 63 of `a-z`, `0-9`, `_`, `-` and `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkName(String);

impl SinkName {
    /// The name as it stands in `relay_sinks`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not the name of a sink.
#[derive(Debug, thiserror::Error)]
#[error("a sink's name is 1 to {LONGEST} of a-z, 0-9, `_`, `-` and `.`")]
pub struct InvalidSinkName;

impl FromStr for SinkName {
    type Err = InvalidSinkName;

    fn from_str(text: &str) -> Result<Self, InvalidSinkName> {
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.');
        let fits = (1..=LONGEST).contains(&text.len()) && text.chars().all(allowed);
        fits.then(|| Self(text.to_owned())).ok_or(InvalidSinkName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_plain_word_is_refused() {
        assert!("outbox-2.eu".parse::<SinkName>().is_ok());
        for wrong in ["", "Kafka", "a b", "a'b", &"a".repeat(64)] {
            assert!(wrong.parse::<SinkName>().is_err(), "{wrong}");
        }
    }
}
