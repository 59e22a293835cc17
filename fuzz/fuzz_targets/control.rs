//! A control connection of the worker's: bytes in pieces, lines, requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, send, socket};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use zerotap_datapath::control::Connection;
use zerotap_rpc_schema::worker::Request;

static LISTENER: LazyLock<(OwnedFd, SocketAddrUnix)> = LazyLock::new(|| {
    let name = format!("zerotap-fuzz-{}", std::process::id());
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("a short name");
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    bind(&listener, &address).expect("a name of ours");
    listen(&listener, 1).expect("a bound socket");
    (listener, address)
});

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let (listener, address) = &*LISTENER;
    let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    connect(&client, address).expect("a listener of ours");
    let mut connection = Connection::accept(listener).expect("it connected");
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
        send(&client, piece, rustix::net::SendFlags::empty()).expect("room in the socket");
        if connection.fill().is_err() {
            return;
        }
        loop {
            match connection.next_request() {
                Ok(Some(request)) => {
                    let line = serde_json::to_vec(&request).expect("a request is JSON");
                    let again: Request = serde_json::from_slice(&line).expect("and read again");
                    assert_eq!(again, request);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
