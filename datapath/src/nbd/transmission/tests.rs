//! Requests and answers by the byte, and with anything at all.

use super::*;
use proptest::prelude::*;

const BYTES: u64 = 1 << 20;
const AGREED: Agreed = Agreed { structured: true, allocation: true };
const PLAIN: Agreed = Agreed { structured: false, allocation: false };

fn bytes(flags: u16, kind: u16, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
    let parts = [
        &REQUEST_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &7u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    parts.concat().try_into().unwrap()
}

fn refused(judged: Judged) -> Option<Errno> {
    match judged {
        Judged::Refuse { errno, .. } => Some(errno),
        _ => None,
    }
}

#[test]
fn what_can_be_done_and_what_not() {
    let disk = Export::pretended("disk", BYTES, false);
    let judge = |flags, kind, offset, length| {
        super::judge(&bytes(flags, kind, offset, length), &disk, AGREED)
    };
    let done = |judged: Judged| matches!(judged, Judged::Do(_));
    assert!(done(judge(0, CMD_READ, BYTES - 1, 1)) && done(judge(FLAG_FUA, CMD_WRITE, 5, 6)));
    assert!(done(judge(FLAG_DF, CMD_READ, 0, 4096)));
    assert!(done(judge(0, CMD_FLUSH, u64::MAX, 0)), "a flush has no range");
    assert!(done(judge(FLAG_NO_HOLE | FLAG_FAST_ZERO | FLAG_FUA, CMD_WRITE_ZEROES, 0, 1 << 20)));
    assert!(done(judge(FLAG_REQ_ONE, CMD_BLOCK_STATUS, 0, 1 << 20)));
    let errno = |flags, kind, offset, length| refused(judge(flags, kind, offset, length));
    assert_eq!(errno(0, CMD_READ, BYTES, 1), Some(Errno::INVAL));
    assert_eq!(errno(0, CMD_READ, u64::MAX, 2), Some(Errno::INVAL), "no overflow");
    assert_eq!(errno(0, CMD_READ, 0, 0), Some(Errno::INVAL));
    assert_eq!(errno(0, CMD_READ, 0, REQUEST_BYTES_MAX + 1), Some(Errno::OVERFLOW));
    assert_eq!(errno(0, CMD_WRITE, BYTES - 1, 2), Some(Errno::NOSPC));
    assert_eq!(errno(FLAG_FAST_ZERO, CMD_TRIM, 0, 512), Some(Errno::INVAL));
    assert_eq!(errno(0, 8, 0, 512), Some(Errno::INVAL));
    assert!(matches!(
        judge(0, CMD_WRITE, 0, REQUEST_BYTES_MAX + 1),
        Judged::Refuse { data, .. } if data == REQUEST_BYTES_MAX + 1
    ));
    assert_eq!(judge(0, CMD_WRITE, 0, DISCARD_BYTES_MAX + 1), Judged::HangUp);
    assert_eq!(judge(0, CMD_DISC, 0, 0), Judged::Disconnect);

    let status = bytes(0, CMD_BLOCK_STATUS, 0, 512);
    assert_eq!(refused(super::judge(&status, &disk, PLAIN)), Some(Errno::INVAL));
    let read_only = Export::pretended("disk", BYTES, true);
    for kind in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
        let request = bytes(0, kind, 0, 512);
        assert_eq!(refused(super::judge(&request, &read_only, AGREED)), Some(Errno::PERM));
    }
}

#[test]
fn answers_by_the_byte() {
    let of = |command| Request { cookie: 7, command, offset: 9, length: 512, fua: false };
    let read = of(Command::Read);
    let simple = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    assert_eq!(Header::done(&read, 512, PLAIN).bytes(), simple);
    let mut chunk = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
    chunk.extend([0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(Header::done(&read, 512, AGREED).bytes(), chunk);
    let mut error = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 7];
    error.extend([0, 0, 0, 6, 0, 0, 0, 5, 0, 0]);
    assert_eq!(Header::failed(&read, Errno::NXIO, AGREED).bytes(), error);
    let full = Header::failed(&of(Command::Write), Errno::NOSPC, AGREED);
    assert_eq!(full.bytes()[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28]);
}

proptest! {
    /// What is to be done lies in the export, whatever was sent.
    #[test]
    fn nothing_leaves_the_export(
        mut raw in any::<[u8; REQUEST_BYTES]>(),
        magic in any::<bool>(),
        kind in 0u8..9,
        near in any::<bool>(),
        read_only in any::<bool>(),
        structured in any::<bool>(),
    ) {
        if magic {
            raw[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            raw[6..8].copy_from_slice(&[0, kind]);
            raw[4] = 0;
        }
        if near {
            raw[16..21].fill(0);
            raw[24..26].fill(0);
        }
        let disk = Export::pretended("disk", BYTES, read_only);
        let agreed = Agreed { structured, allocation: structured };
        match judge(&raw, &disk, agreed) {
            Judged::Do(request) if request.command != Command::Flush => {
                let end = request.offset.checked_add(u64::from(request.length));
                prop_assert!(request.length > 0 && end.is_some_and(|end| end <= BYTES));
                let writes = !matches!(
                    request.command,
                    Command::Read | Command::Cache | Command::BlockStatus { .. }
                );
                prop_assert!(!(writes && read_only));
            }
            Judged::Refuse { request, errno, data } => {
                prop_assert!(data <= DISCARD_BYTES_MAX);
                let header = Header::failed(&request, errno, agreed);
                prop_assert!(header.bytes().len() <= HEADER_BYTES_MAX);
            }
            Judged::HangUp => prop_assert!(!magic || kind == 1),
            _ => {}
        }
    }
}
