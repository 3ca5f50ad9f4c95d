//! What stands where: read by `relay status` and `relay explain`, changes nothing.
//!
//! Everything here costs what it returns, however many rows the tables hold.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;

/// Counts go up to here and no further.
pub(crate) const COUNTED: i64 = 10_000;
/// So many gaps are looked into; what lies in others counts as holes.
pub(crate) const GAPS: i64 = 1_000;

/// A row of `relay_sinks`.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    /// Its name.
    pub sink: String,
    /// The table that it reads.
    pub source: String,
    /// Terms so far.
    pub epoch: i64,
    /// Who has, or had, the lease.
    pub holder: Option<String>,
    /// Seconds until the lease ends; 0 when it has ended.
    pub lease_seconds: Option<f64>,
    /// When an operator paused it.
    pub paused_at: Option<DateTime<Utc>>,
    /// Why.
    pub pause_reason: Option<String>,
    /// What the holder waits for, in its words.
    pub trouble: Option<String>,
    /// Since when.
    pub trouble_since: Option<DateTime<Utc>>,
    /// Numbers that are settled.
    pub settled: i64,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

impl Sink {
    /// Whether a relay holds the lease now.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        self.lease_seconds.is_some_and(|left| left > 0.0)
    }
}

/// All sinks.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn sinks(pool: &PgPool) -> Result<Vec<Sink>, sqlx::Error> {
    sqlx::query_as!(
        Sink,
        r#"
        select sink, source, epoch, holder,
               greatest(extract(epoch from lease_until - clock_timestamp()), 0)::float8 as lease_seconds,
               paused_at, pause_reason, trouble, trouble_since,
               (select coalesce(sum(upper(range) - lower(range)), 0)::int8 from unnest(published) as range)
                 as "settled!",
               clock_timestamp() as "now!"
        from relay_sinks order by sink
        "#
    )
    .fetch_all(pool)
    .await
}

/// What a sink has still to do: what lies above the highest settled number, and in the gaps below it.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    /// Events that are committed and not settled; [`COUNTED`] means so many or more.
    pub counted: i64,
    /// Those of them in gaps.
    pub below: i64,
    /// Gaps; the first [`GAPS`] are looked into.
    pub gaps: i64,
    /// Numbers in all gaps.
    pub drawn: i64,
    /// Numbers from the highest settled one up to that of the last event.
    pub above: i64,
    /// When the oldest of them was written, where the table tells it.
    pub oldest: Option<DateTime<Utc>>,
}

impl Backlog {
    /// How many events are pending, and whether that is their exact number: too many to count, they are
    /// told by the span of their numbers.
    #[must_use]
    pub(crate) fn pending(&self) -> (i64, bool) {
        if self.counted < COUNTED && self.gaps <= GAPS {
            return (self.counted, true);
        }
        let below = if self.below < COUNTED { self.below } else { self.drawn };
        (self.counted.max(below + self.above), false)
    }

    /// Numbers that were drawn and belong to no visible row; none when the gaps hold too many events to
    /// count.
    #[must_use]
    pub(crate) fn holes(&self) -> i64 {
        if self.below < COUNTED { self.drawn - self.below } else { 0 }
    }
}

/// Counts in the orders' outbox, through the primary key, for `relay status` and for the metrics.
///
/// Retention removes nothing of what is looked at, so no dead row is ever walked over.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn backlog(pool: &PgPool, sink: &str) -> Result<Backlog, sqlx::Error> {
    sqlx::query_as!(
        Backlog,
        r#"
        with sink as materialized (
            select published, coalesce(upper(published), 1) as next from relay_sinks where sink = $1
        ), gap as materialized (
            select lower(range) as from_seq, upper(range) - 1 as to_seq
            from sink, unnest(int8multirange(int8range(1, greatest(next, 1))) - published) as range
            order by 1
        ), open as (
            (select from_seq, to_seq, true as below from gap limit $3)
            union all
            select next, 9223372036854775807, false from sink
        ), event as materialized (
            select open.below, pending.created_at
            from open cross join lateral (
                select created_at from outbox where seq between open.from_seq and open.to_seq
                order by seq limit $2
            ) as pending
            limit $2
        ), drawn as (
            select count(*) as gaps, coalesce(sum(to_seq - from_seq + 1), 0)::int8 as numbers from gap
        )
        select count(*) as "counted!", count(*) filter (where below) as "below!",
               (select gaps from drawn) as "gaps!", (select numbers from drawn) as "drawn!",
               greatest(coalesce((select max(seq) from outbox), 0) + 1 - (select next from sink), 0) as "above!",
               min(created_at) as oldest
        from event
        "#,
        sink,
        COUNTED,
        GAPS,
    )
    .fetch_one(pool)
    .await
}

