//! The parsers of what clients send, for the fuzz targets in `fuzz/` and for nobody else.

use super::{body, idempotency_key};
use crate::domain::{CreateOrder, IdempotencyKey};

/// The parser of `POST /orders`; `None` for what a client is told to mend.
#[must_use]
pub fn create_order(bytes: &[u8]) -> Option<CreateOrder> {
    body::create_order(bytes).ok()
}

/// The parser of the `Idempotency-Key` header; `None` for what a client is told to mend.
#[must_use]
pub fn idempotency_key(value: &[u8]) -> Option<IdempotencyKey> {
    idempotency_key::parse(value).ok()
}
