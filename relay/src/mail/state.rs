//! The states of an e-mail, and what may become what. The picture in `docs/mail.md`, the CHECK
//! `notifications_state_known` and this enum name the same five.

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

/// What an e-mail in one state may become, by whatever statement; the picture has the same arrows.
#[cfg(test)]
const TRANSITIONS: [(State, State); 11] = [
    (State::Pending, State::Sending),
    (State::Sending, State::Sent),
    (State::Sending, State::Pending),
    (State::Sending, State::Failed),
    (State::Sending, State::Unknown),
    (State::Unknown, State::Sending),
    (State::Unknown, State::Sent),
    (State::Unknown, State::Pending),
    (State::Failed, State::Pending),
    // By `orders erase`: nobody is left to send it to.
    (State::Pending, State::Failed),
    (State::Unknown, State::Failed),
];

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
        let arrows: BTreeSet<(String, String)> = documented("```mermaid", "```")
            .lines()
            .filter_map(|line| line.split_once("-->"))
            .map(|(from, to)| (from.trim(), to.split(':').next().unwrap_or_default().trim()))
            .map(|(from, to)| (from.to_owned(), to.to_owned()))
            .collect();
        let made = ("[*]".to_owned(), State::Pending.as_str().to_owned());
        let transitions: BTreeSet<(String, String)> = TRANSITIONS
            .iter()
            .map(|(from, to)| (from.as_str().to_owned(), to.as_str().to_owned()))
            .chain([made])
            .collect();
        let picture: BTreeSet<String> = arrows
            .iter()
            .flat_map(|(from, to)| [from, to])
            .filter(|state| *state != "[*]")
            .cloned()
            .collect();
        assert_eq!(picture, code, "docs/mail.md");
        assert_eq!(arrows, transitions, "the arrows of docs/mail.md");
        assert_eq!(allowed("notifications_state_known"), code, "the CHECK");
    }
}
