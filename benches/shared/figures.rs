//! Medians and percentiles.

/// `None` when there are none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The median of what `ratio` makes of the visits of each round. `None` when one of the points was
/// left out.
pub(crate) fn by_round<S>(a: &[S], b: &[S], ratio: impl Fn(&S, &S) -> f64) -> Option<f64> {
    median(a.iter().zip(b).map(|(a, b)| ratio(a, b)).collect())
}

/// Latencies in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Percentiles {
    /// Of latencies in microseconds; zeros when there are none.
    pub(crate) fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            let index = (micros.len() as f64 * share) as usize;
            let index = index.min(micros.len().saturating_sub(1));
            micros.get(index).map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}
