//! Which pages of a memory are free: first fit, neighbours joined. Numbers only.

use std::collections::BTreeMap;

/// What is handed out is a multiple of this, and aligned to it: direct I/O wants no more.
const GRAIN_BYTES: usize = 4096;

/// A piece of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where it begins, bytes from the arena's start.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) bytes: usize,
}

/// The free pieces by their start.
#[derive(Debug)]
pub(crate) struct Arena {
    free: BTreeMap<usize, usize>,
}

impl Arena {
    /// All of it free, from `start` on.
    pub(crate) fn new(start: usize, bytes: usize) -> Arena {
        Arena { free: BTreeMap::from([(start, bytes)]) }
    }

    /// A piece of at least `bytes`, or none while others have it.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Span> {
        let bytes = bytes.next_multiple_of(GRAIN_BYTES);
        let (&start, &found) = self.free.iter().find(|(_, found)| **found >= bytes)?;
        self.free.remove(&start);
        if found > bytes {
            self.free.insert(start + bytes, found - bytes);
        }
        Some(Span { start, bytes })
    }

    /// Gives a piece back.
    pub(crate) fn give(&mut self, span: Span) {
        let Span { mut start, mut bytes } = span;
        if let Some(behind) = self.free.remove(&(start + bytes)) {
            bytes += behind;
        }
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            start = before;
            bytes += length;
        }
        self.free.insert(start, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_comes_back(
            wants in prop::collection::vec((1usize..40_000, any::<prop::sample::Index>()), 1..80)
        ) {
            const BYTES: usize = 256 * 1024;
            let mut arena = Arena::new(GRAIN_BYTES, BYTES);
            let mut held: Vec<Span> = Vec::new();
            for (bytes, which) in wants {
                match arena.take(bytes) {
                    Some(span) => {
                        prop_assert!(span.bytes >= bytes && span.start % GRAIN_BYTES == 0);
                        prop_assert!(span.start >= GRAIN_BYTES);
                        prop_assert!(span.start + span.bytes <= GRAIN_BYTES + BYTES);
                        let apart = held.iter().all(|other| {
                            span.start + span.bytes <= other.start
                                || other.start + other.bytes <= span.start
                        });
                        prop_assert!(apart);
                        held.push(span);
                    }
                    None => arena.give(held.swap_remove(which.index(held.len()))),
                }
            }
            held.into_iter().for_each(|span| arena.give(span));
            prop_assert_eq!(arena.take(BYTES), Some(Span { start: GRAIN_BYTES, bytes: BYTES }));
        }
    }
}
