//! Stored answers.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use events::OrderId;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use crate::domain::{Answer, ClientId, Fingerprint, IdempotencyKey, Operation, Outcome};

/// How long a key is kept. Clients are promised 24 hours; the rest is room for late retries.
pub(crate) const KEPT_HOURS: i32 = 72;

/// The JSON object in `response_headers`.
type Headers = Json<BTreeMap<String, String>>;

/// A key that is in use.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    operation: String,
    fingerprint: Vec<u8>,
    order_id: OrderId,
    answer: Answer,
    /// Past its time and not yet deleted: the key is free.
    pub(crate) expired: bool,
}

impl Stored {
    /// What this row means for a request.
    pub(crate) fn judge(
        self,
        operation: Operation,
        fingerprint: &Fingerprint,
        made: Option<OrderId>,
    ) -> Outcome {
        if made == Some(self.order_id) {
            // The id was made for this request alone: an earlier run of ours was committed.
            Outcome::Done(self.answer)
        } else if self.operation == operation.as_str() && self.fingerprint == fingerprint.as_bytes() {
            Outcome::Replayed(self.answer)
        } else {
            Outcome::KeyReused
        }
    }
}

/// Reads keys that someone else has claimed. Always a statement of its own: the one that lost the
/// key has a snapshot from before the winner's commit and would see nothing (READ COMMITTED).
pub(crate) async fn lookup(
    pool: &PgPool,
    keys: &[(&ClientId, &IdempotencyKey)],
) -> Result<HashMap<(String, String), Stored>, sqlx::Error> {
    let clients: Vec<String> = keys.iter().map(|(client, _)| client.as_str().to_owned()).collect();
    let names: Vec<String> = keys.iter().map(|(_, key)| key.as_str().to_owned()).collect();
    // One index probe per key, whatever the statistics say: `limit` keeps the planner from reading
    // the whole table for a join while it believes the table to be small.
    let rows = sqlx::query!(
        r#"select asked.client_id as "client_id!", asked.key as "key!", operation, fingerprint, order_id,
                  response_status, response_body, response_headers as "response_headers: Headers",
                  expires_at <= clock_timestamp() as "expired!"
             from unnest($1::text[], $2::text[]) as asked(client_id, key)
             cross join lateral (
               select * from idempotency_keys i
                where i.client_id = asked.client_id and i.key = asked.key limit 1) as stored"#,
        &clients,
        &names,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let answer = Answer {
                // The column's CHECK allows 200 to 499.
                status: row.response_status.unsigned_abs(),
                headers: row.response_headers.0,
                body: row.response_body,
            };
            let stored = Stored {
                operation: row.operation,
                fingerprint: row.fingerprint,
                order_id: row.order_id.into(),
                answer,
                expired: row.expired,
            };
            ((row.client_id, row.key), stored)
        })
        .collect())
}

/// Frees a key that is past its time.
pub(crate) async fn delete_expired(
    pool: &PgPool,
    client: &ClientId,
    key: &IdempotencyKey,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from idempotency_keys where client_id = $1 and key = $2 and expires_at <= clock_timestamp()",
        client.as_str(),
        key.as_str(),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The most keys that [`delete_oldest_expired`] takes: few enough to be gone in milliseconds.
pub(crate) const BATCH: u64 = 1_000;

/// What one batch of the janitor did.
pub(crate) struct Deleted {
    pub(crate) deleted: u64,
    /// When the youngest of them had expired.
    pub(crate) newest: Option<DateTime<Utc>>,
}

/// Deletes the oldest expired keys, at most [`BATCH`]. Rows that someone else has locked are left
/// to them. `after` says where the batch before ended, which saves the walk over the index entries
/// of what it deleted.
///
/// `now()` and not `clock_timestamp()`: only a stable function may limit an index scan.
pub(crate) async fn delete_oldest_expired(
    pool: &PgPool,
    after: Option<DateTime<Utc>>,
) -> Result<Deleted, sqlx::Error> {
    let row = sqlx::query!(
        r#"with deleted as (
             delete from idempotency_keys where ctid = any(array(
               select ctid from idempotency_keys
                where expires_at >= coalesce($1, '-infinity'::timestamptz) and expires_at <= now()
                order by expires_at limit $2 for update skip locked))
             returning expires_at)
           select count(*) as "deleted!", max(expires_at) as newest from deleted"#,
        after,
        BATCH as i64,
    )
    .fetch_one(pool)
    .await?;
    Ok(Deleted { deleted: row.deleted.unsigned_abs(), newest: row.newest })
}

/// Takes a key without an answer yet; `false` when someone has it. Only inside a transaction
/// that ends with [`store_answer`] or a rollback.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    client: &ClientId,
    key: &IdempotencyKey,
    operation: Operation,
    fingerprint: &Fingerprint,
    order_id: OrderId,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status,
                                       response_headers, response_body, expires_at)
         values ($1, $2, $3, $4, $5, 200, '{}', '', clock_timestamp() + make_interval(hours => $6))
         on conflict (client_id, key) do nothing",
        client.as_str(),
        key.as_str(),
        operation.as_str(),
        fingerprint.as_bytes(),
        order_id.as_uuid(),
        KEPT_HOURS,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Completes a claimed key.
pub(crate) async fn store_answer(
    connection: &mut PgConnection,
    client: &ClientId,
    key: &IdempotencyKey,
    answer: &Answer,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update idempotency_keys set response_status = $3, response_headers = $4, response_body = $5
          where client_id = $1 and key = $2",
        client.as_str(),
        key.as_str(),
        status_column(answer),
        serde_json::json!(answer.headers),
        answer.body,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A status as the column takes it; what is no HTTP status is refused by the column's CHECK.
pub(crate) fn status_column(answer: &Answer) -> i16 {
    i16::try_from(answer.status).unwrap_or(i16::MAX)
}
