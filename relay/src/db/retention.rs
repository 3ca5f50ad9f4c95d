//! Removing what is old: rows of the outbox that every sink has settled, dedup keys that nobody can
//! need any more. Each statement is small, begins where the last one ended, and can be repeated.

use std::time::Duration;

use sqlx::PgPool;

/// Rows, or numbers of rows, that one statement looks at.
pub(crate) const ROWS: i64 = 10_000;

/// What one statement did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Rows removed.
    pub rows: u64,
    /// Whether there may be more to remove at once.
    pub more: bool,
}

/// Removes rows of the outbox that are older than `age` and settled by every sink that
/// reads it, from the lowest number on that was not yet looked at.
///
/// That no event is lost (invariant 3) rests on `published`, which only ever grows: whoever runs this,
/// in whatever number and from however old a snapshot, removes only what is on Kafka or a dead letter.
/// `sink` is the caller's own: before its first term it is not among the sinks, and what it has still
/// to publish would be taken for settled. A row with a dead letter stays until the operator has retried
/// or discarded it. `skip locked` only saves the work of doing it twice.
///
/// # Errors
/// Whatever the database says; it can be repeated.
pub(crate) async fn outbox(pool: &PgPool, sink: &str, age: Duration) -> Result<Removed, sqlx::Error> {
    let done = sqlx::query!(
        r#"
        with come as (
            select outbox_removed from relay_retention for update skip locked
        ), next as (
            select lower(range) as from_seq, least(upper(range), lower(range) + $1) as to_seq
            from come, unnest(
                coalesce((select range_intersect_agg(published) from relay_sinks where source = 'outbox'), '{}') - outbox_removed
                - coalesce((select range_agg(int8range(seq, seq, '[]')) from relay_dead where source_id is null), '{}')
            ) as range
            where exists (select from relay_sinks where sink = $3)
            order by lower(range) limit 1
        ), young as (
            select min(seq) as seq from next join outbox on seq >= from_seq and seq < to_seq
            where created_at >= clock_timestamp() - make_interval(secs => $2)
        ), old as (
            select from_seq, coalesce(young.seq, to_seq) as to_seq, young.seq is null as more from next, young
        ), removed as (
            delete from outbox using old where outbox.seq >= old.from_seq and outbox.seq < old.to_seq returning 1
        ), noted as (
            update relay_retention
            set outbox_removed = outbox_removed + int8multirange(int8range(old.from_seq, old.to_seq))
            from old where old.to_seq > old.from_seq
        )
        select (select count(*) from removed) as "rows!", coalesce((select more from old), false) as "more!"
        "#,
        ROWS,
        age.as_secs_f64(),
        sink,
    )
    .fetch_one(pool)
    .await?;
    Ok(Removed { rows: done.rows.unsigned_abs(), more: done.more })
}

/// Removes dedup keys of `consumer` that are older than `age`, oldest first.
///
/// The remembered time keeps it from walking over what was removed before; a key that is committed
/// late is still younger than any age that may be set.
///
/// # Errors
/// Whatever the database says; it can be repeated.
pub(crate) async fn inbox(pool: &PgPool, consumer: &str, age: Duration) -> Result<Removed, sqlx::Error> {
    let done = sqlx::query!(
        r#"
        with come as (
            select inbox_removed_until from relay_retention for update skip locked
        ), removed as (
            delete from inbox where consumer = $1 and event_id in (
                select event_id from inbox
                where consumer = $1 and handled_at >= (select inbox_removed_until from come)
                  and handled_at < clock_timestamp() - make_interval(secs => $2)
                order by handled_at limit $3
            )
            returning handled_at
        ), noted as (
            update relay_retention set inbox_removed_until = until
            from (select max(handled_at) as until from removed) as latest where until is not null
        )
        select count(*) as "rows!" from removed
        "#,
        consumer,
        age.as_secs_f64(),
        ROWS,
    )
    .fetch_one(pool)
    .await?;
    let rows = done.rows.unsigned_abs();
    Ok(Removed { rows, more: rows >= ROWS.unsigned_abs() })
}

/// Makes the room of removed rows usable again. Waits for nobody: what somebody else is vacuuming
/// is left to them.
///
/// # Errors
/// Whatever the database says; autovacuum then does it later.
pub(crate) async fn vacuum_outbox(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query!("vacuum (skip_locked) outbox").execute(pool).await.map(drop)
}
