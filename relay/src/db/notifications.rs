//! The notifications and their states.

use std::time::Duration;

use chrono::{DateTime, Utc};
use events::OrderId;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::mail::{Attempt, Kind};

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

/// Makes the notification of an event, if the order has an address; says whether it did. The dedup
/// key (kind, order, version) is unique: invariant 8 rests on it.
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
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        r#"
        insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data,
                                   traceparent)
        select $1, $2, order_id, $4, customer_email, $5, convert_from($6, 'UTF8')::jsonb, $7
        from orders where order_id = $3 and customer_email is not null
        on conflict on constraint notifications_once do nothing
        "#,
        Uuid::now_v7(),
        kind.as_str(),
        order.as_uuid(),
        version,
        message_id,
        data,
        traceparent,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Turns what was being sent by a process that is gone into `unknown`; says how many there were.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn expire_leases(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update notifications set state = 'unknown', holder = null, lease_until = null
         where state = 'sending' and lease_until < clock_timestamp()"
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
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
    resend_unknown: bool,
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
        returning notification_id, kind, recipient, message_id, data::text as "data!", attempts, created_at,
                  traceparent
        "#,
        holder,
        time.as_secs_f64(),
        limit,
        resend_unknown,
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

/// Records what became of an attempt; only for as long as the lease is ours.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn record(
    pool: &PgPool,
    holder: &str,
    mail: &Leased,
    attempt: &Attempt,
) -> Result<(), sqlx::Error> {
    let (state, refused, error) = match attempt {
        Attempt::Sent => ("sent", false, None),
        Attempt::Failed(words) => ("failed", true, Some(words)),
        Attempt::Deferred(words) => ("pending", true, Some(words)),
        Attempt::Away(_) | Attempt::NotTried => ("pending", false, None),
    };
    let wait = if refused { retry_after(mail.attempts) } else { Duration::ZERO };
    sqlx::query!(
        r#"
        update notifications
        set state = $3, holder = null, lease_until = null,
            sent_at = case when $3 = 'sent' then clock_timestamp() end,
            failed_at = case when $3 = 'failed' then clock_timestamp() end,
            attempts = attempts + case when $4 then 1 else 0 end,
            next_attempt_at = case when $4 then clock_timestamp() + make_interval(secs => $5) else next_attempt_at end,
            last_error = coalesce($6, last_error)
        where notification_id = $1 and state = 'sending' and holder = $2
        "#,
        mail.notification_id,
        holder,
        state,
        refused,
        wait.as_secs_f64(),
        error,
    )
    .execute(pool)
    .await
    .map(drop)
}

/// 30 s, doubling up to an hour, jittered so that a crowd does not come back as one.
fn retry_after(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 7)).unwrap_or(0);
    let whole = Duration::from_secs(30 * 2_u64.pow(doublings)).min(Duration::from_secs(3600));
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}
