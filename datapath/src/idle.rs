//! How idle the host is: by what its processors have done, which the kernel tells in `/proc/stat`.
//!
//! The worker is given that file open. It is read only by who would look for work if the host had
//! processors to spare, and seldom. Called by queues.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Between two readings, microseconds: the kernel counts in hundredths of a second, and telling
/// costs it up to some hundred microseconds on a large host.
const READ_US_MIN: u64 = 200_000;
/// What the kernel counts in (`USER_HZ`), microseconds.
const TICK_US: u64 = 10_000;
/// The first line has ten numbers.
const LINE_BYTES_MAX: usize = 256;

/// What is known of the host's idleness.
#[derive(Debug)]
pub struct Idle {
    stat: Arc<OwnedFd>,
    read_us: Option<u64>,
    times: Times,
    enough: bool,
}

impl Idle {
    /// By this file, which is `/proc/stat`.
    #[must_use]
    pub fn new(stat: Arc<OwnedFd>) -> Idle {
        Idle { stat, read_us: None, times: Times::default(), enough: false }
    }

    /// Whether a sixteenth of the host's processors' time, or more, was left of late; before
    /// anything is known of late, since the host began. What who asks has looked, `looked_us` in
    /// all, was left too: it would not have looked had the host been busy. tapdisk wants a half to
    /// poll for a whole millisecond (its `polling-idle-threshold`).
    pub fn enough(&mut self, now_us: u64, looked_us: u64) -> bool {
        if self.read_us.is_some_and(|at_us| now_us.saturating_sub(at_us) < READ_US_MIN) {
            return self.enough;
        }
        self.read_us = Some(now_us);
        let mut line = [0; LINE_BYTES_MAX];
        let bytes = rustix::io::pread(&self.stat, &mut line, 0).unwrap_or(0);
        let Some(mut times) = Times::parse(&line[..bytes]) else {
            self.enough = false;
            return false;
        };
        times.idle = times.idle.saturating_add(looked_us / TICK_US);
        self.enough = times.enough_since(&self.times).unwrap_or(self.enough);
        self.times = times;
        self.enough
    }
}

/// Ticks of all processors together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    /// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; the last two are
    /// parts of the first two (proc_stat(5)).
    fn parse(text: &[u8]) -> Option<Times> {
        let line = text.split(|&byte| byte == b'\n').next()?;
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        if words.next() != Some("cpu") {
            return None;
        }
        let (mut ticks, mut known) = ([0u64; 8], 0);
        for (ticks, word) in ticks.iter_mut().zip(words) {
            *ticks = word.parse().ok()?;
            known += 1;
        }
        let idle = ticks[3].saturating_add(ticks[4]);
        let all = ticks.iter().fold(0, |sum: u64, ticks| sum.saturating_add(*ticks));
        (known > 4).then_some(Times { idle, all })
    }

    /// `None` where no time has passed.
    fn enough_since(&self, earlier: &Times) -> Option<bool> {
        let all = self.all.checked_sub(earlier.all).filter(|ticks| *ticks > 0)?;
        Some(self.idle.saturating_sub(earlier.idle) >= all.div_ceil(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::pwrite;

    #[test]
    fn the_kernels_line_is_understood_and_no_other() {
        let times = Times::parse(b"cpu  10 1 5 100 20 2 3 4 9 9\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5");
        assert_eq!(times, Some(Times { idle: 120, all: 145 }));
        for wrong in ["", "cpu", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3", "cpu  1 2 3 x 5", "intr 1"] {
            assert_eq!(Times::parse(wrong.as_bytes()), None, "{wrong}");
        }
        let kernels = std::fs::read("/proc/stat").unwrap();
        assert!(Times::parse(&kernels).is_some_and(|times| times.all > 0));
    }

    #[test]
    fn a_sixteenth_of_the_time_is_enough_by_the_latest_reading() {
        let file = memfd_create("stat", MemfdFlags::CLOEXEC).unwrap();
        let say = |text: &str| assert!(pwrite(&file, text.as_bytes(), 0).is_ok());
        say("cpu  1500 0 0 100 0 0 0 0 0 0\n");
        let mut idle = Idle::new(Arc::new(file.try_clone().unwrap()));
        assert!(idle.enough(0, 0), "a sixteenth of it since the host began");
        say("cpu  1651 0 0 109 0 0 0 0 0 0\n");
        assert!(idle.enough(READ_US_MIN - 1, 0), "it is not read yet");
        assert!(!idle.enough(READ_US_MIN, 0), "9 of 160");
        assert!(!idle.enough(3 * READ_US_MIN, 0), "no time has passed by that clock");
        say("cpu  1651 0 0 100 169 0 0 0 0 0\n");
        assert!(idle.enough(5 * READ_US_MIN, 0), "to wait for a disk is to be idle");
        say("cpu  1801 0 0 108 170 0 0 0 0 0\n");
        assert!(idle.enough(7 * READ_US_MIN, TICK_US), "9 of 159, and one was looked");
        say("nonsense\nnonsense and more of it\n");
        assert!(!idle.enough(9 * READ_US_MIN, TICK_US));
    }
}
