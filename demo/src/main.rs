//! `demo`: the pipeline in one command; `demo services`: real servers for a command.

mod burst;
mod cli;
mod run;
mod shared;
mod stack;
mod story;
mod tally;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// What goes wrong here is shown to a person and ends the program.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Services { command }) => shared::services(command).await,
        None => run::demo(&cli.demo).await,
    };
    demo::guard::finish();
    outcome.unwrap_or_else(|error| {
        let mut cause: Option<&dyn Error> = Some(error.as_ref());
        while let Some(error) = cause {
            eprintln!("error: {error}");
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}
