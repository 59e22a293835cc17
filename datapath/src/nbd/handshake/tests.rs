//! The handshake by the byte, and with anything at all.

use super::*;
use proptest::prelude::*;

const GO: u32 = OPT_GO;

/// What a connection would have sent, and where the handshake ended.
fn drive(pieces: &[&[u8]], export: &Export) -> (Vec<u8>, Taken, usize) {
    let mut handshake = Handshake::default();
    let (mut input, mut answers, mut consumed) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let mut answer = Vec::new();
            let taken = handshake.take(&input, export, &mut answer);
            assert!(answer.len() <= ANSWER_BYTES_MAX);
            answers.extend(answer);
            match taken {
                Taken::More => break,
                Taken::Message(bytes) => {
                    consumed += bytes;
                    input.drain(..bytes);
                }
                end => return (answers, end, consumed),
            }
        }
    }
    (answers, Taken::More, consumed)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &length(data), data].concat()
}

fn named(name: &[u8], rest: &[u8]) -> Vec<u8> {
    [&length(name)[..], name, rest].concat()
}

fn export() -> Export {
    Export::pretended("disk", 1 << 20, false)
}

/// Begins as every client does, and sends these options.
fn client(options: &[Vec<u8>]) -> (Vec<u8>, Taken) {
    let flags = 3u32.to_be_bytes();
    let bytes = [&flags[..], &options.concat()].concat();
    let (answers, taken, _) = drive(&[&bytes], &export());
    (answers, taken)
}

/// The replies' types, each with its data.
fn replies(mut answers: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !answers.is_empty() {
        let mut fields = Fields(answers);
        assert_eq!(fields.u64(), Some(REPLY_MAGIC));
        fields.u32().unwrap();
        let kind = fields.u32().unwrap();
        replies.push((kind, fields.string().unwrap().to_vec()));
        answers = fields.0;
    }
    replies
}

#[test]
fn the_greeting_is_fixed_newstyle() {
    assert_eq!(Handshake::greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn export_name_is_answered_without_a_reply() {
    let (answers, taken) = client(&[option(OPT_EXPORT_NAME, b"disk")]);
    assert_eq!(answers[..8], (1u64 << 20).to_be_bytes());
    assert_eq!(answers.len(), 10, "no zeroes, as agreed");
    assert_eq!(taken, Taken::Transmission(20, Agreed::default()));
    let old = [&1u32.to_be_bytes()[..], &option(OPT_EXPORT_NAME, b"")].concat();
    assert_eq!(drive(&[&old], &export()).0.len(), 134);
    assert_eq!(client(&[option(OPT_EXPORT_NAME, b"other")]).1, Taken::HangUp);
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let options = [
        option(OPT_STRUCTURED_REPLY, b""),
        option(
            OPT_SET_META_CONTEXT,
            &named(b"disk", &[&1u32.to_be_bytes()[..], &named(b"base:allocation", b"")].concat()),
        ),
        option(GO, &named(b"disk", &[0, 1, 0, 1])),
    ];
    let (answers, taken) = client(&options);
    let agreed = Agreed { structured: true, allocation: true };
    assert!(matches!(taken, Taken::Transmission(_, end) if end == agreed), "{taken:?}");
    let replies = replies(&answers);
    let kinds: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
    let rest = [REP_INFO, REP_INFO, REP_INFO, REP_ACK];
    assert_eq!(kinds, [&[REP_ACK, REP_META_CONTEXT, REP_ACK][..], &rest].concat());
    assert_eq!(replies[1].1, b"\0\0\0\x01base:allocation");
    assert_eq!(replies[3].1, [&[0, 0, 0, 0, 0, 0, 0, 16, 0, 0][..], &[0x0d, 0xed]].concat());
    assert_eq!(replies[4].1, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 0, 32, 0, 0]);
    assert_eq!(replies[5].1, b"\0\x01disk");
}

#[test]
fn a_context_is_for_the_name_it_was_asked_for_and_needs_structured_replies() {
    let set = |name: &[u8]| {
        let query = [&1u32.to_be_bytes()[..], &named(b"base:allocation", b"")].concat();
        option(OPT_SET_META_CONTEXT, &named(name, &query))
    };
    let (answers, _) = client(&[set(b"disk")]);
    assert_eq!(replies(&answers)[0].0, REP_ERR_INVALID);
    let go = option(GO, &named(b"disk", &[0, 0]));
    let (_, taken) = client(&[option(OPT_STRUCTURED_REPLY, b""), set(b""), go]);
    let agreed = Agreed { structured: true, allocation: false };
    assert!(matches!(taken, Taken::Transmission(_, end) if end == agreed), "{taken:?}");
}

#[test]
fn what_is_wrong_is_refused_and_the_handshake_goes_on() {
    let cases = [
        (option(OPT_LIST, b"x"), REP_ERR_INVALID),
        (option(99, b"abc"), REP_ERR_UNSUP),
        (option(5, b""), REP_ERR_UNSUP),
        (option(GO, b"\0\0\0\x04di"), REP_ERR_INVALID),
        (option(GO, &named(b"disk", &[0, 9, 0, 0])), REP_ERR_INVALID),
        (option(GO, &named(b"other", &[0, 0])), REP_ERR_UNKNOWN),
        (option(OPT_LIST_META_CONTEXT, &named(b"disk", &[0xff; 4])), REP_ERR_INVALID),
    ];
    for (wrong, kind) in cases {
        let (answers, taken) = client(&[wrong.clone(), option(OPT_ABORT, b"")]);
        assert!(matches!(taken, Taken::Ended(_)), "{wrong:?}");
        let kinds: Vec<u32> = replies(&answers).iter().map(|reply| reply.0).collect();
        assert_eq!(kinds, [kind, REP_ACK], "{wrong:?}");
    }
    let huge = [b"IHAVEOPT", &GO.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    assert_eq!(client(&[huge]).1, Taken::HangUp);
    assert_eq!(client(&[b"GET / HTTP/1.1\r\n\r\n".to_vec()]).1, Taken::HangUp);
    assert_eq!(drive(&[&[0xff; 4]], &export()).1, Taken::HangUp);
}

fn some_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(named(b"disk", &[0, 0])),
        Just(named(b"disk", &[0, 0, 0, 1, 0, 0, 0, 5, b'b', b'a', b's', b'e', b':'])),
        prop::collection::vec(any::<u8>(), 0..60),
    ];
    prop_oneof![
        8 => (0u32..13, data).prop_map(|(number, data)| option(number, &data)),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    /// However the bytes are cut, the answers are the same.
    #[test]
    fn the_cuts_do_not_matter(
        flags in prop_oneof![4 => 1u32..4, 1 => any::<u32>()],
        options in prop::collection::vec(some_option(), 0..8),
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = [&flags.to_be_bytes()[..], &options.concat()].concat();
        cuts.sort_by_key(|cut| cut.index(bytes.len() + 1));
        let (mut pieces, mut start) = (Vec::new(), 0);
        for cut in cuts {
            let end = cut.index(bytes.len() + 1);
            pieces.push(&bytes[start..end]);
            start = end;
        }
        pieces.push(&bytes[start..]);
        prop_assert_eq!(drive(&pieces, &export()), drive(&[&bytes], &export()));
    }
}
