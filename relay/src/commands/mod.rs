//! What an operator types beside `relay run`: one module per command. Each reads its settings, does
//! one thing and prints it, for people or as JSON.

mod adopt;
mod audit;
mod changes;
mod config;
mod dead;
mod doctor;
mod explain;
mod finding;
mod inbox;
mod mail;
mod manual;
mod once;
mod pause;
mod replay;
mod status;
mod text;
mod topic;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use sqlx::PgPool;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Command, ConfigCommand, InvalidSetting};
use crate::db::lease;
use crate::publish::source::OUTBOX;
use crate::sink::SinkName;

/// How a command ended that did what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Done; exit code 0.
    Done,
    /// A check found something; exit code 3.
    Found,
}

/// Why a command did not do what it was asked for. The exit code tells the kind.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be done; exit code 1.
    #[error("{0}")]
    Failed(String),
    /// It was asked for in a way that makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A setting cannot be used; exit code 2.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// PostgreSQL, Kafka or the mail server is away; exit code 4.
    #[error("{0}")]
    Down(String),
}

impl From<sqlx::Error> for CommandError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // PostgreSQL answered.
            sqlx::Error::Database(answer) => match answer.code().as_deref() {
                Some("42P01" | "42703") => Self::Failed(format!(
                    "the schema is older than this program; run `orders migrate` ({})",
                    answer.message()
                )),
                Some(code) if code.starts_with("57P") || code.starts_with("53") || code == "28000" => {
                    Self::Down(format!("PostgreSQL: {}", answer.message()))
                }
                _ => Self::Failed(format!("PostgreSQL: {}", answer.message())),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed => Self::Down(format!("PostgreSQL does not answer: {error}")),
            _ => Self::Failed(format!("PostgreSQL: {error}")),
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<prometheus::Error> for CommandError {
    fn from(error: prometheus::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Says on standard error why it did not work, and gives the exit code.
#[must_use]
pub fn exit_code(result: Result<Ended, CommandError>) -> ExitCode {
    let error = match result {
        Ok(Ended::Done) => return ExitCode::SUCCESS,
        Ok(Ended::Found) => return ExitCode::from(3),
        Err(error) => error,
    };
    eprintln!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because {cause}");
        source = cause.source();
    }
    match error {
        CommandError::Failed(_) => ExitCode::FAILURE,
        CommandError::Usage(_) | CommandError::Setting(_) => ExitCode::from(2),
        CommandError::Down(_) => ExitCode::from(4),
    }
}

/// Does what the command line says; `relay run` is not among it.
///
/// # Errors
/// [`CommandError`]
pub async fn run(command: Command) -> Result<Ended, CommandError> {
    match command {
        Command::Run(_) => Err(CommandError::Usage("`relay run` is no command for an operator".to_owned())),
        Command::Status(args) => status::run(*args).await,
        Command::Explain(args) => explain::run(*args).await,
        Command::Audit(args) => audit::run(*args).await,
        Command::Doctor(args) => doctor::run(*args).await,
        Command::Topic(command) => topic::run(command).await,
        Command::Once(args) => once::once(&args).await,
        Command::Pause(args) => pause::pause(&args).await,
        Command::Resume(args) => pause::resume(&args).await,
        Command::Dead(command) => dead::run(&command).await,
        Command::Inbox(command) => inbox::run(&command).await,
        Command::Replay(args) => replay::run(&args).await,
        Command::Changes(args) => changes::list(&args).await,
        Command::Mail(command) => mail::run(command).await,
        Command::Config(ConfigCommand::Check(args)) => config::check(&args),
        Command::Adopt(args) => adopt::run(&args).await,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::pages(&folder),
    }
}

/// Waits for SIGINT or SIGTERM.
async fn stop_signal() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} },
        // Without handlers the signals end the process as they always do.
        _ => std::future::pending().await,
    }
}

/// The sink has never published: a wrong name, most of the time.
fn unknown_sink(sink: &SinkName) -> CommandError {
    CommandError::Failed(format!("no relay has published under the name `{sink}` yet: is --sink right?"))
}

/// Refuses the sink of a foreign table for a command that knows the orders' events only.
///
/// # Errors
/// [`CommandError::Usage`], and whatever the database says.
async fn orders_only(pool: &PgPool, sink: &SinkName, command: &str) -> Result<(), CommandError> {
    match lease::source(pool, sink).await? {
        Some(source) if source != OUTBOX => Err(CommandError::Usage(format!(
            "--sink: `{sink}` publishes {source}; `{command}` is for the orders' outbox alone"
        ))),
        _ => Ok(()),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When standard output cannot be written.
fn print(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// When standard output cannot be written.
fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
