//! Which way a request's pages are reached. Pure: facts in, a way out.
//!
//! On real Xen (4.17, PV dom0, Linux 6.1, emulated: only the relations mean anything) a batch of
//! pages cost, in microseconds:
//!
//! | pages | map and unmap | GRANT_COPY | O_DIRECT into a standing page, beyond plain memory |
//! |---|---|---|---|
//! | 1 | 467 | 56 | 18 |
//! | 8 | 539 | 114 | 19 |
//! | 32 | 751 | 300 | 62 |
//! | 256 | 3495 | 1842 | 460 to 770 |
//!
//! A page that stands is the cheapest by far. Between the other two the fixed part decides, which
//! the requests of a sweep share; both parts differ from host to host (a PV dom0 pays an interrupt
//! of every CPU for an unmapping, a PVH one does not), so they are measured while running.

use super::cost::Cost;
use zerotap_rpc_schema::worker::TransferRule;

/// A way to a request's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They are mapped already, and stay so.
    Standing,
    /// Map them for this request.
    Map,
    /// Have the hypervisor copy them.
    Copy,
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// What the administrator wants.
    pub rule: TransferRule,
    /// All its pages stand: both ends keep grants, and there was room for these.
    pub stands: bool,
    /// Direct I/O takes the pages as they are.
    pub direct: bool,
    /// The image is reached over a network: a page may be referenced for a retransmission after
    /// its I/O has completed, and a page that is referenced must not be unmapped.
    pub network: bool,
    /// The host lets us map that many pages more.
    pub room: bool,
    /// Pages of all requests of the sweep that do not stand: they would share the map calls.
    pub sweep_pages: u32,
    /// Take what looks dearer, to measure it.
    pub probe: bool,
}

/// What the two ways cost that the choice is between.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Mapping and unmapping.
    pub map: Cost,
    /// Copying.
    pub copy: Cost,
}

/// Chooses.
#[must_use]
pub fn choose(facts: &Facts, costs: &Costs) -> Way {
    match facts.rule {
        TransferRule::Copy => return Way::Copy,
        _ if facts.network => return Way::Copy,
        _ if facts.stands => return Way::Standing,
        _ if !facts.direct || !facts.room => return Way::Copy,
        TransferRule::Map => return Way::Map,
        TransferRule::Auto => {}
    }
    let map = costs.map.of(facts.sweep_pages) < costs.copy.of(facts.sweep_pages);
    if map == facts.probe { Way::Copy } else { Way::Map }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEASURED: Costs = Costs { map: Cost::MAP, copy: Cost::COPY };
    const LOOSE: Facts = Facts {
        rule: TransferRule::Auto,
        stands: false,
        direct: true,
        network: false,
        room: true,
        sweep_pages: 1,
        probe: false,
    };

    #[test]
    fn a_pv_dom0_copies_up_to_a_mebibyte() {
        for sweep_pages in 1..=256 {
            assert_eq!(choose(&Facts { sweep_pages, ..LOOSE }, &MEASURED), Way::Copy);
        }
        assert_eq!(choose(&Facts { stands: true, ..LOOSE }, &MEASURED), Way::Standing);
        assert_eq!(choose(&Facts { probe: true, ..LOOSE }, &MEASURED), Way::Map);
        assert_eq!(choose(&Facts { rule: TransferRule::Map, ..LOOSE }, &MEASURED), Way::Map);
    }

    #[test]
    fn where_mapping_is_cheap_for_many_pages_those_are_mapped() {
        let (mut map, mut copy) = (Cost::MAP, Cost::COPY);
        for _ in 0..200 {
            for pages in [1, 8, 64, 256] {
                map.learn(pages, 8000 + 100 * u64::from(pages));
                copy.learn(pages, 1000 + 700 * u64::from(pages));
            }
        }
        let costs = Costs { map, copy };
        assert_eq!(choose(&Facts { sweep_pages: 2, ..LOOSE }, &costs), Way::Copy);
        assert_eq!(choose(&Facts { sweep_pages: 64, ..LOOSE }, &costs), Way::Map);
        assert_eq!(choose(&Facts { sweep_pages: 64, probe: true, ..LOOSE }, &costs), Way::Copy);
    }

    fn rule() -> impl Strategy<Value = TransferRule> {
        prop_oneof![Just(TransferRule::Auto), Just(TransferRule::Map), Just(TransferRule::Copy)]
    }

    proptest! {
        #[test]
        fn no_fact_or_cost_breaks_a_rule_of_safety(
            rule in rule(),
            (stands, direct, network) in any::<(bool, bool, bool)>(),
            (room, probe) in any::<(bool, bool)>(),
            sweep_pages in 1u32..100_000,
            measured in prop::collection::vec((any::<bool>(), 1u32..512, any::<u64>()), 0..50),
        ) {
            let mut costs = MEASURED;
            for (map, pages, ns) in measured {
                if map { costs.map.learn(pages, ns) } else { costs.copy.learn(pages, ns) }
            }
            let facts = Facts { rule, stands, direct, network, room, sweep_pages, probe };
            let way = choose(&facts, &costs);
            // Nothing of a guest is mapped where the administrator forbids it, ...
            prop_assert!(rule != TransferRule::Copy || way == Way::Copy);
            // ... nothing stands that the guest did not keep, ...
            prop_assert!(way != Way::Standing || stands);
            // ... nothing is unmapped that the network may still send, ...
            prop_assert!(way == Way::Copy || !network);
            // ... and nothing is mapped for I/O that cannot take it.
            prop_assert!(way != Way::Map || direct);
            // The host's budget is kept.
            prop_assert!(way != Way::Map || room);
            // What stands is neither mapped once more nor copied by the hypervisor.
            let copies = rule == TransferRule::Copy || network;
            prop_assert!(!stands || copies || way == Way::Standing);
        }
    }
}
