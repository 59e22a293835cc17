//! Time since a device began, cheap enough to be read for every request and call.
//!
//! In a PV dom0 with Xen's clock source, reading the clock is a system call (38 us where a bare one
//! takes 31, Linux 6.1 on emulated Xen 4.17: no vDSO), the fourth and fifth of a 4 KiB read's. The
//! CPU's cycle counter is read instead, and set right by the real clock ten times a second. What
//! it tells is for statistics and for what was used last; nothing is lost when a counter jumps.

use std::ops::RangeInclusive;
use std::time::Instant;

/// Over less time than this nothing is learned of the counter's rate, nanoseconds.
const LEARN_NS_MIN: u64 = 10_000_000;
/// Rates of counters that count cycles, 100 MHz to 10 GHz, in nanoseconds a cycle. Others have
/// jumped.
const RATES: RangeInclusive<f64> = 0.1..=10.0;
/// So long the counter alone is believed, nanoseconds.
const BELIEVED_NS_MAX: u64 = 100_000_000;

/// The clock of one thread.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    counter: Counter,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { started: Instant::now(), counter: Counter::default() }
    }

    /// Microseconds since it was made. It never goes back.
    pub(crate) fn now_us(&mut self) -> u64 {
        self.now_ns() / 1000
    }

    /// The same in nanoseconds.
    pub(crate) fn now_ns(&mut self) -> u64 {
        // SAFETY: reads a register that every x86_64 has, and that the sandbox does not forbid.
        let cycles = unsafe { core::arch::x86_64::_rdtsc() };
        let real_ns = || u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counter.now_ns(cycles, real_ns)
    }
}

/// What is known of the counter.
#[derive(Debug, Default)]
struct Counter {
    /// What counter and clock said when the clock was read last.
    cycles: u64,
    at_ns: u64,
    ns_per_cycle: Option<f64>,
    latest_ns: u64,
}

impl Counter {
    fn now_ns(&mut self, cycles: u64, real_ns: impl FnOnce() -> u64) -> u64 {
        // One that has gone back, as on another CPU, has come very far.
        let passed = cycles.wrapping_sub(self.cycles);
        let believed = self.ns_per_cycle.map(|rate| passed as f64 * rate);
        let now_ns = match believed {
            Some(ns) if ns < BELIEVED_NS_MAX as f64 => self.at_ns + ns as u64,
            _ => self.set_right(cycles, passed, real_ns()),
        };
        self.latest_ns = self.latest_ns.max(now_ns);
        self.latest_ns
    }

    fn set_right(&mut self, cycles: u64, passed: u64, real_ns: u64) -> u64 {
        let passed_ns = real_ns.saturating_sub(self.at_ns);
        let first = self.cycles == 0;
        if !first && self.ns_per_cycle.is_none() && passed_ns < LEARN_NS_MIN {
            return real_ns;
        }
        let rate = passed_ns as f64 / passed as f64;
        let learned = !first && passed_ns >= LEARN_NS_MIN && RATES.contains(&rate);
        self.ns_per_cycle = learned.then_some(rate);
        (self.cycles, self.at_ns) = (cycles, real_ns);
        real_ns
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

    /// Whatever a counter does, it never goes back, and after a tenth of a second it is right.
    fn is_set_right(steps: &[(u64, Option<u64>)]) {
        let (mut counter, mut cycles, mut real_ns, mut last_ns) = (Counter::default(), 7, 0, 0);
        for &(ns, jump) in steps {
            real_ns += ns;
            cycles = jump.unwrap_or_else(|| u64::wrapping_add(cycles, ns * 3));
            let now_ns = counter.now_ns(cycles, || real_ns);
            assert!(now_ns >= last_ns);
            last_ns = now_ns;
        }
        // Of what was learned from a jump nothing is left after two looks at the clock.
        for _ in 0..8 {
            real_ns += 2 * BELIEVED_NS_MAX;
            cycles = u64::wrapping_add(cycles, 2 * BELIEVED_NS_MAX * 3);
            last_ns = counter.now_ns(cycles, || real_ns);
        }
        assert!(last_ns >= real_ns);
    }

    /// What the property below once found.
    #[test]
    fn a_counter_that_jumps_at_once_is_set_right() {
        is_set_right(&[(1000, None), (1000, Some(7_800_045_008))]);
    }

    proptest! {
        #[test]
        fn a_counter_that_jumps_is_set_right(
            steps in prop::collection::vec(
                (1u64..50_000_000, prop::option::weighted(0.1, any::<u64>())),
                1..200,
            )
        ) {
            is_set_right(&steps);
        }
    }
}
