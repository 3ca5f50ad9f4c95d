//! The REST API: everything that happens before an order is committed.

/// The schema, shared by the API and the relay; `orders migrate` applies it.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");
