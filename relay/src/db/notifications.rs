//! The notifications and their states.

use std::time::Duration;

use chrono::{DateTime, Utc};
use events::OrderId;
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::mail::{Attempt, Kind, OnUnknown, Outcome, State};

/// A mail is given up when its waits between refusals have come to so long.
const GIVE_UP: Duration = Duration::from_secs(24 * 3600);
/// At most so many addresses are erased by one statement.
const ERASE: i64 = 1_000;

/// A notification that is being sent.
#[derive(Clone, Debug)]
pub(crate) struct Leased {
    /// Primary key.
    pub notification_id: Uuid,
    /// See [`Kind`].
    pub kind: String,
    /// Address.
    pub recipient: String,
    /// With angle brackets.
    pub message_id: String,
    /// The event's data, JSON.
    pub data: String,
    /// Attempts that the server refused so far.
    pub attempts: i32,
    /// When the notification was made; the mail's Date.
    pub created_at: DateTime<Utc>,
    /// W3C Trace Context of the request.
    pub traceparent: Option<String>,
}

/// What came of making a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// There is one now.
    Made,
    /// There was one.
    Exists,
    /// The order has no address.
    NoAddress,
}

/// Makes the notification of an event, if the order has an address. The dedup key (kind, order, version) is
/// unique: invariant 8 rests on it.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    kind: Kind,
    order: OrderId,
    version: i32,
    message_id: &str,
    data: &[u8],
    traceparent: Option<&str>,
) -> Result<Inserted, sqlx::Error> {
    let done = sqlx::query!(
        r#"
        with addressed as (
            select order_id, customer_email from orders where order_id = $3 and customer_email is not null
        ), made as (
            insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data,
                                       traceparent)
            select $1, $2, order_id, $4, customer_email, $5, convert_from($6, 'UTF8')::jsonb, $7 from addressed
            on conflict on constraint notifications_once do nothing
            returning notification_id
        )
        select exists (select from made) as "made!", exists (select from addressed) as "addressed!"
        "#,
        Uuid::now_v7(),
        kind.as_str(),
        order.as_uuid(),
        version,
        message_id,
        data,
        traceparent,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (done.made, done.addressed) {
        (true, _) => Inserted::Made,
        (false, true) => Inserted::Exists,
        (false, false) => Inserted::NoAddress,
    })
}

/// Turns what another process was sending, and renews no more, into `unknown`; says how many there were.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn expire_leases(pool: &PgPool, holder: &str) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update notifications set state = 'unknown', holder = null, lease_until = null
         where state = 'sending' and lease_until < clock_timestamp() and holder <> $1",
        holder,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Gives back what `holder` has leased and does not hold: the answer to its statement was lost.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn give_back(pool: &PgPool, holder: &str, held: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update notifications set state = 'pending', holder = null, lease_until = null
         where state = 'sending' and holder = $1 and notification_id <> all($2)",
        holder,
        held,
    )
    .execute(pool)
    .await
    .map(drop)
}

/// Leases due notifications. `skip locked` only saves waiting: that no two mailers send the same
/// one rests on the change of state.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn lease(
    pool: &PgPool,
    holder: &str,
    time: Duration,
    limit: i64,
    on_unknown: OnUnknown,
) -> Result<Vec<Leased>, sqlx::Error> {
    sqlx::query_as!(
        Leased,
        r#"
        update notifications
        set state = 'sending', holder = $1, lease_until = clock_timestamp() + make_interval(secs => $2)
        where notification_id in (
            select notification_id from notifications
            where state in ('pending', 'unknown') and (state = 'pending' or $4)
              and next_attempt_at <= clock_timestamp()
            order by next_attempt_at
            limit $3
            for update skip locked
        )
        returning notification_id, kind, recipient as "recipient!", message_id, data::text as "data!", attempts,
                  created_at, traceparent
        "#,
        holder,
        time.as_secs_f64(),
        limit,
        on_unknown == OnUnknown::Resend,
    )
    .fetch_all(pool)
    .await
}

