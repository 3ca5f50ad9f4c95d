//! The parts of a request that several handlers need: the client, the body, the order id.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequestParts, Path, RawQuery};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use events::OrderId;
use futures_util::StreamExt;

use super::AppState;
use super::problem::ApiError;
use crate::domain::ClientId;

/// The largest body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The client that asks.
pub(crate) struct Client(pub(crate) ClientId);

impl<S: Sync> FromRequestParts<S> for Client
where
    AppState: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // The limit per client has found it out already.
        if let Some(client) = parts.extensions.remove() {
            return Ok(Self(client));
        }
        AppState::from_ref(state).access.client(&parts.headers).await.map(Self)
    }
}

/// The order that the path names. What is not an id names no order: 404, not 400.
pub(crate) struct OrderPath(pub(crate) OrderId);

impl<S: Send + Sync> FromRequestParts<S> for OrderPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(id) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_| ApiError::OrderNotFound)?;
        id.parse().map(Self).map_err(|_| ApiError::OrderNotFound)
    }
}

/// For routes that know no query parameters: a misspelt one is an error, not silence.
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match RawQuery::from_request_parts(parts, state).await {
            Ok(RawQuery(None)) => Ok(Self),
            Ok(RawQuery(Some(query))) if query.is_empty() => Ok(Self),
            _ => Err(ApiError::Parameter("the query", "must be empty: this route knows no parameters")),
        }
    }
}

/// Whether the body is declared as JSON in UTF-8.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    match (values.next().and_then(|value: &HeaderValue| value.to_str().ok()), values.next()) {
        (Some(value), None) if is_json(value) => Ok(()),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

fn is_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"))
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, charset)) if name.trim().eq_ignore_ascii_case("charset") => {
                charset.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

/// Reads the whole body, within its bounds of size and time.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    let read = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::BodyUnreadable)?;
            if bytes.len() + chunk.len() > MAX_BODY {
                return Err(ApiError::BodyTooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_DEADLINE, read).await.map_err(|_| ApiError::BodyTooSlow)?
}
