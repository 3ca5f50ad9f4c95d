//! API keys, known by the hash of their token.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// A key as an operator sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyView {
    pub(crate) key_id: Uuid,
    pub(crate) client_id: String,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

/// The client whose key has this hash and is in force. Notes the use, at most once an hour, so
/// that a busy key costs no write.
pub(crate) async fn client_of(pool: &PgPool, hash: &[u8]) -> Result<Option<String>, sqlx::Error> {
    let key = sqlx::query!(
        r#"select key_id, client_id,
                  (last_used_at is null or last_used_at < clock_timestamp() - interval '1 hour') as "unnoted!"
             from api_keys where token_hash = $1 and revoked_at is null"#,
        hash,
    )
    .fetch_optional(pool)
    .await?;
    let Some(key) = key else { return Ok(None) };
    if key.unnoted {
        sqlx::query!("update api_keys set last_used_at = clock_timestamp() where key_id = $1", key.key_id)
            .execute(pool)
            .await?;
    }
    Ok(Some(key.client_id))
}

/// Adds a key for a client.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    client: &str,
    hash: &[u8],
) -> Result<Uuid, sqlx::Error> {
    let key_id = Uuid::now_v7();
    sqlx::query!(
        "insert into api_keys (key_id, client_id, token_hash) values ($1, $2, $3)",
        key_id,
        client,
        hash,
    )
    .execute(connection)
    .await?;
    Ok(key_id)
}

/// Every key, oldest first.
pub(crate) async fn list(connection: &mut PgConnection) -> Result<Vec<KeyView>, sqlx::Error> {
    sqlx::query_as!(
        KeyView,
        "select key_id, client_id, created_at, last_used_at, revoked_at from api_keys order by key_id"
    )
    .fetch_all(connection)
    .await
}

/// Takes a key out of force; `false` when there is none. Again changes nothing.
pub(crate) async fn revoke(connection: &mut PgConnection, key: Uuid) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where key_id = $1",
        key,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
