//! How long to wait before the next try: exponential, bounded, jittered, reset by success.

use std::time::Duration;

/// The waits of one thing that keeps failing.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits of about `first`, doubling up to `most`.
    #[must_use]
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// For a server that is away: 100 ms to 5 s.
    #[must_use]
    pub(crate) fn for_outage() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// The next wait: between half and the whole of the current step.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.most);
        wait
    }

    /// It worked: the next failure starts from the first step.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for whole in [100, 200, 400, 400] {
            let wait = backoff.next_wait();
            assert!(wait >= Duration::from_millis(whole / 2) && wait <= Duration::from_millis(whole));
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
