//! `relay adopt`: what makes an outbox table of another program readable for this relay. It looks at
//! the table and prints SQL; it changes nothing.

use serde::{Serialize, Serializer};

use super::{CommandError, Ended, print, print_json};
use crate::config::AdoptArgs;
use crate::db;
use crate::db::adoption::{self, Surroundings};
use crate::db::foreign;
use crate::foreign::{ForeignOutbox, Table};
use crate::sink::{KAFKA, SinkName};

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Adoption {
    table: String,
    /// Why it cannot be adopted; then there is no SQL.
    wrong: Vec<String>,
    /// What the operator should know.
    notes: Vec<String>,
    /// What to run.
    sql: Option<String>,
    /// What to start the relay with.
    #[serde(serialize_with = "object")]
    settings: Vec<(&'static str, String)>,
}

pub(super) async fn run(args: &AdoptArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let Some(table) = foreign::describe(&pool, &args.table).await? else {
        return Err(CommandError::Usage(format!("there is no table {}", args.table)));
    };
    let around = adoption::surroundings(&pool, &table.name).await?;
    let sink = sink(args, &around)?;
    let outbox = args.routing.outbox(&table.name);
    let adoption = adopt(&table, &around, &sink, &outbox, args);
    if args.output.json {
        print_json(&adoption)?;
    } else {
        print(&adoption.script())?;
    }
    Ok(if adoption.wrong.is_empty() { Ended::Done } else { Ended::Found })
}

fn sink(args: &AdoptArgs, around: &Surroundings) -> Result<SinkName, CommandError> {
    let sink = match &args.sink {
        Some(sink) => sink.clone(),
        None => around.table.to_lowercase().parse().map_err(|error| {
            CommandError::Usage(format!(
                "the table's name cannot be that of its sink, name one with --sink: {error}"
            ))
        })?,
    };
    if sink.as_str() == KAFKA {
        return Err(CommandError::Usage(format!("--sink: `{KAFKA}` is that of the orders")));
    }
    Ok(sink)
}

fn adopt(
    table: &Table,
    around: &Surroundings,
    sink: &SinkName,
    outbox: &ForeignOutbox,
    args: &AdoptArgs,
) -> Adoption {
    let mut wrong = table.misfits(&outbox.headers);
    if !around.is_migrated {
        wrong.push("the relay's own tables are not in this database: run `orders migrate`".to_owned());
    }
    let has_seq = table.column("seq").is_some();
    if has_seq || args.start_now {
        wrong.extend(table.misnumbered());
    }
    let sql = wrong.is_empty().then(|| {
        if args.start_now {
            start_now(&table.name, sink, args)
        } else {
            migration(table, around, args.online)
        }
    });
    Adoption {
        table: table.name.clone(),
        notes: notes(around),
        wrong,
        sql,
        settings: vec![
            ("RELAY_SINK", sink.to_string()),
            ("OUTBOX_SHAPE", "debezium".to_owned()),
            ("OUTBOX_TABLE", outbox.table.clone()),
            ("OUTBOX_TOPIC", outbox.topic.to_string()),
            ("OUTBOX_HEADERS", outbox.headers.to_string()),
        ],
    }
}

fn notes(around: &Surroundings) -> Vec<String> {
    let vanishes = around.inserted > 0 && around.live == 0 && around.deleted >= around.inserted;
    vanishes
        .then(|| {
            "every row that was inserted is deleted again. If the inserting transaction does that itself, no reader of \
             the table ever sees a row: let it keep them (Quarkus: quarkus.debezium-outbox.remove-after-insert=false)"
                .to_owned()
        })
        .into_iter()
        .collect()
}

/// The migration that numbers the rows, in either form, and the grants.
fn migration(table: &Table, around: &Surroundings, online: bool) -> String {
    let name = &table.name;
    let index = named(&around.table, "_seq_once");
    let numbering = if table.column("seq").is_some() {
        "-- The rows are numbered already.\n".to_owned()
    } else if online {
        let sequence = format!("{}.{}", around.schema, named(&around.table, "_seq_seq"));
        // An identity column would number the old rows too, and so rewrite the table. With a default
        // that is set after the column was added, they stay without a number and are never read.
        format!(
            "begin;\n\
             set local lock_timeout = '5s';\n\
             create sequence {sequence};\n\
             alter table {name} add column seq bigint;\n\
             alter table {name} alter column seq set default nextval({literal});\n\
             alter sequence {sequence} owned by {name}.seq;\n\
             {grants}\
             commit;\n\
             -- Not within a transaction. If it fails: drop index {schema}.{index}; and again.\n\
             create unique index concurrently {index} on {name} (seq);\n",
            literal = literal(&sequence),
            schema = around.schema,
            grants = around
                .writers
                .iter()
                .map(|role| format!("grant usage on sequence {sequence} to {role};\n"))
                .collect::<String>(),
        )
    } else {
        format!(
            "-- Rewrites the table ({mib} MiB) and keeps everybody out of it meanwhile. For a big one: --online.\n\
             begin;\n\
             set local lock_timeout = '5s';\n\
             alter table {name} add column seq bigint generated always as identity;\n\
             create unique index {index} on {name} (seq);\n\
             commit;\n",
            mib = around.bytes / (1 << 20),
        )
    };
    format!(
        "{numbering}grant usage on schema {schema} to {role};\ngrant select on {name} to {role};\n",
        schema = around.schema,
        role = around.role,
    )
}

/// The statement that makes the sink begin after what is in the table. What is committed later, and
/// what is open now and committed later, is published.
fn start_now(name: &str, sink: &SinkName, args: &AdoptArgs) -> String {
    let by = args.by.as_deref().map_or_else(|| "current_user".to_owned(), literal);
    let reason = args.reason.as_deref().map_or_else(|| "null".to_owned(), literal);
    format!(
        "-- Once, before the relay is started. Stop the former publisher when it has passed `lsn`.\n\
         with begun as (\n  \
           insert into relay_sinks (sink, source, published)\n  \
           select {sink}, {source}, coalesce(range_agg(int8range(seq, seq + 1)), '{{}}')\n  \
           from {name} where seq is not null\n  \
           returning sink, source, published\n\
         ), recorded as (\n  \
           insert into relay_changes (changed_by, command, reason, details)\n  \
           select {by}, 'adopt --start-now', {reason},\n         \
                  jsonb_build_object('sink', sink, 'source', source, 'last_seq', upper(published) - 1) from begun\n\
         )\n\
         select sink, upper(published) - 1 as last_seq, pg_current_wal_insert_lsn() as lsn from begun;\n",
        sink = literal(sink.as_str()),
        source = literal(name),
    )
}

impl Adoption {
    /// SQL with everything else as comments, so that all of it can be given to psql.
    fn script(&self) -> String {
        let comment = |words: String| format!("-- {words}\n");
        let mut script = String::new();
        script.extend(self.wrong.iter().map(|wrong| comment(format!("wrong: {wrong}"))));
        script.extend(self.notes.iter().map(|note| comment(format!("note: {note}"))));
        if let Some(sql) = &self.sql {
            script.push_str(sql);
            script.push_str("-- Then: relay run publish, with\n");
            script.extend(self.settings.iter().map(|(name, value)| comment(format!("  {name}={value}"))));
        }
        script
    }
}

/// Pairs as a JSON object, in their order.
fn object<S: Serializer>(pairs: &[(&str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

/// The name of something that belongs to a table, as SQL writes it; PostgreSQL's names have 63 bytes.
fn named(table: &str, suffix: &str) -> String {
    let mut end = table.len().min(63 - suffix.len());
    while !table.is_char_boundary(end) {
        end -= 1;
    }
    format!("\"{}{suffix}\"", table[..end].replace('"', "\"\""))
}

/// A text as SQL writes it.
fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
