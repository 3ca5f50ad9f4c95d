//! What `relay doctor` asks of PostgreSQL. Changes nothing, and works on a database without our
//! tables and for a role without rights.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::migrate::Migrator;

/// The schema that this program is made for.
pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// A setting of the server as this session has it.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, in the unit of `pg_settings`.
    pub value: String,
    /// Where it comes from: `configuration file`, `user`, `database`, …
    pub source: String,
}

/// The settings of these names, and `server_version`.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn settings(pool: &PgPool, names: &[String]) -> Result<Vec<Setting>, sqlx::Error> {
    sqlx::query_as!(
        Setting,
        r#"select name as "name!", setting as "value!", source as "source!" from pg_settings where name = any($1)"#,
        names,
    )
    .fetch_all(pool)
    .await
}

/// A setting that another role, or this database, has of its own.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// The role; none when it is for every role.
    pub role: Option<String>,
    /// `name=value`
    pub setting: String,
}

/// What roles of this database have set for themselves.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn overrides(pool: &PgPool) -> Result<Vec<Override>, sqlx::Error> {
    sqlx::query_as!(
        Override,
        r#"
        select nullif(setrole, 0)::regrole::text as role, unnest(setconfig) as "setting!"
        from pg_db_role_setting
        where setdatabase in (0, (select oid from pg_database where datname = current_database()))
        "#
    )
    .fetch_all(pool)
    .await
}

/// What there is for a session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The role.
    pub role: String,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Connections that this role could still open, roughly.
    pub free_connections: i64,
    /// Whether it sees what other roles' sessions do.
    pub sees_sessions: bool,
}

/// Asks about this session.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn session(pool: &PgPool) -> Result<Session, sqlx::Error> {
    sqlx::query_as!(
        Session,
        r#"
        select current_user::text as "role!", pg_is_in_recovery() as "in_recovery!",
               current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
                 - (select count(*) from pg_stat_activity where backend_type = 'client backend')
                 as "free_connections!",
               pg_has_role(current_user, 'pg_read_all_stats', 'usage') as "sees_sessions!"
        "#
    )
    .fetch_one(pool)
    .await
}

/// The database's clock.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn clock(pool: &PgPool) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(pool).await
}

/// The sequence behind `outbox.seq`.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Numbers that a session takes at a time.
    pub cache: i64,
    /// From one number to the next.
    pub increment: i64,
    /// Whether it begins again at its end.
    pub cycles: bool,
    /// The last number that was drawn, 0 when none was; none for a role without rights on it.
    pub last: Option<i64>,
    /// The highest number that any sink counts as published.
    pub published: Option<i64>,
}

/// Asks for the sequence; none when there is no outbox.
///
/// # Errors
/// Whatever the database says, also that there is no `relay_sinks`.
pub(crate) async fn sequence(pool: &PgPool) -> Result<Option<Sequence>, sqlx::Error> {
    sqlx::query_as!(
        Sequence,
        r#"
        select seqcache as cache, seqincrement as increment, seqcycle as cycles,
               case when has_sequence_privilege(seqrelid, 'select') then coalesce(pg_sequence_last_value(seqrelid), 0) end as last,
               (select max(upper(published)) - 1 from relay_sinks where source = 'outbox') as published
        from pg_sequence join pg_depend on objid = seqrelid and classid = 'pg_class'::regclass
        where refobjid = to_regclass('outbox') and deptype in ('a', 'i')
        "#
    )
    .fetch_optional(pool)
    .await
}

/// Those of these tables for which autovacuum is switched off.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn without_autovacuum(pool: &PgPool, tables: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select relname::text as "name!" from pg_class
        where oid in (select to_regclass(name) from unnest($1::text[]) as name)
          and exists (select from pg_options_to_table(reloptions)
                      where case option_name when 'autovacuum_enabled' then not option_value::boolean end)
        "#,
        tables,
    )
    .fetch_all(pool)
    .await
}

/// A right that is not there.
#[derive(Clone, Debug)]
pub(crate) struct Lacking {
    /// On which table.
    pub table: String,
    /// `SELECT`, `INSERT`, …
    pub privilege: String,
    /// Whether the table is there.
    pub exists: bool,
}

/// Those of the rights (table, privilege) that this role does not have.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn lacking(
    pool: &PgPool,
    tables: &[String],
    privileges: &[String],
) -> Result<Vec<Lacking>, sqlx::Error> {
    sqlx::query_as!(
        Lacking,
        r#"
        select name as "table!", privilege as "privilege!", to_regclass(name) is not null as "exists!"
        from unnest($1::text[], $2::text[]) as needed(name, privilege)
        where not coalesce(has_table_privilege(to_regclass(name)::oid, privilege), false)
        order by 1, 2
        "#,
        tables,
        privileges,
    )
    .fetch_all(pool)
    .await
}

/// Whether this role may vacuum the outbox. Without the right `vacuum` is no error: PostgreSQL warns and
/// does nothing.
#[derive(Clone, Debug)]
pub(crate) struct Vacuum {
    /// Whether it may.
    pub is_allowed: bool,
    /// Whether there is a right that can be granted, `maintain`: from PostgreSQL 17 on.
    pub has_maintain: bool,
    /// Who may.
    pub owner: String,
}

/// Asks for the right to vacuum the outbox; none when there is no outbox.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn vacuum(pool: &PgPool) -> Result<Option<Vacuum>, sqlx::Error> {
    sqlx::query_as!(
        Vacuum,
        r#"
        select pg_has_role(datdba, 'usage')
               or case when version.has_maintain then has_table_privilege(class.oid, 'maintain')
                  else pg_has_role(relowner, 'usage') end as "is_allowed!",
               version.has_maintain as "has_maintain!", quote_ident(pg_get_userbyid(relowner)) as "owner!"
        from pg_class as class
        join pg_database on datname = current_database()
        cross join (select current_setting('server_version_num')::int >= 170000 as has_maintain) as version
        where class.oid = to_regclass('outbox')
        "#
    )
    .fetch_optional(pool)
    .await
}

/// A migration that was applied.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// Its number.
    pub version: i64,
    /// Whether it ran to its end.
    pub success: bool,
    /// SHA-384 of its text.
    pub checksum: Vec<u8>,
}

/// The migrations that were applied.
///
/// # Errors
/// Whatever the database says, also that there is no such table.
pub(crate) async fn applied(pool: &PgPool) -> Result<Vec<Applied>, sqlx::Error> {
    // Made by the migrator itself and so unknown where the statements are checked.
    let rows: Vec<(i64, bool, Vec<u8>)> =
        sqlx::query_as("select version, success, checksum from _sqlx_migrations order by version")
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().map(|(version, success, checksum)| Applied { version, success, checksum }).collect())
}
