//! What the metrics ask of the database. Every question is bounded by what is under way, never by the
//! size of a table: no count goes further than a limit, and no search begins at the old end.

use sqlx::PgPool;

use super::foreign;

/// How a sink stands.
#[derive(Debug, Default)]
pub(crate) struct SinkState {
    /// Committed events that are not settled. Past ten thousand of them below the highest settled
    /// number, open holes among those are counted as well.
    pub pending: i64,
    /// Age of the oldest of them, 0 without one; a foreign table's rows tell none.
    pub oldest_pending_seconds: f64,
    /// Numbers below the highest settled one that are not visible.
    pub holes: i64,
    /// Dead letters, counted up to 100,000.
    pub dead: i64,
    /// Whether `holder` has the lease.
    pub leader: bool,
    /// Whether an operator has paused the sink.
    pub paused: bool,
    /// The term.
    pub epoch: i64,
}

/// How the e-mails stand, counted up to 100,000.
#[derive(Debug)]
pub(crate) struct MailState {
    /// To be sent.
    pub pending: i64,
    /// How long the first of them has been due, 0 when none is.
    pub oldest_due_seconds: f64,
    /// Of unknown outcome.
    pub unknown: i64,
}

/// The state of a sink; all zero before its first term.
///
/// What is not settled lies in the gaps of `published` and above its end, and retention removes
/// nothing there: no dead row is ever walked over. At most a thousand gaps are looked into.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn sink(pool: &PgPool, sink: &str, holder: &str) -> Result<SinkState, sqlx::Error> {
    sqlx::query_as!(
        SinkState,
        r#"
        with sink as (
            select published, coalesce(upper(published), 1) as ahead, paused_at is not null as paused, epoch,
                   coalesce(holder = $2 and lease_until > clock_timestamp(), false) as leader
            from relay_sinks where sink = $1
        ), gap as (
            select lower(range) as from_seq, upper(range) as to_seq
            from sink, unnest(int8multirange(int8range(1, ahead)) - published) as range
        ), few as (
            select from_seq, to_seq from gap limit 1000
        ), below as (
            select count(*) as events
            from (select from few cross join lateral (
                      select from outbox where seq >= from_seq and seq < to_seq limit 10000
                  ) as event limit 10000) as event
        ), drawn as (
            select coalesce(sum(to_seq - from_seq), 0)::int8 as numbers from gap
        ), above as (
            select coalesce(max(top.seq) - ahead + 1, 0) as events
            from sink left join lateral (
                select seq from outbox where seq >= ahead order by seq desc limit 1
            ) as top on true
            group by ahead
        ), oldest as (
            select min(created_at) as created_at
            from (select from_seq, to_seq from few union all select ahead, null from sink) as open
            cross join lateral (
                select created_at from outbox
                where seq >= from_seq and seq < coalesce(to_seq, 9223372036854775807) order by seq limit 1
            ) as event
        )
        select case when below.events < 10000 then below.events else drawn.numbers end
                   + coalesce((select events from above), 0) as "pending!",
               coalesce(greatest(extract(epoch from clock_timestamp() - oldest.created_at), 0), 0)::float8
                   as "oldest_pending_seconds!",
               case when below.events < 10000 then drawn.numbers - below.events else 0 end as "holes!",
               (select count(*) from (select from relay_dead where sink = $1 limit 100000) as dead) as "dead!",
               coalesce((select leader from sink), false) as "leader!",
               coalesce((select paused from sink), false) as "paused!",
               coalesce((select epoch from sink), 0) as "epoch!"
        from below, drawn, oldest
        "#,
        sink,
        holder,
    )
    .fetch_one(pool)
    .await
}

/// The state of a sink that reads a foreign table; all zero before its first term. What is pending is
/// counted up to [`status::COUNTED`](super::status::COUNTED), and told by the span of the numbers above.
///
/// # Errors
/// Whatever the database says, also that the table cannot be read.
pub(crate) async fn foreign_sink(pool: &PgPool, sink: &str, holder: &str) -> Result<SinkState, sqlx::Error> {
    let Some(row) = sqlx::query!(
        r#"
        select source, epoch, paused_at is not null as "paused!",
               coalesce(holder = $2 and lease_until > clock_timestamp(), false) as "leader!",
               (select count(*) from (select from relay_dead where sink = $1 limit 100000) as dead) as "dead!"
        from relay_sinks where sink = $1
        "#,
        sink,
        holder,
    )
    .fetch_optional(pool)
    .await?
    else {
        return Ok(SinkState::default());
    };
    let backlog = foreign::backlog(pool, sink, &row.source).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok(SinkState {
        pending: backlog.pending().0,
        oldest_pending_seconds: 0.0,
        holes: backlog.holes,
        dead: row.dead,
        leader: row.leader,
        paused: row.paused,
        epoch: row.epoch,
    })
}

/// The state of the e-mails.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn mail(pool: &PgPool) -> Result<MailState, sqlx::Error> {
    sqlx::query_as!(
        MailState,
        r#"
        select (select count(*) from (select from notifications where state = 'pending' limit 100000) as mail)
                   as "pending!",
               (select coalesce(greatest(extract(epoch from clock_timestamp() - min(next_attempt_at)), 0), 0)::float8
                from notifications where state = 'pending') as "oldest_due_seconds!",
               (select count(*) from (select from notifications where state = 'unknown' limit 100000) as mail)
                   as "unknown!"
        "#
    )
    .fetch_one(pool)
    .await
}
