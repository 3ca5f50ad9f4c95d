//! Takes a customer's e-mail address out of everything that holds it.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// For so long at most whoever writes notifications queues up behind us: well below their leases of 15 s.
const LOCKED: Duration = Duration::from_secs(2);

/// Whose address: a customer of every client, or of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) customer: i64,
    pub(crate) client: Option<&'a str>,
}

/// How many rows held the address.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Held {
    pub(crate) orders: i64,
    /// Stored answers to idempotent requests.
    pub(crate) answers: i64,
    pub(crate) notifications: i64,
    /// Notifications that were being sent; these keep the address.
    pub(crate) being_sent: i64,
}

/// Their orders, which everything else is found by: no index leads from a customer to them, so this reads the
/// whole table, and must lock nothing while it does.
pub(crate) async fn theirs(
    connection: &mut PgConnection,
    whose: Whose<'_>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "select order_id from orders where customer_id = $1 and (client_id = $2 or $2::text is null)",
        whose.customer,
        whose.client,
    )
    .fetch_all(connection)
    .await
}

/// Counts without changing anything.
pub(crate) async fn count(connection: &mut PgConnection, theirs: &[Uuid]) -> Result<Held, sqlx::Error> {
    sqlx::query_as!(
        Held,
        r#"select (select count(*) from orders where order_id = any($1) and customer_email is not null) as "orders!",
                  (select count(*) from idempotency_keys where order_id = any($1)
                      and convert_from(response_body, 'UTF8') like '%"customerEmail":%') as "answers!",
                  count(*) filter (where state <> 'sending') as "notifications!",
                  count(*) filter (where state = 'sending') as "being_sent!"
             from notifications where order_id = any($1) and recipient is not null"#,
        theirs,
    )
    .fetch_one(connection)
    .await
}

/// Erases the address from orders. From then on no new answer and no new notification gets it: both read
/// it from here.
pub(crate) async fn orders(connection: &mut PgConnection, theirs: &[Uuid]) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update orders set customer_email = null where order_id = any($1) and customer_email is not null",
        theirs,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Erases the address from stored answers, and nothing else of them: the key stays taken, so that a late
/// retry makes no second order. After [`orders`], whose row locks wait for answers that are being made.
pub(crate) async fn answers(connection: &mut PgConnection, theirs: &[Uuid]) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        r#"update idempotency_keys
              set response_body = convert_to(
                    regexp_replace(convert_from(response_body, 'UTF8'), ',"customerEmail":"(\\.|[^"\\])*"', ''),
                    'UTF8')
            where order_id = any($1) and convert_from(response_body, 'UTF8') like '%"customerEmail":%'"#,
        theirs,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Erases the address from notifications; what was to be sent is `failed` instead. In a transaction after the
/// one of [`orders`]: the lock waits for a notifier that has read the address and not yet committed. Nobody
/// notifies or mails meanwhile, and leases run out, so it waits for [`LOCKED`] at most, and what it does under
/// the lock is found by the index of the dedup key.
pub(crate) async fn notifications(
    connection: &mut PgConnection,
    theirs: &[Uuid],
) -> Result<u64, sqlx::Error> {
    super::session::set_local_lock_timeout(connection, LOCKED).await?;
    sqlx::query!("lock table notifications in share row exclusive mode").execute(&mut *connection).await?;
    let done = sqlx::query!(
        "update notifications
            set recipient = null, erased_at = clock_timestamp(),
                state = case when state = 'sent' then state else 'failed' end,
                failed_at = case when state = 'sent' then null else coalesce(failed_at, clock_timestamp()) end,
                last_error = case when state <> 'sent' then 'erased' end
          where order_id = any($1) and recipient is not null and state <> 'sending'",
        theirs,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// How many notifications still have the address: those that were being sent, whatever has become of them.
pub(crate) async fn kept(connection: &mut PgConnection, theirs: &[Uuid]) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select count(*) as "kept!" from notifications where order_id = any($1) and recipient is not null"#,
        theirs,
    )
    .fetch_one(connection)
    .await
}

/// Keeps that it was done, and by whom.
pub(crate) async fn record(
    connection: &mut PgConnection,
    by: &str,
    reason: Option<&str>,
    details: &serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into relay_changes (changed_by, command, reason, details) values ($1, 'orders erase', $2, $3)",
        by,
        reason,
        details,
    )
    .execute(connection)
    .await
    .map(drop)
}
