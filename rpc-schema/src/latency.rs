//! A latency histogram, log-linear: four buckets for each power of two of microseconds, so that a
//! quantile is off by an eighth at the most.
//!
//! The worker counts, the daemon and the command line read. Fixed size, no allocation while it
//! counts. On the wire only buckets that hold something, each with its own bound: a reader needs
//! not know how they are divided.

use serde::{Deserialize, Serialize};

/// Buckets of one power of two.
const PARTS: u64 = 4;
/// Two to this power are the parts.
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// The power of two from which on all latencies are in the last bucket: over an hour.
const POWERS: u32 = 32;
/// Below [`PARTS`] microseconds each has a bucket of its own.
const BUCKETS: usize = (PARTS as usize) * (POWERS - PARTS_BITS + 1) as usize;

/// Counts of latencies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "Wire"))]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    /// Sum of all latencies, microseconds.
    pub sum_us: u64,
    /// The longest one, microseconds.
    pub max_us: u64,
}

/// Counts of latencies, as they are told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Histogram"))]
struct Wire {
    /// Pairs, by size: a bound in microseconds, and how many requests took less than it and no
    /// less than the bound of the bucket before. Buckets are a quarter of a power of two wide;
    /// those that hold nothing are left out.
    #[serde(default)]
    counts: Vec<(u64, u64)>,
    /// Sum of all latencies, microseconds.
    sum_us: u64,
    /// The longest one, microseconds.
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: [0; BUCKETS], sum_us: 0, max_us: 0 }
    }
}

/// The bucket of a latency.
#[inline]
fn bucket_of(latency_us: u64) -> usize {
    let bucket = match latency_us.checked_ilog2() {
        Some(power) if power >= PARTS_BITS => {
            let part = (latency_us >> (power - PARTS_BITS)) - PARTS;
            PARTS * u64::from(power - PARTS_BITS + 1) + part
        }
        _ => latency_us,
    };
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

/// The first latency that is too long for a bucket, microseconds.
fn bound_of(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    let power = next / PARTS;
    if power == 0 { next } else { (PARTS + next % PARTS) << (power - 1) }
}

impl Histogram {
    /// Counts one request that took `latency_us` microseconds.
    #[inline]
    pub fn record(&mut self, latency_us: u64) {
        self.buckets[bucket_of(latency_us)] += 1;
        self.sum_us += latency_us;
        self.max_us = self.max_us.max(latency_us);
    }

    /// How many requests were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took less than a power of two of microseconds.
    #[must_use]
    pub fn below_power(&self, power: u32) -> u64 {
        let past = if power >= POWERS { BUCKETS } else { bucket_of(1 << power) };
        self.buckets[..past].iter().sum()
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
                let low = if n == 0 { 0.0 } else { bound_of(n - 1) as f64 };
                let high = if n == BUCKETS - 1 { u64::MAX } else { bound_of(n) } as f64;
                let high = high.min(self.max_us as f64).max(low);
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

    /// What was counted since `earlier`, but for the longest one, which is of all time. Nothing is
    /// negative: a worker that was started in between counts anew.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut since = self.clone();
        for (mine, theirs) in since.buckets.iter_mut().zip(earlier.buckets) {
            *mine = mine.saturating_sub(theirs);
        }
        since.sum_us = since.sum_us.saturating_sub(earlier.sum_us);
        since
    }
}

impl From<Histogram> for Wire {
    fn from(histogram: Histogram) -> Self {
        let all = histogram.buckets.iter().enumerate();
        let counts = all.filter(|(_, count)| **count > 0).map(|(n, count)| (bound_of(n), *count));
        Wire { counts: counts.collect(), sum_us: histogram.sum_us, max_us: histogram.max_us }
    }
}

impl From<Wire> for Histogram {
    fn from(wire: Wire) -> Self {
        let Wire { counts, sum_us, max_us } = wire;
        let mut histogram = Histogram { sum_us, max_us, ..Histogram::default() };
        for (bound, count) in counts {
            let bucket = &mut histogram.buckets[bucket_of(bound.saturating_sub(1))];
            *bucket = bucket.saturating_add(count);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_a_quarter_of_a_power_wide() {
        assert_eq!((0..8).map(bound_of).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((8..13).map(bound_of).collect::<Vec<_>>(), [10, 12, 14, 16, 20]);
        for n in 0..BUCKETS - 1 {
            let bound = bound_of(n);
            assert_eq!((bucket_of(bound - 1), bucket_of(bound)), (n, n + 1), "{bound}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bound_of(BUCKETS - 1), 1 << POWERS);
    }

    #[test]
    fn quantiles_are_off_by_an_eighth_at_the_most() {
        let mut histogram = Histogram::default();
        (0..100).for_each(|_| histogram.record(100));
        histogram.record(5000);
        assert_eq!(histogram.count(), 101);
        assert!((96..=112).contains(&histogram.quantile_us(0.5)));
        assert_eq!(histogram.quantile_us(1.0), 5000);
        assert_eq!((histogram.below_power(6), histogram.below_power(7)), (0, 100));
        assert_eq!((histogram.below_power(13), histogram.below_power(60)), (101, 101));
        assert_eq!(Histogram::default().quantile_us(0.99), 0);
    }

    #[test]
    fn what_is_told_is_what_was_counted() {
        let mut histogram = Histogram::default();
        let latencies = [0, 1, 3, 7, 100, 101, 5000, 1 << 31, u64::MAX >> 8];
        latencies.into_iter().for_each(|us| histogram.record(us));
        let text = serde_json::to_string(&histogram).expect("numbers");
        assert!(text.starts_with(r#"{"counts":[[1,1],[2,1],[4,1],[8,1],[112,2],"#), "{text}");
        assert_eq!(serde_json::from_str::<Histogram>(&text).expect("a histogram"), histogram);
        // A worker of before, which told powers of two under another name.
        let old = r#"{"buckets":[0,1],"sum_us":1,"max_us":1}"#;
        assert_eq!(serde_json::from_str::<Histogram>(old).expect("read").count(), 0);
        let later = {
            let mut later = histogram.clone();
            later.record(9);
            later
        };
        assert_eq!((later.since(&histogram).count(), later.since(&histogram).sum_us), (1, 9));
    }
}
