//! The states of an e-mail. The picture in `docs/mail.md`, the CHECK `notifications_state_known` and
//! this enum name the same five.

use clap::ValueEnum;
use serde::Serialize;

/// Where an e-mail stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// To be sent, now or after a wait.
    Pending,
    /// Leased by a mailer that is sending it.
    Sending,
    /// The server has taken it.
    Sent,
    /// It will not be sent: refused for good, or for too long.
    Failed,
    /// The server may or may not have taken it.
    Unknown,
}

impl State {
    /// The word in the database.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mail::documented;

    /// The words between single quotes in the last definition of a constraint.
    fn allowed(constraint: &str) -> BTreeSet<String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .expect("the migrations")
            .map(|entry| entry.expect("a migration").path())
            .collect();
        files.sort();
        let sql: String =
            files.iter().map(|path| std::fs::read_to_string(path).expect("a migration")).collect();
        let definition = sql.rsplit(constraint).next().expect("the constraint");
        let list = definition.split_once(" in (").expect("a list").1.split_once(')').expect("its end").0;
        list.split(',').map(|word| word.trim().trim_matches('\'').to_owned()).collect()
    }

    #[test]
    fn the_picture_the_schema_and_the_code_name_the_same_states() {
        let code: BTreeSet<String> =
            State::value_variants().iter().map(|state| state.as_str().to_owned()).collect();
        let picture: BTreeSet<String> = documented("```mermaid", "```")
            .lines()
            .filter_map(|line| line.split_once("-->"))
            .flat_map(|(from, to)| [from, to.split(':').next().unwrap_or_default()])
            .map(|state| state.trim().to_owned())
            .filter(|state| state != "[*]")
            .collect();
        assert_eq!(picture, code, "docs/mail.md");
        assert_eq!(allowed("notifications_state_known"), code, "the CHECK");
    }
}
