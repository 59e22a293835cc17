//! What a frontend publishes of its ring, read strictly.
//!
//! The guest writes these keys: any may be missing, huge, no number, no text. They become a
//! [`RingParameters`] or a [`Fault`] here and travel no further as text. No I/O: the caller says
//! how to look up a key. Called by `reading`.
//! Source: xen/include/public/io/blkif.h; Linux drivers/block/xen-blkback/xenbus.c
//! (`connect_ring`).

use zerotap_rpc_schema::worker::{Abi, QUEUES_MAX, QueueParameters, RingParameters};

/// The highest ring order that is offered, as blkback and QEMU do: 16 pages.
pub const RING_PAGE_ORDER_MAX: u32 = 4;
/// The longest value that is looked at, bytes; blkback reads 63 of `protocol`.
const VALUE_BYTES_MAX: usize = 63;

/// What is wrong with a frontend's keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A key that has to be there is not.
    #[error("the frontend has written no {0}")]
    Missing(String),
    /// A key's value is no number of its range.
    #[error("the frontend's {key} is no number from 0 to {max}")]
    NotANumber {
        /// Which.
        key: String,
        /// The end of its range.
        max: u32,
    },
    /// The ring has more pages than were offered.
    #[error("the frontend's ring-page-order {order} is above the {max} that was offered")]
    TooLarge {
        /// The frontend's.
        order: u32,
        /// Ours.
        max: u32,
    },
    /// A layout of ring entries that is not known.
    #[error("the frontend's protocol is neither x86_64-abi nor x86_32-abi")]
    Protocol,
    /// No queue, or more than were offered.
    #[error("the frontend wants {count} queues; 1 to {max} were offered")]
    Queues {
        /// The frontend's.
        count: u32,
        /// Ours.
        max: u32,
    },
}

/// What a frontend was offered, as far as it bounds its ring.
#[derive(Debug, Clone, Copy)]
pub struct Offered {
    /// Queues.
    pub queues: u32,
    /// The ring's order.
    pub ring_page_order: u32,
}

impl Default for Offered {
    /// The most that there ever is.
    fn default() -> Self {
        let queues = u32::try_from(QUEUES_MAX).unwrap_or(1);
        Offered { queues, ring_page_order: RING_PAGE_ORDER_MAX }
    }
}

/// Which keys may matter, whatever the others say.
pub const KEYS: &[&str] = &[
    "event-channel",
    "protocol",
    "ring-page-order",
    "ring-ref",
    "feature-persistent",
    "multi-queue-num-queues",
];

/// Which keys matter beside [`KEYS`], by the values of those: of queues, and of rings with several
/// pages. None for values that [`parse`] refuses.
#[must_use]
pub fn further_keys<'a>(key: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let pages = numbered_ring_refs(key("ring-page-order"));
    let most = u32::try_from(QUEUES_MAX).unwrap_or(1);
    let count = key("multi-queue-num-queues").and_then(|value| number(value, most)).unwrap_or(1);
    let mut keys = Vec::new();
    for prefix in (0..count).map(|number| prefix(number, count)) {
        keys.extend((0..pages).map(|page| format!("{prefix}ring-ref{page}")));
        if count > 1 {
            keys.push(format!("{prefix}event-channel"));
            keys.push(format!("{prefix}ring-ref"));
        }
    }
    keys
}

/// Where a queue's keys stand: a single queue's beside the others, as before there were several.
fn prefix(number: u32, count: u32) -> String {
    if count == 1 { String::new() } else { format!("queue-{number}/") }
}

/// Reads the ring's parameters, not beyond what was `offered`. `key` answers a key's value, `None`
/// when it is not there; a value that is no text is any that parses as nothing.
///
/// # Errors
/// The first [`Fault`] found.
pub fn parse<'a>(
    key: impl Fn(&str) -> Option<&'a str>,
    offered: Offered,
) -> Result<RingParameters, Fault> {
    let count = optional(&key, "multi-queue-num-queues", u32::MAX)?.unwrap_or(1);
    let max = offered.queues;
    if count == 0 || count > max {
        return Err(Fault::Queues { count, max });
    }
    let queue = |number| {
        let prefix = prefix(number, count);
        Ok(QueueParameters {
            ring_refs: ring_refs(&key, &prefix, offered.ring_page_order)?,
            port: required(&key, &format!("{prefix}event-channel"))?,
        })
    };
    Ok(RingParameters {
        queues: (0..count).map(queue).collect::<Result<_, Fault>>()?,
        protocol: protocol(key("protocol"))?,
        persistent: optional(&key, "feature-persistent", 1)? == Some(1),
    })
}