/// A transaction that has written to an outbox table and has not ended: a hole may be its own.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Writer {
    /// The backend; none for a prepared transaction.
    pub pid: Option<i32>,
    /// What the program calls itself.
    pub application_name: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// `active`, `idle in transaction`, …
    pub state: Option<String>,
    /// The name of a prepared transaction.
    pub prepared: Option<String>,
    /// When the transaction began, or was prepared.
    pub since: Option<DateTime<Utc>>,
}

/// The transactions that hold the writers' lock on an outbox table, the oldest first. What others run is
/// shown to a member of `pg_read_all_stats` only.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn writers(pool: &PgPool, table: &str) -> Result<Vec<Writer>, sqlx::Error> {
    sqlx::query_as!(
        Writer,
        r#"
        select held.pid, activity.application_name as "application_name?",
               coalesce(activity.usename, prepared.owner)::text as role,
               activity.state as "state?", prepared.gid as "prepared?",
               coalesce(activity.xact_start, prepared.prepared) as since
        from pg_locks as held
        left join pg_stat_activity as activity on activity.pid = held.pid
        left join pg_locks as own on held.pid is null and own.locktype = 'transactionid' and own.granted
                                 and own.mode = 'ExclusiveLock' and own.virtualtransaction = held.virtualtransaction
        left join pg_prepared_xacts as prepared on prepared.transaction = own.transactionid
        where held.locktype = 'relation' and held.mode = 'RowExclusiveLock' and held.granted
          and held.relation = to_regclass($1)
          and held.database = (select oid from pg_database where datname = current_database())
        order by since nulls last
        "#,
        table,
    )
    .fetch_all(pool)
    .await
}

/// Dead letters of a sink.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Dead {
    /// Events.
    pub events: i64,
    /// Orders that they belong to.
    pub orders: i64,
}

/// Counts a sink's dead letters.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn dead(pool: &PgPool, sink: &str) -> Result<Dead, sqlx::Error> {
    sqlx::query_as!(
        Dead,
        r#"
        select count(*) as "events!", count(distinct aggregate_id) as "orders!"
        from relay_dead where sink = $1
        "#,
        sink,
    )
    .fetch_one(pool)
    .await
}

/// E-mails by state; [`COUNTED`] means so many or more. Those that were sent are not counted: that
/// would read all of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Mails {
    /// To be sent, or sent again.
    pub pending: i64,
    /// Being sent.
    pub sending: i64,
    /// The mailer was gone before it could record the outcome.
    pub unknown: i64,
    /// Refused for good.
    pub failed: i64,
}

/// Counts the e-mails that are not sent.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn mails(pool: &PgPool) -> Result<Mails, sqlx::Error> {
    // A state at a time, so that each count is answered by its partial index and can be cut.
    sqlx::query_as!(
        Mails,
        r#"
        select (select count(*) from (select from notifications where state = 'pending' limit $1) as counted) as "pending!",
               (select count(*) from (select from notifications where state = 'sending' limit $1) as counted) as "sending!",
               (select count(*) from (select from notifications where state = 'unknown' limit $1) as counted) as "unknown!",
               (select count(*) from (select from notifications where state = 'failed' limit $1) as counted) as "failed!"
        "#,
        COUNTED,
    )
    .fetch_one(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_count_is_told_by_the_span_of_its_numbers() {
        let few = Backlog { counted: 36, below: 6, gaps: 1, drawn: 10, above: 30, oldest: None };
        assert_eq!((few.pending(), few.holes()), ((36, true), 4));
        let above = Backlog { counted: COUNTED, above: 2_000_000, ..few.clone() };
        assert_eq!((above.pending(), above.holes()), ((2_000_006, false), 4));
        let below = Backlog { counted: COUNTED, below: COUNTED, drawn: 2_000_000, ..few.clone() };
        assert_eq!((below.pending(), below.holes()), ((2_000_030, false), 0));
        let torn = Backlog { gaps: GAPS + 1, drawn: 5_000, ..few };
        assert_eq!((torn.pending(), torn.holes()), ((36, false), 4_994));
    }
}
