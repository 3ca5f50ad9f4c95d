//! The REST API: everything that happens before an order is committed.
//!
//! `http` says what a request and an answer look like, `domain` what can be asked and how it can
//! end, `writer` is the one way to change an order, `db` holds every SQL statement, `bell` wakes the
//! relay after a commit, `janitor` deletes keys that are past their time. The API never imports the relay: they meet in the schema.

pub mod bell;
pub mod config;
mod db;
pub mod domain;
pub mod erase;
pub mod http;
mod janitor;
pub mod keys;
pub mod metrics;
pub mod migrate;
pub mod server;
pub mod telemetry;
pub mod writer;

/// The schema, shared by the API and the relay; `orders migrate` applies it.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");