/// How many keys `ring-ref<n>` there are to read: none without a valid `ring-page-order`.
fn numbered_ring_refs(ring_page_order: Option<&str>) -> u32 {
    let order = ring_page_order.and_then(|value| number(value, RING_PAGE_ORDER_MAX));
    order.map_or(0, |order| 1 << order)
}

/// `ring-page-order` decides, even when it is 0: with it the references are `ring-ref0` and on. A
/// fall back to `ring-ref` could map what an earlier driver left there (blkback regression
/// d75e7f63).
fn ring_refs<'a>(
    key: &impl Fn(&str) -> Option<&'a str>,
    prefix: &str,
    max: u32,
) -> Result<Vec<u32>, Fault> {
    match optional(key, "ring-page-order", u32::MAX)? {
        None => Ok(vec![required(key, &format!("{prefix}ring-ref"))?]),
        Some(order) if order > max => Err(Fault::TooLarge { order, max }),
        Some(order) => {
            (0..1 << order).map(|n| required(key, &format!("{prefix}ring-ref{n}"))).collect()
        }
    }
}

/// Absent means 32-bit on x86: the oldest frontends omit it (blkback and tapback read it so).
fn protocol(value: Option<&str>) -> Result<Abi, Fault> {
    match value {
        None | Some("x86_32-abi") => Ok(Abi::X86_32),
        // Arm's layout is the 64-bit one.
        Some("x86_64-abi" | "arm-abi") => Ok(Abi::X86_64),
        Some(_) => Err(Fault::Protocol),
    }
}

fn required<'a>(key: &impl Fn(&str) -> Option<&'a str>, name: &str) -> Result<u32, Fault> {
    optional(key, name, u32::MAX)?.ok_or_else(|| Fault::Missing(name.to_owned()))
}

fn optional<'a>(
    key: &impl Fn(&str) -> Option<&'a str>,
    name: &str,
    max: u32,
) -> Result<Option<u32>, Fault> {
    let Some(value) = key(name) else { return Ok(None) };
    let fault = || Fault::NotANumber { key: name.to_owned(), max };
    number(value, max).map(Some).ok_or_else(fault)
}

