//! `orders keys`: makes, lists and revokes the keys that clients call with.

use std::process::ExitCode;

use sqlx::{ConnectOptions, PgConnection};

use crate::config::{Keys, KeysCommand};
use crate::db::{self, Failure};
use crate::domain::Token;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 4;

/// Runs the command; prints its result and gives its exit code.
pub async fn run(config: Keys) -> ExitCode {
    let options = match config.database.options() {
        Ok(options) => options,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let done = match options.connect().await {
        Ok(mut connection) => execute(config.command, &mut connection).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(code) => code,
        Err(error) if Failure::of(&error) == Failure::Permanent => fail(FAILED, &db::chain(&error)),
        Err(error) => fail(UNREACHABLE, &format!("the database cannot be reached: {}", db::chain(&error))),
    }
}

async fn execute(command: KeysCommand, connection: &mut PgConnection) -> Result<ExitCode, sqlx::Error> {
    match command {
        KeysCommand::Create { client } => {
            let token = match Token::generate() {
                Ok(token) => token,
                Err(error) => return Ok(fail(FAILED, &format!("no random numbers: {error}"))),
            };
            let key = db::keys::insert(connection, &client, token.hash().as_bytes()).await?;
            // The token alone on stdout, so that it can be piped; it is shown this once.
            println!("{}", token.reveal());
            eprintln!("key {key} of client {client}: the token is not shown again");
        }
        KeysCommand::List { json } => {
            let keys = db::keys::list(connection).await?;
            if json {
                println!("{}", serde_json::json!(keys));
                return Ok(ExitCode::SUCCESS);
            }
            for key in keys {
                let state = match (key.revoked_at, key.last_used_at) {
                    (Some(at), _) => format!("revoked {at:.0}"),
                    (None, Some(at)) => format!("used {at:.0}"),
                    (None, None) => "never used".to_owned(),
                };
                println!("{}  {}  created {:.0}  {state}", key.key_id, key.client_id, key.created_at);
            }
        }
        KeysCommand::Revoke { id } => {
            if !db::keys::revoke(connection, id).await? {
                return Ok(fail(FAILED, &format!("there is no key {id}")));
            }
            eprintln!("key {id} stops within 5 seconds");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("orders: {message}");
    ExitCode::from(code)
}
