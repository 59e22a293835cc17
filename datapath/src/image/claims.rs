//! Where on an image writes are under way, if guests may write less than a sector of it.
//!
//! Such a write reads the sector, changes it and writes it back: whoever else writes there
//! meanwhile, through whichever queue, would be undone. It therefore claims its sectors alone;
//! writes of whole sectors share theirs, as on any disk. Who cannot have a claim holds none and is
//! woken when one was given back: nobody waits for who waits. Images whose guests write whole
//! sectors have none of this.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The claims on an image.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// By number; the free ones are none.
    claims: Vec<Option<Claim>>,
    free: Vec<usize>,
    /// How many of them are alone.
    alone: usize,
    /// Event descriptors of queues that wait.
    waiting: Vec<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Claim {
    bytes: Range<u64>,
    alone: bool,
}

impl Claims {
    /// Claims a range, whole sectors in bytes; answers the claim's number. None while others are in
    /// the way: `wake` is then written to once something was given back.
    pub(crate) fn take(
        &self,
        bytes: Range<u64>,
        alone: bool,
        wake: &Arc<OwnedFd>,
    ) -> Option<usize> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let in_the_way = |claim: &Claim| {
            let overlaps = claim.bytes.start < bytes.end && bytes.start < claim.bytes.end;
            overlaps && (alone || claim.alone)
        };
        if (alone || held.alone > 0) && held.claims.iter().flatten().any(in_the_way) {
            if !held.waiting.iter().any(|known| Arc::ptr_eq(known, wake)) {
                held.waiting.push(Arc::clone(wake));
            }
            return None;
        }
        held.alone += usize::from(alone);
        let claim = Some(Claim { bytes, alone });
        if let Some(number) = held.free.pop() {
            held.claims[number] = claim;
            return Some(number);
        }
        held.claims.push(claim);
        Some(held.claims.len() - 1)
    }

    /// Gives a claim back.
    pub(crate) fn give(&self, number: usize) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = held.claims[number].take().expect("a claim is given back once");
        held.alone -= usize::from(claim.alone);
        held.free.push(number);
        for wake in held.waiting.drain(..) {
            // It fails only when it is readable already.
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn wake() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
    }

    fn woken(wake: &OwnedFd) -> bool {
        rustix::io::read(wake, &mut [0; 8]).is_ok()
    }

    #[test]
    fn who_was_in_the_way_wakes_who_waits_and_nobody_else() {
        let (claims, a, b) = (Claims::default(), wake(), wake());
        let whole = claims.take(0..8192, false, &a).unwrap();
        assert!(claims.take(4096..8192, false, &a).is_some(), "whole sectors are shared");
        let other = claims.take(8192..12288, true, &a).unwrap();
        assert_eq!(claims.take(0..4096, true, &b), None);
        assert!(!woken(&b));
        claims.give(whole);
        assert!(woken(&b) && !woken(&a));
        assert!(claims.take(0..4096, true, &b).is_some());
        assert_eq!(claims.take(0..8192, false, &a), None, "a part is written alone");
        claims.give(other);
        assert!(woken(&a) && !woken(&b));
    }

    proptest! {
        #[test]
        fn a_part_is_never_written_beside_another_write(
            wants in prop::collection::vec((0u64..20, 1u64..5, any::<bool>(), any::<bool>()), 1..80)
        ) {
            let (claims, wake) = (Claims::default(), wake());
            let mut held: Vec<(usize, Range<u64>, bool)> = Vec::new();
            for (start, length, alone, give) in wants {
                if give && !held.is_empty() {
                    let which = usize::try_from(start).unwrap() % held.len();
                    let (number, ..) = held.swap_remove(which);
                    claims.give(number);
                    continue;
                }
                let range = start..start + length;
                let free = held.iter().all(|(_, other, other_alone)| {
                    let apart = range.end <= other.start || other.end <= range.start;
                    apart || !(alone || *other_alone)
                });
                let claim = claims.take(range.clone(), alone, &wake);
                prop_assert_eq!(claim.is_some(), free);
                if let Some(number) = claim {
                    prop_assert!(held.iter().all(|other| other.0 != number));
                    held.push((number, range, alone));
                }
            }
        }
    }
}
