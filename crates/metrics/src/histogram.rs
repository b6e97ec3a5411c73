//! Histogram that is cheap to observe from many threads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A histogram with fixed buckets. An observation is two relaxed additions and no lock, so that hot
/// paths of several threads can share one. The parts are read one after the other: a scrape may
/// miss an observation made meanwhile, but the count that it reports is the sum of its buckets.
#[derive(Clone)]
pub struct Histogram(Arc<Inner>);

struct Inner {
    /// Upper bounds of the buckets, in the unit of the observations (nanoseconds for latencies).
    bounds: Box<[u64]>,
    /// One count per bound, and one for the values above all of them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// The number of observed units in one reported unit.
    scale: f64,
}

impl Histogram {
    /// Latencies from 50 µs to 10 s: observed in nanoseconds, reported in seconds.
    #[must_use]
    pub fn latency() -> Self {
        const MICROS: [u64; 17] = [
            50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
            500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
        ];
        Self::new(MICROS.iter().map(|micros| micros * 1_000).collect(), 1e9)
    }

    /// Numbers of things, in powers of two from 1 to 4,096.
    #[must_use]
    pub fn count() -> Self {
        Self::new((0..=12).map(|power| 1 << power).collect(), 1.0)
    }

    /// Sizes in bytes, in powers of four from 256 B to 4 MiB.
    #[must_use]
    pub fn bytes() -> Self {
        Self::new((4..=11).map(|power| 1 << (2 * power)).collect(), 1.0)
    }

    fn new(bounds: Box<[u64]>, scale: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0), scale }))
    }

    /// Adds an observation.
    pub fn observe(&self, value: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        // There is one count more than there are bounds, so the bucket exists.
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Adds the observation of a latency.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The number of observations so far.
    #[must_use]
    pub fn observations(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({} observations)", self.observations())
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let inner = &self.0;
        let bounds = inner.bounds.iter().map(|bound| *bound as f64 / inner.scale);
        let counts = inner.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> =
            bounds.chain(std::iter::once(f64::MAX)).zip(counts).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        let sum = inner.sum.load(Ordering::Relaxed) as f64 / inner.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn an_observation_counts_in_its_bucket_and_all_above() {
        let histogram = Histogram::latency();
        histogram.observe_duration(Duration::from_micros(100));
        histogram.observe_duration(Duration::from_micros(101));
        histogram.observe_duration(Duration::from_secs(60));
        let mut registry = Registry::default();
        registry.register("x", "help", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"x_bucket{le="0.00005"} 0"#,
            r#"x_bucket{le="0.0001"} 1"#,
            r#"x_bucket{le="0.0002"} 2"#,
            r#"x_bucket{le="10.0"} 2"#,
            r#"x_bucket{le="+Inf"} 3"#,
            "x_count 3",
            "x_sum 60.000201",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
