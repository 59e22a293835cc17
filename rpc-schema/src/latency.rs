//! A latency histogram: one bucket a power of two of microseconds.
//!
//! The worker counts, the daemon and the command line read. Fixed size, no allocation, 32 buckets:
//! bucket 0 is below 1 us, bucket n is from 2^(n-1) to 2^n us, the last takes all above.

use serde::{Deserialize, Serialize};

/// Counts by powers of two of a microsecond.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Histogram {
    /// Completed requests per bucket: bucket n holds latencies below 2^n us.
    pub buckets: [u64; 32],
    /// Sum of all latencies, microseconds.
    pub sum_us: u64,
    /// The longest one, microseconds.
    pub max_us: u64,
}

impl Histogram {
    /// Counts one request that took `latency_us` microseconds.
    #[inline]
    pub fn record(&mut self, latency_us: u64) {
        let bucket = (u64::BITS - latency_us.leading_zeros()).min(31);
        self.buckets[bucket as usize] += 1;
        self.sum_us += latency_us;
        self.max_us = self.max_us.max(latency_us);
    }

    /// How many requests were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// An estimate, in microseconds, of the latency below which `fraction` (0 to 1) of the
    /// requests stayed: linear inside the bucket that holds it, never above the maximum.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn quantile_us(&self, fraction: f64) -> u64 {
        let wanted = fraction * self.count() as f64;
        let mut below = 0.0;
        for (n, &count) in self.buckets.iter().enumerate() {
            let here = count as f64;
            if here > 0.0 && below + here >= wanted {
                let low = if n == 0 { 0.0 } else { (1u64 << (n - 1)) as f64 };
                let high = ((1u64 << n) as f64).min(self.max_us as f64).max(low);
                return (low + (high - low) * (wanted - below) / here) as u64;
            }
            below += here;
        }
        self.max_us
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_us += other.sum_us;
        self.max_us = self.max_us.max(other.max_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_the_value() {
        let mut histogram = Histogram::default();
        (0..100).for_each(|_| histogram.record(100));
        histogram.record(5000);
        assert_eq!(histogram.count(), 101);
        assert!((64..=128).contains(&histogram.quantile_us(0.5)));
        assert_eq!(histogram.quantile_us(1.0), 5000);
        assert_eq!(Histogram::default().quantile_us(0.99), 0);
    }
}
