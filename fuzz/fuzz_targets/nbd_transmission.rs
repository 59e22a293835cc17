//! NBD requests, judged, and the headers of their answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::io::Errno;
use std::sync::LazyLock;
use zerotap_datapath::nbd::export::Export;
use zerotap_datapath::nbd::handshake::Agreed;
use zerotap_datapath::nbd::transmission::{Command, Header, Judged, REQUEST_BYTES, judge};
use zerotap_datapath::nbd::{DISCARD_BYTES_MAX, REQUEST_BYTES_MAX};

static WRITABLE: LazyLock<Export> = LazyLock::new(|| zerotap_fuzz::export(1 << 30, false));
static READ_ONLY: LazyLock<Export> = LazyLock::new(|| zerotap_fuzz::export(1 << 20, true));

fuzz_target!(|input: (u8, [u8; REQUEST_BYTES])| {
    let (kind, bytes) = input;
    let export = if kind & 1 == 0 { &*WRITABLE } else { &*READ_ONLY };
    let agreed = Agreed { structured: kind & 2 != 0, allocation: kind & 4 != 0 };
    match judge(&bytes, export, agreed) {
        Judged::Do(request) => {
            let (offset, length) = (request.offset, u64::from(request.length));
            let writes =
                matches!(request.command, Command::Write | Command::Trim | Command::Zeroes { .. });
            assert!(!writes || !export.is_read_only(), "a write to a read-only export");
            if request.command != Command::Flush {
                let end = u128::from(offset) + u128::from(length);
                assert!(length > 0 && end <= u128::from(export.bytes()), "beyond the end");
            }
            if matches!(request.command, Command::Read | Command::Write) {
                assert!(request.length <= REQUEST_BYTES_MAX);
            }
            let data = if request.command == Command::Read { request.length } else { 0 };
            assert!(!Header::done(&request, data, agreed).bytes().is_empty());
            assert!(!Header::failed(&request, Errno::IO, agreed).bytes().is_empty());
        }
        Judged::Refuse { request, errno, data } => {
            assert!(data <= DISCARD_BYTES_MAX, "more data than is read and forgotten");
            assert!(!Header::failed(&request, errno, agreed).bytes().is_empty());
        }
        Judged::Disconnect | Judged::HangUp => {}
    }
});
