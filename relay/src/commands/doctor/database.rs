//! PostgreSQL: settings, rights, schema, clock.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::commands::CommandError;
use crate::commands::finding::Finding;
use crate::commands::text::{seconds, span};
use crate::db::doctor::{self, Lacking, Override, Sequence, Session, Setting};

/// The oldest version that the SQL is written for.
const OLDEST: i64 = 15;
/// Connections that one `relay run` opens at most.
const CONNECTIONS: i64 = 20;
/// Clocks that differ by more are worth a word.
const CLOCKS: f64 = 1.0;

/// What the relay does with each table.
const RIGHTS: [(&str, &[&str]); 13] = [
    ("outbox", &["SELECT", "DELETE"]),
    ("relay_sinks", &["SELECT", "INSERT", "UPDATE"]),
    ("relay_dead", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("relay_retries", &["SELECT", "INSERT", "DELETE"]),
    ("relay_discarded", &["SELECT", "INSERT"]),
    ("relay_replays", &["SELECT", "INSERT", "UPDATE"]),
    ("relay_changes", &["SELECT", "INSERT"]),
    ("inbox", &["SELECT", "INSERT", "DELETE"]),
    ("inbox_blocked", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("inbox_dead", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("notifications", &["SELECT", "INSERT", "UPDATE"]),
    ("relay_retention", &["SELECT", "UPDATE"]),
    ("orders", &["SELECT"]),
];

pub(super) async fn check(pool: &PgPool) -> Vec<Finding> {
    let session = match doctor::session(pool).await {
        Ok(session) => session,
        Err(error) => {
            let words = CommandError::from(error).to_string();
            return vec![Finding::down("postgresql", words, "start it, or correct DATABASE_URL")];
        }
    };
    let mut findings = Vec::new();
    // One part that cannot be asked for does not hide the others.
    let parts = [
        settings(pool, &session).await,
        schema(pool).await,
        sequence(pool).await,
        rights(pool, &session).await,
        vacuum(pool, &session).await,
        autovacuum(pool).await,
        clock(pool).await,
    ];
    for part in parts {
        match part {
            Ok(part) => findings.extend(part),
            Err(error) => findings.push(Finding::error(
                "postgresql",
                CommandError::from(error).to_string(),
                "mend that, and run `relay doctor` again",
            )),
        }
    }
    findings
}

async fn settings(pool: &PgPool, session: &Session) -> Result<Vec<Finding>, sqlx::Error> {
    let names = [
        "server_version",
        "server_version_num",
        "fsync",
        "full_page_writes",
        "synchronous_commit",
        "synchronous_standby_names",
        "autovacuum",
        "idle_in_transaction_session_timeout",
        "statement_timeout",
        "transaction_timeout",
        "default_transaction_read_only",
    ]
    .map(str::to_owned);
    let settings = doctor::settings(pool, &names).await?;
    let values: HashMap<_, _> =
        settings.iter().map(|setting| (setting.name.as_str(), setting.value.as_str())).collect();
    let value = |name: &str| values.get(name).copied().unwrap_or_default();
    let mut findings = vec![version(value("server_version"), value("server_version_num"))];
    if session.in_recovery || value("default_transaction_read_only") == "on" {
        findings.push(Finding::error(
            "postgresql primary",
            "this server takes no writes: it is a standby, or read only",
            "DATABASE_URL must lead to the primary, through failovers too (target_session_attrs=read-write)",
        ));
    }
    for (name, why) in [
        ("fsync", "a crash of the machine may lose or corrupt what was committed"),
        ("full_page_writes", "a crash of the machine may corrupt pages"),
    ] {
        findings.push(match value(name) {
            "off" => Finding::error(
                &format!("postgresql {name}"),
                format!("off: {why}"),
                format!("alter system set {name} = on; select pg_reload_conf()"),
            ),
            on => Finding::ok(&format!("postgresql {name}"), on),
        });
    }
    let overrides = doctor::overrides(pool).await?;
    let has_standby = !value("synchronous_standby_names").is_empty();
    findings.push(synchronous_commit(value("synchronous_commit"), &overrides, has_standby));
    findings.push(match value("autovacuum") {
        "off" => Finding::warning(
            "postgresql autovacuum",
            "off: tables from which rows are deleted grow for ever",
            "alter system set autovacuum = on; select pg_reload_conf()",
        ),
        on => Finding::ok("postgresql autovacuum", on),
    });
    findings.extend(settings.iter().filter_map(|setting| timeout(setting, &session.role)));
    findings.push(if session.free_connections < CONNECTIONS {
        Finding::warning(
            "postgresql max_connections",
            format!("{} left; a relay opens up to {CONNECTIONS}", session.free_connections),
            "raise max_connections, or put a pooler before PostgreSQL",
        )
    } else {
        Finding::ok("postgresql max_connections", format!("{} left", session.free_connections))
    });
    Ok(findings)
}

fn version(shown: &str, number: &str) -> Finding {
    let major = number.parse::<i64>().unwrap_or_default() / 10_000;
    if major < OLDEST {
        Finding::error(
            "postgresql version",
            format!("{shown}: the SQL is written for {OLDEST} and later"),
            "upgrade PostgreSQL",
        )
    } else {
        Finding::ok("postgresql version", shown)
    }
}

/// What ends a statement, or a transaction, of this role. The relay's own are short, but for a vacuum, and
/// are repeated when they are cut off; one that is cut off every time never succeeds.
fn timeout(Setting { name, value, source }: &Setting, role: &str) -> Option<Finding> {
    let (check, cut_off) = match name.as_str() {
        "statement_timeout" => {
            ("postgresql statement_timeout", "the vacuum of the outbox, or a read behind a slow disk")
        }
        "transaction_timeout" => ("postgresql transaction_timeout", "a batch of notify on a busy machine"),
        "idle_in_transaction_session_timeout" => {
            ("postgresql idle_in_transaction", "a transaction of a relay that gets no processor for so long")
        }
        _ => return None,
    };
    // What the whole server has against forgotten transactions is to be welcomed: it closes their holes.
    let is_own = matches!(source.as_str(), "user" | "database" | "database user");
    Some(match value.as_str() {
        "0" if check == "postgresql idle_in_transaction" => Finding::ok(
            check,
            "no limit: a forgotten transaction keeps its holes open, delays nobody, and holds up vacuum",
        ),
        "0" => Finding::ok(check, "no limit"),
        millis if check == "postgresql idle_in_transaction" && !is_own => {
            Finding::ok(check, format!("ended after {millis} ms"))
        }
        millis => Finding::warning(
            check,
            format!("{millis} ms for the relay ({source}): it may cut off {cut_off}"),
            format!("alter role {role} set {name} = 0"),
        ),
    })
}

/// The API has perhaps another role: its setting decides whether an answered order survives.
fn synchronous_commit(ours: &str, overrides: &[Override], has_standby: bool) -> Finding {
    const CHECK: &str = "postgresql synchronous_commit";
    // As they were written: PostgreSQL keeps the words, and takes these for the same.
    let set_to = |words: &'static [&'static str]| {
        let with = move |other: &&Override| {
            let value = other.setting.strip_prefix("synchronous_commit=").map(str::to_lowercase);
            value.is_some_and(|value| words.contains(&value.as_str()))
        };
        let role =
            |other: &Override| other.role.clone().unwrap_or_else(|| "every role of this database".to_owned());
        overrides.iter().filter(with).map(role).collect::<Vec<_>>().join(", ")
    };
    let (off, local) = (set_to(&["off", "false", "no", "0"]), set_to(&["local"]));
    if ours == "off" {
        Finding::error(
            CHECK,
            "off: a crash loses orders that were answered with 201",
            "alter system set synchronous_commit = on; select pg_reload_conf(); and look at alter role, alter database",
        )
    } else if !off.is_empty() {
        Finding::error(
            CHECK,
            format!("off for {off}: if the API connects as that, a crash loses orders that were answered"),
            "alter role ... reset synchronous_commit",
        )
    } else if has_standby && (ours == "local" || !local.is_empty()) {
        let whose = if local.is_empty() { "this role" } else { local.as_str() };
        Finding::warning(
            CHECK,
            format!(
                "local for {whose}: a commit does not wait for the synchronous standby, and a failover to it may lose orders that were answered"
            ),
            "alter role ... reset synchronous_commit, or set it to on",
        )
    } else {
        Finding::ok(CHECK, ours)
    }
}

async fn schema(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    const CHECK: &str = "schema";
    let applied = match doctor::applied(pool).await {
        Ok(applied) => applied,
        Err(sqlx::Error::Database(answer)) => {
            return Ok(vec![match answer.code().as_deref() {
                Some("42P01") => Finding::error(CHECK, "the database was never migrated", "orders migrate"),
                _ => Finding::warning(
                    CHECK,
                    format!("its version cannot be read: {}", answer.message()),
                    "grant select on _sqlx_migrations to this role",
                ),
            }]);
        }
        Err(error) => return Err(error),
    };
    let (mut missing, mut differing) = (Vec::new(), Vec::new());
    for wanted in doctor::MIGRATIONS.iter().filter(|migration| migration.migration_type.is_up_migration()) {
        match applied.iter().find(|there| there.version == wanted.version) {
            Some(there) if there.success && there.checksum == *wanted.checksum => {}
            Some(_) => differing.push(wanted.version.to_string()),
            None => missing.push(wanted.version.to_string()),
        }
    }
    let newest = doctor::MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    let newer = applied.iter().filter(|there| there.version > newest).count();
    Ok(vec![if !differing.is_empty() {
        Finding::error(
            CHECK,
            format!("migration {} was applied in another form, or not to its end", differing.join(", ")),
            "run the `orders` and the `relay` of one release; a migration is never edited",
        )
    } else if !missing.is_empty() {
        Finding::error(CHECK, format!("migration {} is missing", missing.join(", ")), "orders migrate")
    } else if newer > 0 {
        Finding::warning(
            CHECK,
            format!("newer than this relay by {newer} migrations"),
            "run the relay of the release that migrated it",
        )
    } else {
        Finding::ok(CHECK, format!("migration {newest}, as this relay wants it"))
    }])
}

async fn sequence(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    const CHECK: &str = "outbox sequence";
    let Sequence { cache, increment, cycles, last, published } = match doctor::sequence(pool).await {
        Ok(Some(sequence)) => sequence,
        // That tables are missing, or may not be read, is said of the schema and of the rights.
        Ok(None) | Err(sqlx::Error::Database(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut findings = Vec::new();
    if (cache, increment, cycles) != (1, 1, false) {
        findings.push(Finding::error(
            CHECK,
            format!(
                "cache {cache}, increment {increment}{}: numbers no longer follow the order of commits, and events of an order may be published in the wrong order",
                if cycles { ", cycling" } else { "" }
            ),
            "alter table outbox alter seq set cache 1, alter seq set increment by 1, alter seq set no cycle",
        ));
    }
    if let Some((last, published)) = last.zip(published).filter(|(last, published)| last < published) {
        findings.push(Finding::error(
            CHECK,
            format!(
                "it stands at {last}, and numbers up to {published} count as published: the next events would never be published"
            ),
            format!("select setval(pg_get_serial_sequence('outbox', 'seq'), {published}); then `relay audit`"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "one number at a time, above all that are published"));
    }
    Ok(findings)
}

async fn rights(pool: &PgPool, session: &Session) -> Result<Vec<Finding>, sqlx::Error> {
    const CHECK: &str = "rights";
    let (tables, privileges): (Vec<String>, Vec<String>) = RIGHTS
        .iter()
        .flat_map(|(table, privileges)| privileges.iter().map(|p| ((*table).to_owned(), (*p).to_owned())))
        .unzip();
    let lacking = doctor::lacking(pool, &tables, &privileges).await?;
    let mut by_table: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Lacking { table, privilege, .. } in lacking.iter().filter(|right| right.exists) {
        by_table.entry(table).or_default().push(privilege);
    }
    let mut findings: Vec<Finding> = by_table
        .into_iter()
        .map(|(table, privileges)| {
            let privileges = privileges.join(", ").to_lowercase();
            Finding::error(
                CHECK,
                format!("role {} may not {privileges} on {table}", session.role),
                format!("grant {privileges} on {table} to {}", session.role),
            )
        })
        .collect();
    if lacking.is_empty() {
        findings.push(Finding::ok(CHECK, format!("role {} has all that the relay needs", session.role)));
    }
    if !session.sees_sessions {
        findings.push(Finding::warning(
            "rights",
            "who holds a hole cannot be told by name: other roles' sessions are hidden",
            format!("grant pg_read_all_stats to {}", session.role),
        ));
    }
    Ok(findings)
}

/// Retention vacuums by itself while it catches up, and PostgreSQL only warns when it may not.
async fn vacuum(pool: &PgPool, session: &Session) -> Result<Vec<Finding>, sqlx::Error> {
    const CHECK: &str = "vacuum";
    // That there is no outbox is said of the schema.
    let Some(vacuum) = doctor::vacuum(pool).await? else { return Ok(Vec::new()) };
    let Session { role, .. } = session;
    Ok(vec![if vacuum.is_allowed {
        Finding::ok(CHECK, format!("role {role} may vacuum the outbox"))
    } else {
        Finding::warning(
            CHECK,
            format!(
                "role {role} may not vacuum the outbox: after many removed rows it grows until autovacuum comes"
            ),
            if vacuum.has_maintain {
                format!("grant maintain on outbox to {role}")
            } else {
                format!(
                    "grant {} to {role}; before PostgreSQL 17 only the owner of a table may vacuum it",
                    vacuum.owner
                )
            },
        )
    }])
}

async fn autovacuum(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    let tables = RIGHTS.map(|(table, _)| table.to_owned());
    let without = doctor::without_autovacuum(pool, &tables).await?;
    Ok(without
        .into_iter()
        .map(|table| {
            Finding::warning(
                "postgresql autovacuum",
                format!("switched off for {table}"),
                format!("alter table {table} reset (autovacuum_enabled)"),
            )
        })
        .collect())
}

async fn clock(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    let asked: DateTime<Utc> = Utc::now();
    let theirs = doctor::clock(pool).await?;
    let answered = Utc::now();
    let way = seconds(asked, answered);
    let ahead = seconds(asked, theirs) - way / 2.0;
    let direction = if ahead < 0.0 { "behind" } else { "ahead of" };
    let found = format!(
        "the database's clock is {} {direction} this machine's (+- {})",
        span(ahead.abs()),
        span(way / 2.0)
    );
    Ok(vec![if ahead.abs() - way / 2.0 > CLOCKS {
        Finding::warning(
            "clocks",
            format!(
                "{found}; the lease lives on the database's clock alone, but the times of `relay explain`, the times on messages and the topic's retention mix both"
            ),
            "run NTP on both machines",
        )
    } else {
        Finding::ok("clocks", found)
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::finding::Severity;

    fn other(setting: &str) -> Override {
        Override { role: Some("api".to_owned()), setting: setting.to_owned() }
    }

    #[test]
    fn every_spelling_of_synchronous_commit_off_is_an_error_and_nothing_else_is() {
        let severity = |setting: &str| synchronous_commit("on", &[other(setting)], false).severity;
        for off in ["off", "OFF", "false", "no", "0"] {
            assert_eq!(severity(&format!("synchronous_commit={off}")), Severity::Error, "{off}");
        }
        for on in ["on", "true", "1", "local", "remote_write", "remote_apply"] {
            assert_eq!(severity(&format!("synchronous_commit={on}")), Severity::Ok, "{on}");
        }
        assert_eq!(severity("autovacuum=off"), Severity::Ok);
        assert_eq!(synchronous_commit("off", &[], false).severity, Severity::Error);
    }

    #[test]
    fn a_commit_that_does_not_wait_for_the_synchronous_standby_is_told() {
        let local = other("synchronous_commit=local");
        let found = synchronous_commit("on", std::slice::from_ref(&local), true);
        assert!(found.severity == Severity::Warning && found.found.contains("api"), "{found:?}");
        assert_eq!(synchronous_commit("local", &[], true).severity, Severity::Warning);
        assert_eq!(synchronous_commit("local", &[local], false).severity, Severity::Ok, "there is none");
        assert_eq!(synchronous_commit("on", &[], true).severity, Severity::Ok);
    }
}
