//! `demo`: the pipeline in one command; `demo services`: real servers for a command.

mod shared;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Runs the pipeline with servers of its own", long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Starts PostgreSQL and Kafka for a command: TEST_DATABASE_URL and TEST_KAFKA_BROKERS name them.
    #[command(after_help = "Example: demo services -- cargo test --workspace")]
    Services {
        /// The command and its arguments; without one the servers stay up until ctrl-c.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Some(Command::Services { command }) => shared::services(&command).await,
        None => Ok(ExitCode::SUCCESS),
    };
    demo::guard::finish();
    outcome.unwrap_or_else(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
        while let Some(error) = cause {
            eprintln!("error: {error}");
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}