/// Prolongs the leases of everything that `holder` is sending.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn renew(pool: &PgPool, holder: &str, time: Duration) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update notifications set lease_until = clock_timestamp() + make_interval(secs => $2)
         where holder = $1 and state = 'sending'",
        holder,
        time.as_secs_f64(),
    )
    .execute(pool)
    .await
    .map(drop)
}

/// What became of a mail, as it is recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Primary key.
    pub notification_id: Uuid,
    /// What it is now.
    pub state: State,
    /// The last words of the server, if it had any.
    pub last_error: Option<String>,
}

/// Records what became of attempts, each only for as long as its lease is ours: one statement and one
/// round trip for all of them. What has been refused for [`GIVE_UP`] is `failed`, with the server's words.
///
/// For how long that is, `refused_since` says: the time for which the mail was due, and nobody tried it or the
/// server was away, moves it forward, so an outage spends nothing of it.
///
/// # Errors
/// Whatever the database says; nothing is recorded then.
pub(crate) async fn record(
    pool: &PgPool,
    holder: &str,
    outcomes: &[Outcome],
    on_unknown: OnUnknown,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let ids: Vec<Uuid> = outcomes.iter().map(|outcome| outcome.notification_id).collect();
    let states: Vec<String> =
        outcomes.iter().map(|outcome| outcome.attempt.state().as_str().to_owned()).collect();
    let words: Vec<Option<String>> =
        outcomes.iter().map(|outcome| outcome.attempt.words().map(str::to_owned)).collect();
    let spends: Vec<bool> = outcomes.iter().map(Outcome::spends_an_attempt).collect();
    let waits: Vec<Option<f64>> =
        outcomes.iter().map(|outcome| outcome.wait().map(|wait| wait.as_secs_f64())).collect();
    let bounded: Vec<bool> = outcomes
        .iter()
        .map(|outcome| match outcome.attempt {
            Attempt::Deferred(_) => true,
            Attempt::Unknown(_) => on_unknown == OnUnknown::Resend,
            Attempt::Sent | Attempt::Failed(_) | Attempt::PutBack(_) | Attempt::NotTried => false,
        })
        .collect();
    sqlx::query_as!(
        Recorded,
        r#"
        with outcomes as (
            select notification_id, o.state, spends, words, make_interval(secs => wait) as wait, bounded,
                   n.refused_since + greatest(clock_timestamp() - n.next_attempt_at, interval '0') as refused_since
            from unnest($2::uuid[], $3::text[], $4::text[], $5::bool[], $6::float8[], $7::bool[])
                 as o (notification_id, state, words, spends, wait, bounded)
            join notifications n using (notification_id)
            where n.state = 'sending' and n.holder = $1
        ), judged as (
            select notification_id, spends, words, wait, refused_since,
                   case when spends and bounded and refused_since < clock_timestamp() - make_interval(secs => $8)
                        then 'failed' else state end as state
            from outcomes
        )
        update notifications n
        set state = o.state, holder = null, lease_until = null,
            sent_at = case when o.state = 'sent' then clock_timestamp() end,
            failed_at = case when o.state = 'failed' then clock_timestamp() end,
            attempts = attempts + case when o.spends then 1 else 0 end,
            -- Put back without a refusal, it waits for the server: that wait does not count either.
            refused_since = case when o.spends then coalesce(o.refused_since, clock_timestamp())
                                 when o.wait is not null then o.refused_since + o.wait
                                 else n.refused_since end,
            next_attempt_at = coalesce(clock_timestamp() + o.wait, next_attempt_at),
            last_error = coalesce(o.words, last_error)
        from judged o
        where n.notification_id = o.notification_id and n.state = 'sending' and n.holder = $1
        returning n.notification_id, n.state as "state: State", n.last_error
        "#,
        holder,
        &ids,
        &states,
        &words as &[Option<String>],
        &spends,
        &waits as &[Option<f64>],
        &bounded,
        GIVE_UP.as_secs_f64(),
    )
    .fetch_all(pool)
    .await
}

