//! What a way to a guest's pages costs: a part that is fixed and a part for each page, learned from
//! the calls that are made.

/// The share of a new measurement in what is believed.
const LEARNING: f64 = 1.0 / 8.0;
/// A call that took this many times what was expected counts as so many: it was interrupted.
const SURPRISE_MAX: f64 = 4.0;

/// A cost in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    fixed_ns: f64,
    page_ns: f64,
}

impl Cost {
    /// Mapping and unmapping, until it is measured: what it cost a PV dom0 on Xen 4.17. Only its
    /// relation to [`Cost::COPY`] means anything elsewhere.
    pub const MAP: Cost = Cost { fixed_ns: 455_000.0, page_ns: 12_000.0 };
    /// Copying, in the same place.
    pub const COPY: Cost = Cost { fixed_ns: 48_000.0, page_ns: 7_000.0 };

    /// What a call for so many pages costs.
    #[must_use]
    pub fn of(&self, pages: u32) -> f64 {
        self.fixed_ns + self.page_ns * f64::from(pages)
    }

    /// Learns from a call for `pages` pages that took `ns`. The error is shared out between the two
    /// parts by the squares of what they contributed, as a Kalman filter does for parts that are
    /// known equally badly: small calls teach the fixed part, large ones the part for a page.
    pub fn learn(&mut self, pages: u32, ns: u64) {
        let expected = self.of(pages);
        let ns = f64::from(u32::try_from(ns).unwrap_or(u32::MAX)).min(expected * SURPRISE_MAX);
        let by_page = self.page_ns * f64::from(pages);
        let squares = self.fixed_ns.powi(2) + by_page.powi(2);
        let error = LEARNING * (ns - expected) / squares;
        self.fixed_ns += error * self.fixed_ns.powi(2);
        self.page_ns += error * self.page_ns.powi(2) * f64::from(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_measured_is_believed(
            fixed in 200u32..1_000_000,
            page in 100u32..50_000,
            sizes in prop::collection::vec(1u32..300, 20..40),
            copies in any::<bool>(),
        ) {
            let mut cost = if copies { Cost::COPY } else { Cost::MAP };
            let truth = |pages: u32| f64::from(fixed) + f64::from(page) * f64::from(pages);
            for _ in 0..40 {
                for &pages in &sizes {
                    let ns = u64::from(fixed) + u64::from(page) * u64::from(pages);
                    cost.learn(pages, ns);
                    prop_assert!(cost.fixed_ns > 0.0 && cost.page_ns > 0.0, "{cost:?}");
                }
            }
            for pages in sizes {
                let off = cost.of(pages) / truth(pages);
                prop_assert!((0.5..2.0).contains(&off), "{pages} pages: {off}, {cost:?}");
            }
        }

        #[test]
        fn nothing_measured_makes_nonsense(
            calls in prop::collection::vec((1u32..=512, any::<u64>()), 0..200)
        ) {
            let mut cost = Cost::MAP;
            for (pages, ns) in calls {
                cost.learn(pages, ns);
                prop_assert!(cost.fixed_ns > 0.0 && cost.page_ns > 0.0, "{cost:?}");
                prop_assert!(cost.fixed_ns.is_finite() && cost.page_ns.is_finite(), "{cost:?}");
            }
        }
    }

    #[test]
    fn one_interruption_does_not_turn_the_tables() {
        let mut cost = Cost::COPY;
        (0..1000).for_each(|_| cost.learn(4, 10_000));
        cost.learn(4, 20_000_000);
        assert!(cost.of(4) < 15_000.0, "{cost:?}");
    }
}
