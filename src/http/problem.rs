//! Every error a client can get: RFC 9457 problem details, from a fixed list of codes. A 5xx says
//! nothing of the inside; the cause goes to the log.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{BodyError, FieldError};
use super::idempotency_key::KeyError;
use super::limit::Quota;
use crate::writer::WriteError;

/// What a client gets instead of what it asked for.
#[derive(Debug)]
pub(crate) enum ApiError {
    Key(KeyError),
    Body(BodyError),
    /// A query or path parameter; the name and what would be right.
    Parameter(&'static str, &'static str),
    /// No bearer token, though one is needed.
    TokenMissing,
    /// A token that is malformed, unknown or revoked: which one is nobody's business.
    TokenInvalid,
    /// The client has asked too often; nothing was done.
    RateLimited(Quota),
    UnsupportedMediaType,
    BodyTooLarge,
    BodyTooSlow,
    BodyUnreadable,
    NotFound,
    OrderNotFound,
    MethodNotAllowed,
    KeyReused,
    InProgress,
    Write(WriteError),
    /// The database did not answer a read.
    Unavailable,
    Internal,
}

/// The media type of every problem.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// Declares every code a client can meet, in one place: the word, its status, whether the same
/// request may be sent again, and a title.
macro_rules! codes {
    ($($variant:ident = $word:literal, $status:ident, $retryable:literal, $title:literal;)*) => {
        /// What went wrong, for programs. The words never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($variant),* }

        impl Code {
            /// All of them: the API description and the clients' guide are compared with it.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),* }
            }

            /// Whether the same request, with the same key, may succeed later.
            pub(crate) fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),* }
            }

            /// Whether the answer says when to come again.
            pub(crate) fn retry_after(self) -> bool {
                let waits = matches!(self.status().as_u16(), 409 | 429 | 503);
                self.retryable() && waits
            }

            pub(crate) fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }
        }
    };
}

codes! {
    IdempotencyKeyMissing = "idempotency_key_missing", BAD_REQUEST, false, "Idempotency key missing";
    IdempotencyKeyInvalid = "idempotency_key_invalid", BAD_REQUEST, false, "Idempotency key invalid";
    MalformedJson = "malformed_json", BAD_REQUEST, false, "Malformed JSON";
    InvalidParameter = "invalid_parameter", BAD_REQUEST, false, "A parameter is not valid";
    BodyIncomplete = "body_incomplete", BAD_REQUEST, true, "Body incomplete";
    Unauthorized = "unauthorized", UNAUTHORIZED, false, "Unauthorized";
    NotFound = "not_found", NOT_FOUND, false, "Not found";
    OrderNotFound = "order_not_found", NOT_FOUND, false, "Order not found";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, false, "Method not allowed";
    BodyTooSlow = "body_too_slow", REQUEST_TIMEOUT, true, "Body too slow";
    IdempotencyKeyReused = "idempotency_key_reused", CONFLICT, false, "Idempotency key reused";
    RequestInProgress = "request_in_progress", CONFLICT, true, "Request in progress";
    OrderNotCancellable = "order_not_cancellable", CONFLICT, false, "The order cannot be cancelled";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, false, "Body too large";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, false, "Unsupported media type";
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY, false, "The request is not valid";
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, true, "Too many requests";
    InternalError = "internal_error", INTERNAL_SERVER_ERROR, true, "Internal error";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, true, "Overloaded";
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE, true, "Database unavailable";
    OutcomeUnknown = "outcome_unknown", SERVICE_UNAVAILABLE, true, "Outcome unknown";
}

/// RFC 9457, with `code`, `retryable` and `errors` as extension members.
#[derive(Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Names the kind of problem, as `code` does: `/problems/{code}`
    #[serde(rename = "type")]
    #[schema(format = "uri-reference")]
    kind: String,
    /// What went wrong in general, for people
    title: &'static str,
    /// The HTTP status
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What went wrong this time, for people
    detail: String,
    #[schema(schema_with = super::openapi::code_schema)]
    code: &'static str,
    /// Whether the same request, with the same key, may succeed later
    retryable: bool,
    /// What is wrong with which field; only for `validation_failed`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
}

impl Problem {
    /// The problem that an order is no longer in a state to be cancelled; stored and replayed.
    pub(crate) fn not_cancellable() -> Self {
        Self::new(Code::OrderNotCancellable, "the order is already cancelled")
    }

    fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{}", code.as_str()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: detail.into(),
            code: code.as_str(),
            retryable: code.retryable(),
            errors: Vec::new(),
        }
    }

    /// The bytes of the body.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        use Code as C;
        match error {
            ApiError::Key(KeyError::Missing) => {
                Self::new(C::IdempotencyKeyMissing, KeyError::Missing.to_string())
            }
            ApiError::Key(error) => Self::new(C::IdempotencyKeyInvalid, error.to_string()),
            ApiError::Body(BodyError::Malformed(detail)) => Self::new(C::MalformedJson, detail),
            ApiError::Body(BodyError::Invalid { errors, .. }) => Self {
                errors,
                ..Self::new(C::ValidationFailed, "see errors: each names the field and what would be right")
            },
            ApiError::Parameter(name, detail) => Self::new(C::InvalidParameter, format!("{name} {detail}")),
            ApiError::TokenMissing => {
                Self::new(C::Unauthorized, "send your API key as Authorization: Bearer ordk_…")
            }
            ApiError::TokenInvalid => Self::new(C::Unauthorized, "the API key is not valid"),
            ApiError::UnsupportedMediaType => {
                Self::new(C::UnsupportedMediaType, "send the body as application/json in UTF-8")
            }
            ApiError::RateLimited(_) => Self::new(
                C::RateLimited,
                "nothing was done: try again after the seconds in the Retry-After header",
            ),
            ApiError::BodyTooLarge => Self::new(C::BodyTooLarge, "the body may have at most 65536 bytes"),
            ApiError::BodyTooSlow => Self::new(C::BodyTooSlow, "the body did not arrive within 10 seconds"),
            ApiError::BodyUnreadable => Self::new(C::BodyIncomplete, "the body broke off"),
            ApiError::NotFound => Self::new(C::NotFound, "there is nothing here"),
            ApiError::OrderNotFound => Self::new(C::OrderNotFound, "there is no such order"),
            ApiError::MethodNotAllowed => {
                Self::new(C::MethodNotAllowed, "the Allow header lists the methods")
            }
            ApiError::KeyReused => Self::new(
                C::IdempotencyKeyReused,
                "the key belongs to another request: use a new key for a new request",
            ),
            ApiError::InProgress => Self::new(
                C::RequestInProgress,
                "a request with this key is still running: repeat it to get its answer",
            ),
            ApiError::Write(WriteError::Overloaded) => {
                Self::new(C::Overloaded, "nothing was done: try again")
            }
            ApiError::Write(WriteError::OutcomeUnknown) => Self::new(
                C::OutcomeUnknown,
                "the request may have been done: repeat it with the same key to learn its answer",
            ),
            ApiError::Write(WriteError::Unavailable) | ApiError::Unavailable => {
                Self::new(C::DatabaseUnavailable, "nothing was done: try again with the same key")
            }
            ApiError::Write(WriteError::Failed) | ApiError::Internal => {
                Self::new(C::InternalError, "nothing was done; the cause is in the server's log")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let challenge = match &self {
            ApiError::TokenMissing => Some(r#"Bearer realm="orders""#),
            ApiError::TokenInvalid => Some(r#"Bearer realm="orders", error="invalid_token""#),
            _ => None,
        };
        let quota = match self {
            ApiError::RateLimited(quota) => Some(quota),
            _ => None,
        };
        let problem = Problem::from(self);
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response =
            (status, [(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], problem.to_json())
                .into_response();
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(quota) = quota {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(quota.retry_after()));
            quota.write(response.headers_mut());
        }
        if problem.retryable && matches!(status, StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

macro_rules! from {
    ($source:ty, $variant:ident) => {
        impl From<$source> for ApiError {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        }
    };
}
from!(KeyError, Key);
from!(BodyError, Body);
from!(WriteError, Write);

/// A read that the database did not answer. The cause is logged here, once.
impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        match crate::db::Failure::of(&error) {
            crate::db::Failure::Permanent => {
                tracing::error!(error = crate::db::chain(&error), "a read failed");
                Self::Internal
            }
            _ => {
                tracing::warn!(error = crate::db::chain(&error), "the database did not answer a read");
                Self::Unavailable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_guide_lists_every_code_with_its_status_and_whether_to_retry() {
        let guide = include_str!("../../docs/clients.md");
        let table = guide.lines().skip_while(|line| !line.starts_with("| code |")).skip(2);
        let told: Vec<Vec<&str>> = table
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').skip(1).take(3).map(str::trim).collect())
            .collect();
        let known: Vec<Vec<String>> = Code::ALL
            .iter()
            .map(|code| {
                let retry = if code.retryable() { "yes" } else { "no" };
                vec![format!("`{}`", code.as_str()), code.status().as_u16().to_string(), retry.to_owned()]
            })
            .collect();
        assert_eq!(told, known);
    }
}
