//! How long a thread looks for something to do before it sleeps. Numbers only.
//!
//! To be woken costs who wakes and who is woken tens of microseconds, more where the CPU sleeps in
//! a virtual machine; who is answered asks again sooner than that, and fast storage answers sooner.
//! So after waits that were short the thread looks for a while; one wait that was long ends this,
//! and an idle thread never looks. As KVM polls before it halts
//! (<https://docs.kernel.org/virt/kvm/halt-polling.html>), with a budget besides, and a rest after
//! looks in vain.

/// Time unlooked in that can be saved up for later, microseconds.
const SAVED_US_MAX: u64 = 10_000;

/// What looking may cost.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// So long is looked at most, microseconds.
    look_us_max: u64,
    /// A wait that takes longer, sleep included, is better slept through, microseconds.
    short_us_max: u64,
    /// The part of the time that may be looked, and of how many.
    budget: (u64, u64),
    /// So many short waits are slept through, at most, after a look in vain.
    rest_max: u32,
}

/// For NBD, whose clients take turns with the server.
pub const NBD: Terms = Terms { look_us_max: 300, short_us_max: 300, budget: (3, 4), rest_max: 0 };

/// For one of a VBD's `queues` that waits for its guest alone. A guest that is quick to ask again
/// does so within a few microseconds; a queue that sleeps until then is woken some ten times later,
/// and from that must see that it was quick. With [`of_storage`] a VBD has a quarter of a CPU.
#[must_use]
pub fn of_guest(queues: usize) -> Terms {
    let budget = (1, 16 * queues as u64);
    Terms { look_us_max: 20, short_us_max: 150, budget, rest_max: 1023 }
}

/// For one of a VBD's `queues` that waits for its storage too.
#[must_use]
pub fn of_storage(queues: usize) -> Terms {
    let budget = (3, 16 * queues as u64);
    Terms { look_us_max: 100, short_us_max: 150, budget, rest_max: 1023 }
}

/// What was learnt of the waits so far.
#[derive(Debug)]
pub struct Patience {
    terms: Terms,
    short: bool,
    /// Short waits that are slept through yet, and how many it was the last time.
    rest: u32,
    rested: u32,
    /// What may be looked, in parts of a microsecond as the budget has them, and when that was so.
    saved: u64,
    at_us: u64,
    /// How long the latest look may last.
    granted_us: u64,
}

impl Patience {
    /// Of a thread that has not waited yet.
    #[must_use]
    pub fn new(terms: Terms) -> Patience {
        Patience { terms, short: false, rest: 0, rested: 0, saved: 0, at_us: 0, granted_us: 0 }
    }

    /// How long to look now, microseconds; zero is not at all.
    pub fn look_us(&mut self, now_us: u64) -> u64 {
        let Terms { look_us_max, budget: (part, of), .. } = self.terms;
        let passed_us = now_us.saturating_sub(self.at_us).min(of * SAVED_US_MAX);
        self.at_us = now_us;
        self.saved = (self.saved + passed_us * part).min(SAVED_US_MAX * of);
        if !self.short {
            return 0;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        self.granted_us = look_us_max.min(self.saved / of);
        self.granted_us
    }

    /// So long was looked, in vain or not. In vain again and again, it looks ever more seldom. A
    /// look that took longer than it may was in vain: somebody else had the processor meanwhile.
    pub fn looked(&mut self, us: u64, found: bool) {
        let found = found && us <= self.granted_us;
        self.saved = self.saved.saturating_sub(us * self.terms.budget.1);
        self.rested = if found { self.rested / 2 } else { 2 * self.rested + 1 };
        self.rested = self.rested.min(self.terms.rest_max);
        self.rest = if found { 0 } else { self.rested };
    }

    /// A wait took so long, looks included.
    pub fn waited(&mut self, us: u64) {
        self.short = us <= self.terms.short_us_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_thread_looks_after_short_waits_only() {
        let mut patience = Patience::new(NBD);
        assert_eq!(patience.look_us(50_000), 0);
        patience.waited(80);
        assert_eq!(patience.look_us(60_000), NBD.look_us_max);
        patience.waited(NBD.short_us_max + 1);
        assert_eq!(patience.look_us(70_000), 0);
    }

    #[test]
    fn looks_are_paid_for() {
        for terms in [NBD, of_guest(1), of_guest(4), of_storage(1), of_storage(4)] {
            let mut patience = Patience::new(terms);
            let (mut now_us, mut looked_us) = (0, 0);
            while now_us < 1_000_000 {
                patience.waited(1);
                let look_us = patience.look_us(now_us);
                patience.looked(look_us, true);
                looked_us += look_us;
                now_us += look_us.max(1);
            }
            let ((part, of), slack_us) = (terms.budget, terms.look_us_max);
            assert!(looked_us <= now_us * part / of + slack_us, "{looked_us} of {now_us}");
            assert!(looked_us >= now_us * part / of - slack_us, "{looked_us} of {now_us}");
        }
    }

    #[test]
    fn an_idle_queue_never_looks() {
        let mut patience = Patience::new(of_storage(1));
        for second in 1..1000 {
            assert_eq!(patience.look_us(second * 1_000_000), 0);
            patience.waited(1_000_000);
        }
    }

    #[test]
    fn looks_in_vain_become_seldom_and_hits_bring_them_back() {
        let (mut patience, mut now_us) = (Patience::new(of_storage(1)), 0);
        let mut looks = |found: bool, waits: u32| {
            let looks = (0..waits).filter(|_| {
                now_us += 1000;
                patience.waited(50);
                let look_us = patience.look_us(now_us);
                if look_us > 0 {
                    patience.looked(if found { 20 } else { look_us }, found);
                }
                look_us > 0
            });
            looks.count()
        };
        assert_eq!(looks(true, 1000), 1000, "each is of use");
        let in_vain = looks(false, 10_000);
        assert!((10..25).contains(&in_vain), "{in_vain} of 10000 waits");
        looks(true, 5000);
        assert_eq!(looks(true, 1000), 1000, "they are of use again");
    }

    #[test]
    fn a_look_that_took_too_long_was_in_vain() {
        for (us_more, then_us) in [(0, 100), (1, 0)] {
            let mut patience = Patience::new(of_storage(1));
            patience.waited(50);
            let look_us = patience.look_us(1_000_000);
            patience.looked(look_us + us_more, true);
            assert_eq!(patience.look_us(2_000_000), then_us, "{us_more} us too long");
        }
    }

    proptest! {
        /// Whatever comes, no more is looked than the budget allows.
        #[test]
        fn the_budget_holds(
            queues in 1usize..=4,
            waits in prop::collection::vec(
                (0u64..50, 0u64..250, prop::bool::weighted(0.95)),
                1..2000,
            ),
        ) {
            let terms = of_storage(queues);
            let (mut patience, mut now_us, mut looked_us) = (Patience::new(terms), 0, 0);
            for (busy_us, wait_us, found) in waits {
                now_us += busy_us;
                let look_us = patience.look_us(now_us);
                prop_assert!(look_us <= terms.look_us_max);
                if look_us > 0 {
                    let us = if found { look_us.min(wait_us) } else { look_us };
                    patience.looked(us, found);
                    looked_us += us;
                }
                now_us += wait_us.max(look_us);
                patience.waited(wait_us);
            }
            let (part, of) = terms.budget;
            prop_assert!(looked_us * of <= now_us * part, "{looked_us} of {now_us}");
        }
    }
}
