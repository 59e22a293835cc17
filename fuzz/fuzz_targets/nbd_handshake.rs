//! The NBD handshake: a client's bytes, whole and in pieces, which must lead to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use zerotap_datapath::nbd::export::Export;
use zerotap_datapath::nbd::handshake::{ANSWER_BYTES_MAX, Handshake, OPTION_BYTES_MAX, Taken};

static EXPORT: LazyLock<Export> = LazyLock::new(|| zerotap_fuzz::export(1 << 20, false));

/// Feeds `bytes` in pieces of `piece` bytes; answers what was said and how it ended.
fn converse(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<Taken>) {
    let mut handshake = Handshake::default();
    let (mut said, mut unread, mut end) = (Vec::new(), Vec::new(), None);
    for piece in bytes.chunks(piece) {
        unread.extend_from_slice(piece);
        loop {
            let before = said.len();
            let taken = handshake.take(&unread, &EXPORT, &mut said);
            assert!(said.len() - before <= ANSWER_BYTES_MAX, "a long answer");
            match taken {
                Taken::More => {
                    assert!(unread.len() < 16 + OPTION_BYTES_MAX, "it waits for too much");
                    break;
                }
                Taken::Message(bytes) => {
                    assert!(bytes > 0 && bytes <= unread.len());
                    unread.drain(..bytes);
                }
                Taken::Transmission(bytes, _) | Taken::Ended(bytes) => {
                    assert!(bytes <= unread.len());
                    end = Some(taken);
                }
                Taken::HangUp => end = Some(taken),
            }
            if end.is_some() {
                return (said, end);
            }
        }
    }
    (said, end)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = converse(bytes, bytes.len().max(1));
    assert_eq!(converse(bytes, usize::from(piece) + 1), whole);
});
