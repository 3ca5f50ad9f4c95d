//! Which web pages may call: CORS, off unless origins are given. Clients prove themselves with a
//! header that a page has to know, never with cookies, so credentials are not allowed.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::idempotency_key;
use crate::config::Origins;

/// How long a browser may believe a preflight; browsers cap it themselves.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The layer for these origins.
pub(crate) fn layer(origins: &Origins) -> CorsLayer {
    let key = HeaderName::from_static(idempotency_key::HEADER);
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(match origins {
            Origins::Any => AllowOrigin::any(),
            Origins::These(origins) => AllowOrigin::list(origins.clone()),
        })
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_NONE_MATCH,
            key.clone(),
            name("traceparent"),
            name("tracestate"),
        ])
        .expose_headers([
            ETAG,
            LOCATION,
            RETRY_AFTER,
            key,
            name("idempotent-replayed"),
            name("ratelimit"),
            name("ratelimit-policy"),
        ])
        .max_age(MAX_AGE)
}
