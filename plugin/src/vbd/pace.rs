//! How often one VBD is looked at: a guest can make its `state` change as fast as it can write.
//!
//! A bucket of tokens: a life of a device takes a dozen at once; a flood gets one each
//! [`TOKEN_INTERVAL`]. Called by `actor`.

use std::time::{Duration, Instant};

/// Looks in a row without a pause.
const TOKENS_MAX: u32 = 64;
/// Then one look in this time: 50 a second.
const TOKEN_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Pace {
    /// When the bucket would be full again.
    full: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace { full: now }
    }

    /// Takes a token; answers how long to wait for it.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        self.full = self.full.max(now) + TOKEN_INTERVAL;
        self.full.saturating_duration_since(now + TOKEN_INTERVAL * TOKENS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_a_flood_is_slow() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        for _ in 0..TOKENS_MAX {
            assert_eq!(pace.next(began), Duration::ZERO);
        }
        let mut now = began;
        for _ in 0..100 {
            now += pace.next(now);
        }
        assert_eq!(now - began, 100 * TOKEN_INTERVAL);
        assert_eq!(pace.next(now + TOKENS_MAX * TOKEN_INTERVAL), Duration::ZERO);
    }
}
