//! The back end's half of a ring, whose shared page a hostile front end writes as it likes.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use zerotap_datapath::ring::abi::Abi;
use zerotap_datapath::ring::back::BackRing;
use zerotap_datapath::ring::shared::{PAGE_BYTES, SharedMapping};
use zerotap_datapath::ring::token::Token;

/// A step of either end.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The front end writes a word of the page: indices, or an entry.
    Scribble {
        word: u16,
        value: u32,
    },
    /// It moves its producer index by so many.
    Produce(i8),
    Take,
    Answer,
    Push,
    Sleep,
}

#[derive(Arbitrary, Debug)]
struct Input {
    narrow: bool,
    begin: u32,
    steps: Vec<Step>,
}

/// A file's pages mapped twice: the front end's view and the back end's.
fn two_views() -> (SharedMapping, SharedMapping) {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let file = memfd_create("ring", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, PAGE_BYTES as u64).expect("a page");
    let map = || SharedMapping::map(&file, 0, PAGE_BYTES, true).expect("a mapping");
    (map(), map())
}

fuzz_target!(|input: Input| {
    let (front, back) = two_views();
    front.store(0, input.begin);
    front.store(8, input.begin);
    let abi = if input.narrow { Abi::X86_32 } else { Abi::X86_64 };
    let mut ring = BackRing::new(back, abi, None).expect("no journal");
    let (mut unanswered, mut unpushed) = (0u32, 0u32);
    let (mut taken, mut produced) = (0u64, 0u64);
    for step in input.steps {
        match step {
            Step::Scribble { word, value } => {
                front.store(usize::from(word) % (PAGE_BYTES / 4) * 4, value);
                // It may have been the producer index: what was produced is anybody's guess.
                produced = u64::MAX;
            }
            Step::Produce(by) => {
                front.add(0, i32::from(by).cast_unsigned());
                produced = produced.saturating_add(u64::from(by.max(0).cast_unsigned()));
            }
            Step::Take => match ring.take() {
                Ok(Some(_)) => {
                    (taken, unanswered) = (taken + 1, unanswered + 1);
                    assert!(unanswered <= ring.entries(), "more requests than entries");
                    assert!(taken <= produced, "a request that nobody made");
                }
                Ok(None) => {}
                // A device serves a broken ring no more.
                Err(_) => return,
            },
            Step::Answer if unanswered > 0 => {
                ring.answer(Token::new(taken, 0, 0), 0);
                (unanswered, unpushed) = (unanswered - 1, unpushed + 1);
            }
            Step::Answer => {}
            Step::Push => {
                let notify = ring.push();
                assert!(!notify || unpushed > 0, "an event about nothing");
                unpushed = 0;
            }
            Step::Sleep => {
                if ring.sleep().is_err() {
                    return;
                }
            }
        }
    }
});
