//! Every SQL statement of the API, and what a database error means. Nothing outside this folder
//! sends SQL or looks at an SQLSTATE.

pub(crate) mod cancel;
pub(crate) mod create;
pub(crate) mod erase;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod idempotency;
pub(crate) mod keys;
pub(crate) mod orders;
pub(crate) mod session;

use std::error::Error as _;

use sqlx::postgres::PgDatabaseError;

/// What an error of a statement means for the request that needed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The wait for another transaction's uncommitted idempotency key timed out: the one lock
    /// timeout that says that the same key is in use elsewhere. Nothing was written.
    KeyHeld,
    /// The wait for any other lock timed out. Nothing was written.
    Locked,
    /// A deadlock or serialisation failure: running it again is the cure. Nothing was written.
    Contention,
    /// The connection broke. Whether the statement was committed is unknown.
    Gone,
    /// The database cannot do it now (starting, read-only, out of resources). Nothing was written.
    Unavailable,
    /// It would fail again. Nothing was written.
    Permanent,
}

impl Failure {
    /// The one place that decides what may be tried again.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                database.try_downcast_ref::<PgDatabaseError>().map_or(Self::Permanent, Self::of_sqlstate)
            }
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Self::Gone,
            sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::Unavailable,
            _ => Self::Permanent,
        }
    }

    fn of_sqlstate(error: &PgDatabaseError) -> Self {
        match error.code() {
            "55P03" => {
                // The context names the relation whose index tuple was being inserted, in every
                // language of the server; a table lock has no such context.
                let holds_key = error.r#where().is_some_and(|context| context.contains("idempotency_keys"));
                if holds_key { Self::KeyHeld } else { Self::Locked }
            }
            "40P01" | "40001" => Self::Contention,
            // Terminated by an administrator, a crash, or an idle timeout.
            "57P01" | "57P02" | "57P05" => Self::Gone,
            "57P03" | "57014" | "25006" | "55000" => Self::Unavailable,
            code if code.starts_with("08") => Self::Gone,
            code if code.starts_with("53") || code.starts_with("58") => Self::Unavailable,
            _ => Self::Permanent,
        }
    }
}

/// An error and its sources in one line, for the log. The values of rows, which PostgreSQL puts
/// into the detail of an error, are not part of it.
pub(crate) fn chain(error: &sqlx::Error) -> String {
    let mut line = error.to_string();
    if let sqlx::Error::Database(database) = error {
        line.push_str(&format!(" (SQLSTATE {})", database.code().unwrap_or_default()));
        return line;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_line = cause.to_string();
        if !line.ends_with(&cause_line) {
            line = format!("{line}: {cause_line}");
        }
        source = cause.source();
    }
    line
}
