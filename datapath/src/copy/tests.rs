//! Every byte is cloned once, and nothing is changed before it was.

use super::*;
use proptest::prelude::*;

const BYTES: u64 = 80 * GRAIN_BYTES + 4096;

fn progress() -> Progress {
    Progress {
        bytes: BYTES,
        up_to: 0,
        apart: BTreeSet::new(),
        wanted: VecDeque::new(),
        waiting: Vec::new(),
    }
}

proptest! {
    #[test]
    fn all_is_cloned_once_and_let_go_only_then(
        asked in prop::collection::vec((0..BYTES + GRAIN_BYTES, 1..3 * GRAIN_BYTES), 0..40),
        lengths in prop::collection::vec(1..8 * GRAIN_BYTES, 1..20),
    ) {
        let mut progress = progress();
        let mut cloned: Vec<Range<u64>> = Vec::new();
        let mut asked = asked.into_iter();
        for length in lengths.iter().cycle() {
            for (start, bytes) in asked.by_ref().take(2) {
                let range = start..start + bytes;
                let within = |at: u64| cloned.iter().any(|piece| piece.contains(&at));
                let is_cloned = (range.start..range.end.min(BYTES)).step_by(512).all(within)
                    && (range.end > BYTES || within(range.end - 1));
                prop_assert_eq!(progress.lets(&range), is_cloned, "{:?}", range);
            }
            let Some(piece) = progress.next(*length) else { break };
            prop_assert!(piece.start.is_multiple_of(GRAIN_BYTES) && piece.end <= BYTES);
            prop_assert!(piece.end.is_multiple_of(GRAIN_BYTES) || piece.end == BYTES);
            let apart = |other: &Range<u64>| other.end <= piece.start || piece.end <= other.start;
            prop_assert!(cloned.iter().all(apart), "{:?} is cloned twice", piece);
            progress.done(&piece);
            cloned.push(piece);
        }
        let sum: u64 = cloned.iter().map(|piece| piece.end - piece.start).sum();
        prop_assert_eq!(sum, BYTES);
        prop_assert!(progress.lets(&(0..BYTES + 1)));
    }
}

#[test]
fn what_is_waited_for_goes_first() {
    let mut progress = progress();
    assert!(!progress.lets(&(5 * GRAIN_BYTES - 512..5 * GRAIN_BYTES + 512)));
    assert_eq!(progress.next(PIECE_BYTES), Some(4 * GRAIN_BYTES..5 * GRAIN_BYTES));
    progress.done(&(4 * GRAIN_BYTES..5 * GRAIN_BYTES));
    assert_eq!(progress.next(PIECE_BYTES), Some(5 * GRAIN_BYTES..6 * GRAIN_BYTES));
    progress.done(&(5 * GRAIN_BYTES..6 * GRAIN_BYTES));
    assert_eq!(progress.next(8 * GRAIN_BYTES), Some(0..4 * GRAIN_BYTES));
    // All of it at once would be many pieces: it waits for its turn.
    assert!(!progress.lets(&(0..BYTES)) && progress.wanted.is_empty());
}
