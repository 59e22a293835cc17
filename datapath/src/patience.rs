//! How long a thread looks for something to do before it sleeps. Numbers only.
//!
//! To be woken costs who wakes and who is woken tens of microseconds, more where the CPU sleeps in
//! a virtual machine; a client that is answered asks again sooner than that. So after waits that
//! were short the thread looks for a while; one wait that was long ends this, and an idle thread
//! never looks. As KVM polls before it halts
//! (<https://docs.kernel.org/virt/kvm/halt-polling.html>), with a budget besides.

/// A wait that takes longer is better slept through, microseconds.
const LOOK_US_MAX: u64 = 300;
/// Looks over so much of the time, at most, are paid for: three parts in four.
const BUDGET: (u64, u64) = (3, 4);
/// Time unlooked in that can be saved up for later, microseconds.
const SAVED_US_MAX: u64 = 10_000;

/// What was learnt of the waits so far.
#[derive(Debug, Default)]
pub struct Patience {
    short: bool,
    /// What may be looked, in parts of a microsecond as the budget has them, and when that was so.
    saved: u64,
    at_us: u64,
}

impl Patience {
    /// How long to look now, microseconds; zero is not at all.
    pub fn look_us(&mut self, now_us: u64) -> u64 {
        let (part, of) = BUDGET;
        let passed_us = now_us.saturating_sub(self.at_us);
        self.at_us = now_us;
        self.saved = (self.saved + passed_us * part).min(SAVED_US_MAX * of);
        if self.short { LOOK_US_MAX.min(self.saved / of) } else { 0 }
    }

    /// So long was looked, in vain or not.
    pub fn looked(&mut self, us: u64) {
        self.saved = self.saved.saturating_sub(us * BUDGET.1);
    }

    /// A wait took so long, looks included.
    pub fn waited(&mut self, us: u64) {
        self.short = us <= LOOK_US_MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_looks_after_short_waits_only() {
        let mut patience = Patience::default();
        assert_eq!(patience.look_us(50_000), 0);
        patience.waited(80);
        assert_eq!(patience.look_us(60_000), LOOK_US_MAX);
        patience.waited(LOOK_US_MAX + 1);
        assert_eq!(patience.look_us(70_000), 0);
    }

    #[test]
    fn looks_are_paid_for() {
        let mut patience = Patience::default();
        let (mut now_us, mut looked_us) = (0, 0);
        while now_us < 1_000_000 {
            patience.waited(1);
            let look_us = patience.look_us(now_us);
            patience.looked(look_us);
            looked_us += look_us;
            now_us += look_us.max(1);
        }
        let (part, of) = BUDGET;
        assert!(looked_us <= now_us * part / of + LOOK_US_MAX, "{looked_us} of {now_us}");
        assert!(looked_us >= now_us * part / of - LOOK_US_MAX, "{looked_us} of {now_us}");
    }
}
