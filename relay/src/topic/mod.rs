//! The topic from outside: what lies on it, and how it and its brokers are set. Never publishes,
//! joins no group, commits no offset.

pub(crate) mod admin;
pub(crate) mod partitioner;
pub(crate) mod read;
pub(crate) mod write;

use std::time::Duration;

/// How long Kafka may take for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Runs what blocks off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