/// A decimal number and nothing else: no sign, no space.
#[must_use]
pub fn number(value: &str, max: u32) -> Option<u32> {
    let digits = value.len() <= VALUE_BYTES_MAX && value.bytes().all(|byte| byte.is_ascii_digit());
    if digits { value.parse().ok().filter(|&number| number <= max) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn read(keys: &[(&str, &str)]) -> Result<RingParameters, Fault> {
        let keys: BTreeMap<_, _> = keys.iter().copied().collect();
        parse(|key| keys.get(key).copied(), Offered::default())
    }

    const PLAIN: &[(&str, &str)] = &[("event-channel", "9"), ("ring-ref", "8")];

    #[test]
    fn a_single_page_is_ring_ref_and_32_bit_by_default() {
        let ring = read(PLAIN).unwrap();
        let wanted = RingParameters {
            queues: vec![QueueParameters { ring_refs: vec![8], port: 9 }],
            protocol: Abi::X86_32,
            persistent: false,
        };
        assert_eq!(ring, wanted);
    }

    #[test]
    fn an_order_even_of_0_means_numbered_references() {
        let stale = [PLAIN, &[("ring-page-order", "0")]].concat();
        assert_eq!(read(&stale), Err(Fault::Missing("ring-ref0".to_owned())));
        let fresh = [&stale[..], &[("ring-ref0", "77")]].concat();
        assert_eq!(read(&fresh).unwrap().queues[0].ring_refs, [77]);
        let double = [&fresh[..], &[("ring-page-order", "1"), ("ring-ref1", "78")]].concat();
        assert_eq!(read(&double).unwrap().queues[0].ring_refs, [77, 78]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |key, value| read(&[PLAIN, &[(key, value)]].concat());
        assert_eq!(read(&PLAIN[..1]), Err(Fault::Missing("ring-ref".to_owned())));
        assert_eq!(with("ring-page-order", "5"), Err(Fault::TooLarge { order: 5, max: 4 }));
        assert_eq!(with("protocol", "mips-abi"), Err(Fault::Protocol));
        assert_eq!(with("multi-queue-num-queues", "5"), Err(Fault::Queues { count: 5, max: 4 }));
        assert_eq!(
            with("multi-queue-num-queues", "2"),
            Err(Fault::Missing("queue-0/ring-ref".to_owned()))
        );
        assert_eq!(with("multi-queue-num-queues", "0"), Err(Fault::Queues { count: 0, max: 4 }));
        assert!(with("multi-queue-num-queues", "1").is_ok());
        for garbage in ["", "-1", "+1", " 1", "1 ", "0x1", "4294967296", "1\0", "①"] {
            for key in ["ring-ref", "event-channel", "ring-page-order", "feature-persistent"] {
                assert!(
                    matches!(with(key, garbage), Err(Fault::NotANumber { .. })),
                    "{key} {garbage}"
                );
            }
        }
        assert!(with("feature-persistent", "1").unwrap().persistent);
        assert_eq!(with("protocol", "x86_64-abi").unwrap().protocol, Abi::X86_64);
    }

    #[test]
    fn more_than_was_offered_is_refused() {
        let offered = Offered { queues: 1, ring_page_order: 1 };
        let read = |key, value| {
            let keys = BTreeMap::from([("event-channel", "9"), ("ring-ref", "8"), (key, value)]);
            parse(|key| keys.get(key).copied(), offered)
        };
        let queues = Fault::Queues { count: 2, max: 1 };
        assert_eq!(read("multi-queue-num-queues", "2"), Err(queues));
        assert_eq!(read("ring-page-order", "2"), Err(Fault::TooLarge { order: 2, max: 1 }));
    }

    #[test]
    fn several_queues_have_directories_of_their_own() {
        let keys = [
            ("multi-queue-num-queues", "2"),
            ("queue-0/ring-ref", "8"),
            ("queue-0/event-channel", "9"),
            ("queue-1/ring-ref", "18"),
            ("queue-1/event-channel", "19"),
            // What an earlier driver left.
            ("ring-ref", "5"),
            ("event-channel", "6"),
        ];
        let queues = read(&keys).unwrap().queues;
        assert_eq!(queues.iter().map(|queue| queue.port).collect::<Vec<_>>(), [9, 19]);
        assert_eq!(queues[1].ring_refs, [18]);
        let keys: BTreeMap<_, _> = keys.into_iter().collect();
        let further = further_keys(|key| keys.get(key).copied());
        let wanted = [
            "queue-0/event-channel",
            "queue-0/ring-ref",
            "queue-1/event-channel",
            "queue-1/ring-ref",
        ];
        assert_eq!(further, wanted);
        assert_eq!(further_keys(|key| (key == "ring-page-order").then_some("1")).len(), 2);
        assert_eq!(further_keys(|key| (key == "multi-queue-num-queues").then_some("9")).len(), 0);
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(values in prop::collection::vec("[0-9]{0,12}|\\PC{0,80}", 32)) {
            let keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned())
                .chain((0..18).map(|n| format!("ring-ref{n}")))
                .chain((0..4).flat_map(|n| {
                    ["ring-ref", "event-channel"].map(|key| format!("queue-{n}/{key}"))
                }))
                .collect();
            let lookup = |key: &str| {
                let at = keys.iter().position(|known| known == key)?;
                values.get(at).map(String::as_str).filter(|value| !value.is_empty())
            };
            if let Ok(ring) = parse(lookup, Offered::default()) {
                prop_assert!((1..=QUEUES_MAX).contains(&ring.queues.len()));
                for queue in &ring.queues {
                    let pages = queue.ring_refs.len();
                    prop_assert!(pages.is_power_of_two() && pages <= 16);
                }
            }
            prop_assert!(further_keys(lookup).len() <= QUEUES_MAX * 18);
        }
    }
}
