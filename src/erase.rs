//! `orders erase`: takes a customer's e-mail address out of orders, stored answers and notifications.

use std::process::ExitCode;

use serde_json::json;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::config::Erase;
use crate::db::erase::{self, Held, Whose};
use crate::db::{self, Failure};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const FOUND: u8 = 3;
const UNREACHABLE: u8 = 4;

/// Runs the command; prints its result and gives its exit code.
pub async fn run(config: Erase) -> ExitCode {
    let options = match config.database.options() {
        Ok(options) => options,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let done = match options.connect().await {
        Ok(mut connection) => execute(&config, &mut connection).await,
        Err(error) => Err(error),
    };
    let held = match done {
        Ok(held) => held,
        Err(error) if Failure::of(&error) == Failure::Permanent => return fail(FAILED, &db::chain(&error)),
        Err(error) => {
            return fail(UNREACHABLE, &format!("the database cannot be reached: {}", db::chain(&error)));
        }
    };
    print(&config, held);
    if held.being_sent > 0 && !config.dry_run {
        eprintln!("orders: {} e-mails are being sent right now; run it again", held.being_sent);
        return ExitCode::from(FOUND);
    }
    ExitCode::SUCCESS
}

async fn execute(config: &Erase, connection: &mut PgConnection) -> Result<Held, sqlx::Error> {
    let whose = Whose { customer: config.customer, client: config.client.as_deref() };
    if config.dry_run {
        return erase::count(connection, whose).await;
    }
    let mut first = connection.begin().await?;
    let orders = erase::orders(&mut first, whose).await?;
    let answers = erase::answers(&mut first, whose).await?;
    first.commit().await?;

    let mut second = connection.begin().await?;
    let notifications = erase::notifications(&mut second, whose).await?;
    let being_sent = erase::count(&mut second, whose).await?.being_sent;
    let counted = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    let held = Held {
        orders: counted(orders),
        answers: counted(answers),
        notifications: counted(notifications),
        being_sent,
    };
    let details = json!({ "customerId": config.customer, "client": config.client, "erased": held });
    erase::record(&mut second, &config.by, config.reason.as_deref(), &details).await?;
    second.commit().await?;
    Ok(held)
}

fn print(config: &Erase, held: Held) {
    if config.json {
        println!("{}", json!({ "customerId": config.customer, "dryRun": config.dry_run, "erased": held }));
        return;
    }
    let word = if config.dry_run { "would be erased from" } else { "erased from" };
    println!(
        "the address of customer {} {word} {} orders, {} stored answers and {} notifications",
        config.customer, held.orders, held.answers, held.notifications
    );
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("orders: {message}");
    ExitCode::from(code)
}
