//! Time since a device began, cheap enough to be read for every request.
//!
//! In a PV dom0 with Xen's clock source, reading the clock is a system call (38 us where a bare one
//! takes 31, Linux 6.1 on emulated Xen 4.17: no vDSO), the fourth and fifth of a 4 KiB read's. The
//! CPU's cycle counter is read instead, and set right by the real clock ten times a second. What
//! it tells is for statistics and for what was used last; nothing is lost when a counter jumps.

use std::ops::RangeInclusive;
use std::time::Instant;

/// Over less time than this nothing is learned of the counter's rate, microseconds.
const LEARN_US_MIN: u64 = 10_000;
/// Rates of counters that count cycles, 100 MHz to 10 GHz, in microseconds a cycle. Others have
/// jumped.
const RATES: RangeInclusive<f64> = 0.0001..=0.01;
/// So long the counter alone is believed, microseconds.
const BELIEVED_US_MAX: u64 = 100_000;

/// The clock of one thread.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    counter: Counter,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { started: Instant::now(), counter: Counter::default() }
    }

    /// Microseconds since it was made. It never goes back.
    pub(super) fn now_us(&mut self) -> u64 {
        // SAFETY: reads a register that every x86_64 has, and that the sandbox does not forbid.
        let cycles = unsafe { core::arch::x86_64::_rdtsc() };
        let real_us = || u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counter.now_us(cycles, real_us)
    }
}

/// What is known of the counter.
#[derive(Debug, Default)]
struct Counter {
    /// What counter and clock said when the clock was read last.
    cycles: u64,
    at_us: u64,
    us_per_cycle: Option<f64>,
    latest_us: u64,
}

impl Counter {
    fn now_us(&mut self, cycles: u64, real_us: impl FnOnce() -> u64) -> u64 {
        // One that has gone back, as on another CPU, has come very far.
        let passed = cycles.wrapping_sub(self.cycles);
        let believed = self.us_per_cycle.map(|rate| passed as f64 * rate);
        let now_us = match believed {
            Some(us) if us < BELIEVED_US_MAX as f64 => self.at_us + us as u64,
            _ => self.set_right(cycles, passed, real_us()),
        };
        self.latest_us = self.latest_us.max(now_us);
        self.latest_us
    }

    fn set_right(&mut self, cycles: u64, passed: u64, real_us: u64) -> u64 {
        let passed_us = real_us.saturating_sub(self.at_us);
        let first = self.cycles == 0;
        if !first && self.us_per_cycle.is_none() && passed_us < LEARN_US_MIN {
            return real_us;
        }
        let rate = passed_us as f64 / passed as f64;
        let learned = !first && passed_us >= LEARN_US_MIN && RATES.contains(&rate);
        self.us_per_cycle = learned.then_some(rate);
        (self.cycles, self.at_us) = (cycles, real_us);
        real_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_counter_agrees_with_the_clock() {
        let (mut clock, end_us) = (Clock::new(), 350_000);
        let (mut last_us, mut worst_us) = (0, 0);
        while last_us < end_us {
            let before = clock.started.elapsed().as_micros();
            let now_us = clock.now_us();
            let after = clock.started.elapsed().as_micros();
            assert!(now_us >= last_us);
            last_us = now_us;
            let now_us = u128::from(now_us);
            worst_us =
                worst_us.max(before.saturating_sub(now_us).max(now_us.saturating_sub(after)));
        }
        assert!(worst_us < 20_000, "{worst_us} us off");
    }

    proptest! {
        /// Whatever a counter does, it never goes back, and after a tenth of a second it is right.
        #[test]
        fn a_counter_that_jumps_is_set_right(
            steps in prop::collection::vec(
                (1u64..50_000, prop::option::weighted(0.1, any::<u64>())),
                1..200,
            )
        ) {
            let (mut counter, mut cycles, mut real_us, mut last_us) = (Counter::default(), 7, 0, 0);
            for (us, jump) in steps {
                real_us += us;
                cycles = jump.unwrap_or_else(|| u64::wrapping_add(cycles, us * 3000));
                let now_us = counter.now_us(cycles, || real_us);
                prop_assert!(now_us >= last_us);
                last_us = now_us;
            }
            // Of what was learned from a jump nothing is left after two looks at the clock.
            for _ in 0..8 {
                real_us += 2 * BELIEVED_US_MAX;
                cycles = u64::wrapping_add(cycles, 2 * BELIEVED_US_MAX * 3000);
                last_us = counter.now_us(cycles, || real_us);
            }
            prop_assert!(last_us >= real_us);
        }
    }
}
