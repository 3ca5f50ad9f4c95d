//! The commands of the `orders` program, from outside.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Output;

use demo::testing::{DATABASE_SERVER, shared};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tokio::process::Command;

async fn orders(arguments: &[&str], database_url: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orders"));
    command.args(arguments).env("DATABASE_URL", database_url).env_remove("ORDERS_AUTH");
    command.output().await.unwrap()
}

#[tokio::test]
async fn migrate_tells_by_its_exit_code_what_there_is_to_do() {
    let server: PgConnectOptions = shared(DATABASE_SERVER).parse().unwrap();
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let mut admin = server.connect().await.unwrap();
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    let url = server.database(&name).to_url_lossy().to_string();

    assert_eq!(orders(&["migrate", "--check"], &url).await.status.code(), Some(3));
    assert_eq!(orders(&["migrate"], &url).await.status.code(), Some(0));
    assert_eq!(orders(&["migrate", "--check"], &url).await.status.code(), Some(0));
    assert_eq!(orders(&["migrate"], &url).await.status.code(), Some(0), "again is nothing to do");
    assert_eq!(orders(&["migrate"], "postgres://127.0.0.1:1/none").await.status.code(), Some(4));
    assert_eq!(orders(&["migrate", "--nonsense"], &url).await.status.code(), Some(2));
}

#[tokio::test]
async fn a_wrong_setting_is_named_and_a_password_is_not_shown() {
    let output = orders(&["serve", "--auth", "off"], "postgres//ada:hunter2@host/db").await;
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("DATABASE_URL") && !stderr.contains("hunter2"), "{stderr}");

    for (flag, value, right) in [
        ("--rate-limit", "fast", "50,200"),
        ("--rate-limit", "0", "from 1 to 1000000"),
        ("--cors-origins", "shop.example", "https://shop.example"),
        ("--cors-origins", "https://shop.example/", "without a path"),
    ] {
        let output = orders(&["serve", flag, value], "postgres://127.0.0.1/none").await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let stderr = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(stderr.contains(flag) && stderr.contains(right), "{stderr}");
    }

    let help = orders(&["serve", "--help"], "postgres://ada:hunter2@host/db").await;
    let stdout = String::from_utf8_lossy(&help.stdout);
    assert!(stdout.contains("Example") && stdout.contains("ORDERS_LISTEN"), "{stdout}");
    for setting in ["ORDERS_RATE_LIMIT", "ORDERS_CORS_ORIGINS"] {
        assert!(stdout.contains(setting), "{stdout}");
    }
    assert!(!stdout.contains("hunter2"));
}
