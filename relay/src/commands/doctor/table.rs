//! The outbox table of another program, when the sink reads one.

use sqlx::PgPool;

use crate::commands::CommandError;
use crate::commands::finding::Finding;
use crate::config::RoutingArgs;
use crate::db::foreign::{ForeignTable, Unreadable};
use crate::db::lease;
use crate::publish::source::{OUTBOX, Outbox};
use crate::sink::SinkName;

/// Looks at the table as the publisher does before it reads; nothing for the orders' own.
pub(super) async fn check(
    pool: &PgPool,
    sink: &SinkName,
    outbox: &Outbox,
    routing: &RoutingArgs,
) -> Option<Finding> {
    const CHECK: &str = "outbox table";
    let foreign = match outbox {
        Outbox::Foreign(outbox) => outbox.clone(),
        // Without OUTBOX_SHAPE the sink's own row tells. A database without it is told of by the schema.
        Outbox::Orders => match lease::source(pool, sink).await {
            Ok(Some(source)) if source != OUTBOX => routing.outbox(&source),
            _ => return None,
        },
    };
    Some(match ForeignTable::open(pool, &foreign).await {
        Ok(table) => Finding::ok(CHECK, format!("{} can be read, and is numbered", table.name())),
        Err(unfit @ Unreadable::Unfit { .. }) => Finding::error(
            CHECK,
            unfit.to_string(),
            format!("relay adopt --table '{}', as this role", foreign.table),
        ),
        Err(Unreadable::Database(error)) => match CommandError::from(error) {
            CommandError::Down(words) => Finding::down(CHECK, words, "start it, or correct DATABASE_URL"),
            error => Finding::error(CHECK, error.to_string(), "correct OUTBOX_TABLE"),
        },
    })
}
