//! The `relay` binary: reads its settings, then runs the stages or an operator's command.

use std::process::ExitCode;

use clap::Parser;
use relay::config::{Cli, Command};
use relay::{RunError, commands, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What is read in one thread is sent and freed in others, librdkafka's among them: docs/performance.md
/// has what this one saves of a drain's time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        command => return commands::exit_code(commands::run(command).await),
    };
    if let Err(error) = telemetry::init(&args.log) {
        eprintln!("error: RUST_LOG: {error}");
        return ExitCode::from(2);
    }
    let shutdown = CancellationToken::new();
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("error: cannot wait for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stop = shutdown.clone();
    let stopper = async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = relay::run(*args, shutdown) => ended,
        () = stopper => Ok(()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            // A wrong setting is a matter of usage.
            if matches!(error, RunError::Setting(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
