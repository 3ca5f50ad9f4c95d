//! The limit per client: a token bucket each, kept in this process and told to the client in the
//! RateLimit header fields (draft-ietf-httpapi-ratelimit-headers).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::access::Access;
use super::problem::ApiError;
use crate::config::RateLimit;
use crate::domain::ClientId;

/// Past this many clients with a bucket that is not full, all start anew; it errs for the clients.
const MAX_CLIENTS: usize = 10_000;

/// Counts the requests of each client.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    /// When the client's bucket will be full again, which is all there is to know of a bucket.
    full_at: Arc<Mutex<HashMap<ClientId, Instant>>>,
}

/// What a client has left, in requests, and in how many seconds it has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    limit: RateLimit,
    remaining: u64,
    /// Until the bucket is full or, when it is empty, until the next request; rounded up.
    reset: u64,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, full_at: Arc::default() }
    }

    /// Takes one request out of the client's bucket; an error when it is empty.
    fn take(&self, client: &ClientId, now: Instant) -> Result<Quota, Quota> {
        // A panic cannot leave the map half changed.
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_CLIENTS && !buckets.contains_key(client) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MAX_CLIENTS {
                buckets.clear();
            }
        }
        let (one, window) = (self.limit.interval(), self.limit.window());
        let missing = buckets.get(client).map_or(Duration::ZERO, |full_at| full_at.duration_since(now)) + one;
        let quota = |remaining, reset| Quota { limit: self.limit, remaining, reset };
        if missing > window {
            return Err(quota(0, seconds(missing - window)));
        }
        buckets.insert(client.clone(), now + missing);
        let remaining = (window - missing).as_nanos() / one.as_nanos();
        let reset = if remaining == 0 { missing + one - window } else { missing };
        Ok(quota(u64::try_from(remaining).unwrap_or(u64::MAX), seconds(reset)))
    }
}

fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Quota {
    /// Seconds until a refused request may be repeated.
    pub(crate) fn retry_after(self) -> u64 {
        self.reset.max(1)
    }

    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let policy =
            format!("\"default\";q={};w={}", self.limit.burst(), seconds(self.limit.window()).max(1));
        let left = format!("\"default\";r={};t={}", self.remaining, self.reset);
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// Finds out whose request it is, and lets it through while its client has some left. Before the
/// handler, so that a refusal is never stored with an idempotency key.
pub(crate) async fn limit(
    State((limiter, access)): State<(Limiter, Access)>,
    mut request: Request,
    next: Next,
) -> Response {
    let client = match access.client(request.headers()).await {
        Ok(client) => client,
        Err(error) => return error.into_response(),
    };
    let quota = match limiter.take(&client, Instant::now()) {
        Ok(quota) => quota,
        Err(quota) => return ApiError::RateLimited(quota).into_response(),
    };
    request.extensions_mut().insert(client);
    let mut response = next.run(request).await;
    quota.write(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(limit: &str) -> Limiter {
        Limiter::new(limit.parse().expect("a limit"))
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let (limiter, client, start) = (limiter("2,5"), ClientId::anonymous(), Instant::now());
        let left: Vec<_> = (0..5).map(|_| limiter.take(&client, start).expect("left").remaining).collect();
        assert_eq!(left, [4, 3, 2, 1, 0]);
        assert_eq!(limiter.take(&client, start).expect_err("empty").retry_after(), 1);
        // A refusal costs nothing: half a second gives one.
        let later = start + Duration::from_millis(500);
        assert!(limiter.take(&client, later).is_ok());
        assert!(limiter.take(&client, later).is_err());
        // However long the rest, a bucket holds no more than its burst.
        let rested = start + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| limiter.take(&client, rested).is_ok()).count(), 5);
    }

    #[test]
    fn clients_do_not_share_a_bucket() {
        let (limiter, now) = (limiter("1"), Instant::now());
        assert!(limiter.take(&ClientId::anonymous(), now).is_ok());
        assert!(limiter.take(&ClientId::anonymous(), now).is_err());
        assert!(limiter.take(&ClientId::authenticated("shop".into()), now).is_ok());
    }

    #[test]
    fn the_memory_is_bounded_and_full_buckets_go_first() {
        let (limiter, start) = (limiter("1"), Instant::now());
        for i in 0..MAX_CLIENTS {
            let _ = limiter.take(&ClientId::authenticated(i.to_string()), start);
        }
        let len = || limiter.full_at.lock().expect("no panic").len();
        assert_eq!(len(), MAX_CLIENTS);
        let later = start + Duration::from_secs(2);
        assert!(limiter.take(&ClientId::anonymous(), later).is_ok());
        assert_eq!(len(), 1);
    }

    #[test]
    fn the_header_fields_say_what_is_left() {
        let (limiter, client, now) = (limiter("2,5"), ClientId::anonymous(), Instant::now());
        let mut headers = HeaderMap::new();
        limiter.take(&client, now).expect("left").write(&mut headers);
        assert_eq!(headers["ratelimit-policy"], r#""default";q=5;w=3"#);
        assert_eq!(headers["ratelimit"], r#""default";r=4;t=1"#);
    }
}
