//! Every error a client can get: RFC 9457 problem details, from a fixed list of codes. A 5xx says
//! nothing of the inside; the cause goes to the log.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

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

/// RFC 9457, with `code`, `retryable` and `errors` as extension members.
#[derive(Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Problem {
    /// The problem that an order is no longer in a state to be cancelled; stored and replayed.
    pub(crate) fn not_cancellable() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "order_not_cancellable",
            "The order cannot be cancelled",
            "the order is already cancelled",
        )
    }

    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            code,
            retryable: false,
            errors: Vec::new(),
        }
    }

    fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }

    /// The bytes of the body.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        use StatusCode as S;
        match error {
            ApiError::Key(KeyError::Missing) => Self::new(
                S::BAD_REQUEST,
                "idempotency_key_missing",
                "Idempotency key missing",
                KeyError::Missing.to_string(),
            ),
            ApiError::Key(error) => Self::new(
                S::BAD_REQUEST,
                "idempotency_key_invalid",
                "Idempotency key invalid",
                error.to_string(),
            ),
            ApiError::Body(BodyError::Malformed(detail)) => {
                Self::new(S::BAD_REQUEST, "malformed_json", "Malformed JSON", detail)
            }
            ApiError::Body(BodyError::Invalid(errors)) => Self {
                errors,
                ..Self::new(
                    S::UNPROCESSABLE_ENTITY,
                    "validation_failed",
                    "The request is not valid",
                    "see errors: each names the field and what would be right",
                )
            },
            ApiError::Parameter(name, detail) => Self::new(
                S::BAD_REQUEST,
                "invalid_parameter",
                "A parameter is not valid",
                format!("{name} {detail}"),
            ),
            ApiError::TokenMissing => Self::new(
                S::UNAUTHORIZED,
                "unauthorized",
                "Unauthorized",
                "send your API key as Authorization: Bearer ordk_…",
            ),
            ApiError::TokenInvalid => {
                Self::new(S::UNAUTHORIZED, "unauthorized", "Unauthorized", "the API key is not valid")
            }
            ApiError::RateLimited(_) => Self::new(
                S::TOO_MANY_REQUESTS,
                "rate_limited",
                "Too many requests",
                "nothing was done: try again after the seconds in the Retry-After header",
            )
            .retryable(),
            ApiError::UnsupportedMediaType => Self::new(
                S::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Unsupported media type",
                "send the body as application/json in UTF-8",
            ),
            ApiError::BodyTooLarge => Self::new(
                S::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "Body too large",
                "the body may have at most 65536 bytes",
            ),
            ApiError::BodyTooSlow => Self::new(
                S::REQUEST_TIMEOUT,
                "body_too_slow",
                "Body too slow",
                "the body did not arrive within 10 seconds",
            )
            .retryable(),
            ApiError::BodyUnreadable => {
                Self::new(S::BAD_REQUEST, "body_incomplete", "Body incomplete", "the body broke off")
                    .retryable()
            }
            ApiError::NotFound => Self::new(S::NOT_FOUND, "not_found", "Not found", "there is nothing here"),
            ApiError::OrderNotFound => {
                Self::new(S::NOT_FOUND, "order_not_found", "Order not found", "there is no such order")
            }
            ApiError::MethodNotAllowed => Self::new(
                S::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
                "the Allow header lists the methods",
            ),
            ApiError::KeyReused => Self::new(
                S::CONFLICT,
                "idempotency_key_reused",
                "Idempotency key reused",
                "the key belongs to another request: use a new key for a new request",
            ),
            ApiError::InProgress => Self::new(
                S::CONFLICT,
                "request_in_progress",
                "Request in progress",
                "a request with this key is still running: repeat it to get its answer",
            )
            .retryable(),
            ApiError::Write(WriteError::Overloaded) => {
                Self::new(S::SERVICE_UNAVAILABLE, "overloaded", "Overloaded", "nothing was done: try again")
                    .retryable()
            }
            ApiError::Write(WriteError::OutcomeUnknown) => Self::new(
                S::SERVICE_UNAVAILABLE,
                "outcome_unknown",
                "Outcome unknown",
                "the request may have been done: repeat it with the same key to learn its answer",
            )
            .retryable(),
            ApiError::Write(WriteError::Unavailable) | ApiError::Unavailable => Self::new(
                S::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "Database unavailable",
                "nothing was done: try again with the same key",
            )
            .retryable(),
            ApiError::Write(WriteError::Failed) | ApiError::Internal => Self::new(
                S::INTERNAL_SERVER_ERROR,
                "internal_error",
                "Internal error",
                "nothing was done; the cause is in the server's log",
            )
            .retryable(),
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
