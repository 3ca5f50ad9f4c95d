//! Whether the schema is the one that this program was built for.

use std::collections::HashSet;

use sqlx::PgConnection;
use sqlx::migrate::{Migrate, MigrateError};

use crate::MIGRATOR;

/// How the database's schema compares with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schema {
    /// Every migration is applied.
    Current,
    /// This many are not.
    Pending(usize),
}

/// Compares; changes nothing.
pub(crate) async fn schema(connection: &mut PgConnection) -> Result<Schema, MigrateError> {
    let applied = match connection.list_applied_migrations(&MIGRATOR.table_name).await {
        Ok(applied) => applied,
        Err(error) if is_undefined_table(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    let applied: HashSet<i64> = applied.iter().map(|migration| migration.version).collect();
    let pending = MIGRATOR
        .iter()
        .filter(|m| m.migration_type.is_up_migration() && !applied.contains(&m.version))
        .count();
    Ok(if pending == 0 { Schema::Current } else { Schema::Pending(pending) })
}

/// No migration has ever been applied: the table that remembers them is not there.
fn is_undefined_table(error: &MigrateError) -> bool {
    match error {
        MigrateError::Execute(sqlx::Error::Database(error)) => error.code().as_deref() == Some("42P01"),
        _ => false,
    }
}
