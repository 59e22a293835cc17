//! How many a second, with some at once: a token bucket. Pure; the caller tells the time.

use std::time::Instant;

/// A bucket.
#[derive(Debug, Clone)]
pub struct Rate {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    /// `per_second` in the long run, `burst` at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Rate {
        let (per_second, burst) = (per_second.into(), burst.into());
        Rate { per_second, burst, left: burst, at: now }
    }

    /// Whether one more may pass.
    pub fn admit(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = (self.left + passed * self.per_second).min(self.burst);
        let pass = self.left >= 1.0;
        if pass {
            self.left -= 1.0;
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 3, start);
        let admitted = |rate: &mut Rate, at| (0..9).filter(|_| rate.admit(at)).count();
        assert_eq!(admitted(&mut rate, start), 3);
        assert_eq!(admitted(&mut rate, start + Duration::from_millis(250)), 2);
        assert_eq!(admitted(&mut rate, start + Duration::from_secs(3600)), 3);
        assert_eq!(admitted(&mut rate, start), 0, "time does not go back");
    }
}
