//! `orders migrate`: applies the schema, or says whether it is complete.

use std::process::ExitCode;

use sqlx::{ConnectOptions, Connection};

use crate::MIGRATOR;
use crate::config::Migrate;
use crate::db::health::{Schema, schema};
use crate::db::{self, Failure};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const PENDING: u8 = 3;
const UNREACHABLE: u8 = 4;

/// Runs the command; prints its result and gives its exit code.
pub async fn run(config: Migrate) -> ExitCode {
    let options = match config.database.options() {
        Ok(options) => options,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let mut connection = match options.connect().await {
        Ok(connection) => connection,
        Err(error) if Failure::of(&error) == Failure::Permanent => {
            return fail(FAILED, &format!("the database refuses the connection: {}", db::chain(&error)));
        }
        Err(error) => {
            return fail(UNREACHABLE, &format!("the database cannot be reached: {}", db::chain(&error)));
        }
    };
    let missing = match schema(&mut connection).await {
        Ok(Schema::Current) => 0,
        Ok(Schema::Pending(missing)) => missing,
        Err(error) => return fail(FAILED, &format!("the schema cannot be read: {error}")),
    };
    if config.check {
        println!("{missing} migrations missing");
        return if missing == 0 { ExitCode::SUCCESS } else { ExitCode::from(PENDING) };
    }
    if let Err(error) = MIGRATOR.run(&mut connection).await {
        return fail(FAILED, &format!("the migration failed: {error}"));
    }
    println!("{missing} migrations applied");
    // Nothing depends on how the server takes the farewell.
    let _ = connection.close().await;
    ExitCode::SUCCESS
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("orders: {message}");
    ExitCode::from(code)
}