/// Erases the addresses of mails that were done with `age` ago, at most [`ERASE`] of them, and the
/// server's words with them, which may repeat the address. Gives how many.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn erase(pool: &PgPool, age: Duration) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        r#"
        update notifications
        set recipient = null, erased_at = clock_timestamp(),
            last_error = case when state = 'failed' then 'erased' end
        where notification_id in (
            select notification_id from notifications
            where recipient is not null and state in ('sent', 'failed')
              and coalesce(sent_at, failed_at) < now() - make_interval(secs => $1)
            order by coalesce(sent_at, failed_at)
            limit $2
            for update skip locked
        )
        "#,
        age.as_secs_f64(),
        ERASE,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// An e-mail as an operator sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MailView {
    pub notification_id: Uuid,
    pub state: State,
    pub kind: String,
    pub order_id: Uuid,
    pub order_version: i32,
    /// `None` when it was erased.
    pub recipient: Option<String>,
    pub message_id: String,
    pub attempts: i32,
    pub created_at: DateTime<Utc>,
    pub next_attempt_at: DateTime<Utc>,
    pub refused_since: Option<DateTime<Utc>>,
    pub sent_at: Option<DateTime<Utc>>,
    pub failed_at: Option<DateTime<Utc>>,
    pub erased_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
}

/// The youngest e-mails, at most `limit`, in these states (all when none is named) and of this order.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn list(
    pool: &PgPool,
    states: &[State],
    order: Option<Uuid>,
    limit: i64,
) -> Result<Vec<MailView>, sqlx::Error> {
    let states: Vec<String> = states.iter().map(|state| state.as_str().to_owned()).collect();
    sqlx::query_as!(
        MailView,
        r#"select notification_id, state as "state: State", kind, order_id, order_version, recipient, message_id,
                  attempts, created_at, next_attempt_at, refused_since, sent_at, failed_at, erased_at, last_error
             from notifications
            where (state = any($1) or cardinality($1::text[]) = 0) and (order_id = $2 or $2::uuid is null)
            order by notification_id desc limit $3"#,
        &states,
        order,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// One e-mail.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn find(pool: &PgPool, id: Uuid) -> Result<Option<MailView>, sqlx::Error> {
    sqlx::query_as!(
        MailView,
        r#"select notification_id, state as "state: State", kind, order_id, order_version, recipient, message_id,
                  attempts, created_at, next_attempt_at, refused_since, sent_at, failed_at, erased_at, last_error
             from notifications where notification_id = $1"#,
        id,
    )
    .fetch_optional(pool)
    .await
}

/// Makes failed and waiting e-mails due now, as if they had never been refused: those with an id of `ids`,
/// those of `order`, or all failed ones when neither is given. Erased ones stay. Gives the ids.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn retry(
    connection: &mut PgConnection,
    ids: &[Uuid],
    order: Option<Uuid>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"update notifications
              set state = 'pending', failed_at = null, attempts = 0, refused_since = null,
                  next_attempt_at = clock_timestamp()
            where recipient is not null
              and (notification_id = any($1) and state in ('failed', 'pending')
                   or order_id = $2 and state in ('failed', 'pending')
                   or cardinality($1::uuid[]) = 0 and $2::uuid is null and state = 'failed')
        returning notification_id"#,
        ids,
        order,
    )
    .fetch_all(connection)
    .await
}

/// Settles unknown outcomes: they were sent, or are sent again as if they had never been tried. Gives the ids of
/// those that were `unknown`.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn resolve(
    connection: &mut PgConnection,
    ids: &[Uuid],
    sent: bool,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "update notifications
            set state = case when $2 then 'sent' else 'pending' end,
                sent_at = case when $2 then clock_timestamp() end,
                attempts = case when $2 then attempts else 0 end,
                refused_since = case when $2 then refused_since end,
                next_attempt_at = clock_timestamp()
          where notification_id = any($1) and state = 'unknown'
        returning notification_id",
        ids,
        sent,
    )
    .fetch_all(connection)
    .await
}
