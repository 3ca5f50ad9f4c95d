//! `demo services`: one PostgreSQL and one Kafka, shared by a run of the tests.

use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Stdio};

use demo::services::{Kafka, Postgres};
use demo::testing::{DATABASE_SERVER, KAFKA_BROKERS};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;

/// Starts the servers, runs the command and gives its exit code.
pub(crate) async fn services(command: &[String]) -> Outcome<ExitCode> {
    let end = end()?;
    tokio::pin!(end);
    let servers = async { tokio::try_join!(Postgres::start(), Kafka::start()) };
    let (postgres, kafka) = tokio::select! {
        servers = servers => servers?,
        () = &mut end => return Ok(ExitCode::from(130)),
    };
    let Some((program, args)) = command.split_first() else {
        println!("export {DATABASE_SERVER}={}", postgres.url());
        println!("export {KAFKA_BROKERS}={}", kafka.brokers());
        end.await;
        return Ok(ExitCode::SUCCESS);
    };
    // A group of its own, so that we can end it with everything it started, and the guard too.
    let mut child = Command::new(program)
        .args(args)
        .env(DATABASE_SERVER, postgres.url())
        .env(KAFKA_BROKERS, kafka.brokers())
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    let group = child.id().unwrap_or_default();
    demo::guard::watch(group, "TERM")?;
    let status = tokio::select! {
        status = child.wait() => status?,
        () = end => {
            demo::guard::signal_group(group, "INT")?;
            child.wait().await?
        }
    };
    demo::guard::forget(group);
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Completes at ctrl-c or SIGTERM.
pub(crate) fn end() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
