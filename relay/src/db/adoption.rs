//! What `relay adopt` has to know of a table and of the role that asks.

use sqlx::PgPool;

/// The surroundings of a table.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The table's schema, quoted where it needs it.
    pub schema: String,
    /// The table's name alone, not quoted.
    pub table: String,
    /// Its size without indexes, bytes.
    pub bytes: i64,
    /// Rows inserted since the statistics began.
    pub inserted: i64,
    /// Rows deleted since the statistics began.
    pub deleted: i64,
    /// Rows that are there now, by the statistics.
    pub live: i64,
    /// The role that asks, quoted where it needs it.
    pub role: String,
    /// Other roles than the owner that may insert, quoted where they need it.
    pub writers: Vec<String>,
    /// Whether the relay's own tables are there, with all that it needs.
    pub is_migrated: bool,
}

/// Looks around a table that exists.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn surroundings(pool: &PgPool, table: &str) -> Result<Surroundings, sqlx::Error> {
    sqlx::query_as!(
        Surroundings,
        r#"
        select quote_ident(nspname) as "schema!", class.relname::text as "table!",
               pg_relation_size(class.oid) as "bytes!",
               coalesce(n_tup_ins, 0) as "inserted!", coalesce(n_tup_del, 0) as "deleted!",
               coalesce(n_live_tup, 0) as "live!", quote_ident(current_user) as "role!",
               array(
                   select distinct case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
                   from aclexplode(relacl) where privilege_type = 'INSERT' and grantee <> relowner
               ) as "writers!",
               exists (
                   select from pg_attribute
                   where attrelid = to_regclass('relay_sinks') and attname = 'source' and not attisdropped
               ) as "is_migrated!"
        from pg_class as class
        join pg_namespace as namespace on namespace.oid = relnamespace
        left join pg_stat_all_tables on relid = class.oid
        where class.oid = to_regclass($1)
        "#,
        table,
    )
    .fetch_one(pool)
    .await
}
