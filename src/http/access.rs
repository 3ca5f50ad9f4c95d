//! Who may call. A token is looked up once and remembered for a few seconds, so that a request
//! costs no query and a revoked key stops soon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sqlx::PgPool;
use tokio::time::Instant;

use super::problem::ApiError;
use crate::db;
use crate::domain::{ClientId, Token, TokenHash};

/// How long a looked-up key is believed; a revoked one is promised to stop within 5 s.
const REMEMBERED: Duration = Duration::from_secs(4);
/// Past this many keys the memory starts anew; it only saves work.
const MAX_REMEMBERED: usize = 10_000;

/// Who may call.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everybody, and everybody is this client.
    Open(ClientId),
    /// Holders of an API key.
    Keys(KeyRing),
}

/// The keys that were looked up lately. Tokens are not kept, only their hashes; comparing hashes
/// tells an attacker nothing about a token, however long it takes.
#[derive(Clone, Debug)]
pub struct KeyRing {
    pool: PgPool,
    known: Arc<Mutex<HashMap<TokenHash, (ClientId, Instant)>>>,
}

impl KeyRing {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, known: Arc::default() }
    }

    async fn client(&self, token: &Token) -> Result<ClientId, ApiError> {
        let hash = token.hash();
        // Taken before the query: a key revoked while it runs is not believed for longer.
        let now = Instant::now();
        if let Some((client, until)) = self.lock().get(&hash)
            && now < *until
        {
            return Ok(client.clone());
        }
        let client = db::keys::client_of(&self.pool, hash.as_bytes()).await?;
        let mut known = self.lock();
        let Some(client) = client.map(ClientId::authenticated) else {
            known.remove(&hash);
            return Err(ApiError::TokenInvalid);
        };
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(hash, (client.clone(), now + REMEMBERED));
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenHash, (ClientId, Instant)>> {
        // A panic cannot leave the map half changed.
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Access {
    /// The client that a request comes from.
    pub(crate) async fn client(&self, headers: &HeaderMap) -> Result<ClientId, ApiError> {
        let keys = match self {
            Self::Open(client) => return Ok(client.clone()),
            Self::Keys(keys) => keys,
        };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (value, more) = (values.next().ok_or(ApiError::TokenMissing)?, values.next());
        let token = value
            .to_str()
            .ok()
            .filter(|_| more.is_none())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| Token::parse(token.trim()));
        keys.client(&token.ok_or(ApiError::TokenInvalid)?).await
    }
}
