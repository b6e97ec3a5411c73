//! Latencies, kept exactly enough and printed as what matters.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that the histogram resolves: one minute. The client gives up long before.
const MICROS_MAX: u64 = 60_000_000;

/// The latencies of one kind of operation, in microseconds, to three significant digits.
///
/// Each worker has its own and they are merged at the end, so that recording costs no sharing.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants that the constructor accepts: 1 ≤ low, 2·low ≤ high, digits ≤ 5.
        #[allow(clippy::expect_used)]
        let histogram = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("constant bounds");
        Latencies(histogram)
    }
}

impl Latencies {
    /// Counts one operation.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(MICROS_MAX);
        self.0.saturating_record(micros.max(1));
    }

    /// Adds those of another worker.
    pub fn merge(&mut self, other: &Latencies) {
        // Both have the same bounds, so that no value of one is out of the other's range.
        self.0.add(&other.0).unwrap_or_else(|error| panic!("equal bounds do not add: {error}"));
    }

    /// How many operations were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures to print.
    pub fn summary(&self) -> LatencySummary {
        let at = |quantile| Duration::from_micros(self.0.value_at_quantile(quantile));
        LatencySummary {
            mean: Duration::from_nanos((self.0.mean() * 1e3) as u64),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_micros(self.0.max()),
        }
    }
}

/// Summary of the latencies of one kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencySummary {
    /// The arithmetic mean.
    pub mean: Duration,
    /// Half of the operations took at most this.
    pub p50: Duration,
    /// Nine in ten.
    pub p90: Duration,
    /// Ninety-nine in a hundred.
    pub p99: Duration,
    /// 999 in a thousand.
    pub p999: Duration,
    /// The slowest.
    pub max: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_two_workers_together() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        for millis in 1..=500 {
            one.record(Duration::from_millis(millis));
            other.record(Duration::from_millis(500 + millis));
        }
        one.merge(&other);
        assert_eq!(one.count(), 1_000);
        let summary = one.summary();
        let near = |actual: Duration, millis: u128| {
            let difference = actual.as_micros().abs_diff(millis * 1_000);
            assert!(difference <= millis * 2, "{actual:?} is not {millis} ms");
        };
        near(summary.mean, 500);
        near(summary.p50, 500);
        near(summary.p90, 900);
        near(summary.p99, 990);
        near(summary.p999, 999);
        near(summary.max, 1_000);
    }

    #[test]
    fn what_is_out_of_range_is_counted_at_the_edge() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(3_600));
        assert_eq!(latencies.count(), 2);
        let max = latencies.summary().max;
        assert!(max >= Duration::from_secs(60) && max < Duration::from_secs(61), "{max:?}");
    }
}
