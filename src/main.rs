//! Starts the API, or prepares its database. Bootstrap only.

use std::process::ExitCode;

use clap::Parser;
use orders::config::{Cli, Command};
use orders::{erase, http, keys, migrate, server, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let otlp = match &cli.command {
        Command::Serve(config) => config.otlp_endpoint.as_deref(),
        Command::Migrate(_) | Command::Openapi | Command::Keys(_) | Command::Erase(_) => None,
    };
    let telemetry = match telemetry::start(&cli.log, otlp) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("orders: {error}");
            return ExitCode::from(2);
        }
    };
    let code = run(cli.command).await;
    telemetry.flush();
    code
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(config) => {
            let shutdown = CancellationToken::new();
            let signals = cancel_on_signal(shutdown.clone());
            tokio::select! {
                result = server::run(config, shutdown) => server::exit_code(result),
                error = signals => {
                    eprintln!("orders: signals cannot be watched: {error}");
                    ExitCode::from(1)
                }
            }
        }
        Command::Migrate(config) => migrate::run(config).await,
        Command::Openapi => http::openapi::print(),
        Command::Keys(config) => keys::run(config).await,
        Command::Erase(config) => erase::run(config).await,
    }
}

/// Asks for a soft stop on the first SIGTERM or SIGINT; returns only on error.
async fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Error {
    let watch = || Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
    let (mut terminate, mut interrupt) = match watch() {
        Ok(signals) => signals,
        Err(error) => return error,
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    shutdown.cancel();
    std::future::pending().await
}
