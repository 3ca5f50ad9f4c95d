//! `orders erase`: takes a customer's e-mail address out of orders, stored answers and notifications.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::config::Erase;
use crate::db::erase::{self, Held, Whose};
use crate::db::{self, Failure};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const FOUND: u8 = 3;
const UNREACHABLE: u8 = 4;

/// So often the notifications are asked for, when somebody keeps them.
const TRIES: u32 = 15;
/// In between others get them, as long as we had them waiting.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

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
        Err(error) if Failure::of(&error) == Failure::Locked => {
            return fail(FAILED, "notifications are kept by a transaction that does not end; run it again");
        }
        Err(error) if Failure::of(&error) == Failure::Permanent => return fail(FAILED, &db::chain(&error)),
        Err(error) => {
            return fail(UNREACHABLE, &format!("the database cannot be reached: {}", db::chain(&error)));
        }
    };
    print(&config, held);
    if held.being_sent > 0 && !config.dry_run {
        eprintln!("orders: {} e-mails were being sent; run it again", held.being_sent);
        return ExitCode::from(FOUND);
    }
    ExitCode::SUCCESS
}

async fn execute(config: &Erase, connection: &mut PgConnection) -> Result<Held, sqlx::Error> {
    let whose = Whose { customer: config.customer, client: config.client.as_deref() };
    let theirs = erase::theirs(connection, whose).await?;
    if config.dry_run {
        return erase::count(connection, &theirs).await;
    }
    let mut first = connection.begin().await?;
    let orders = counted(erase::orders(&mut first, &theirs).await?);
    let answers = counted(erase::answers(&mut first, &theirs).await?);
    first.commit().await?;

    let mut tries = 1;
    let notifications = loop {
        match notifications(config, connection, &theirs, orders, answers).await {
            // Those who queued up behind us go first.
            Err(error) if Failure::of(&error) == Failure::Locked && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            done => break done?,
        }
    };
    // After the commit: nobody waits for the counting.
    let being_sent = erase::kept(connection, &theirs).await?;
    Ok(Held { orders, answers, notifications, being_sent })
}

/// The second transaction, with the record of both. Gives how many notifications were erased.
async fn notifications(
    config: &Erase,
    connection: &mut PgConnection,
    theirs: &[Uuid],
    orders: i64,
    answers: i64,
) -> Result<i64, sqlx::Error> {
    let mut second = connection.begin().await?;
    let notifications = counted(erase::notifications(&mut second, theirs).await?);
    let details = json!({
        "customerId": config.customer,
        "client": config.client,
        "erased": { "orders": orders, "answers": answers, "notifications": notifications },
    });
    erase::record(&mut second, &config.by, config.reason.as_deref(), &details).await?;
    second.commit().await?;
    Ok(notifications)
}

fn counted(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
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
