//! The daemon's front door: JSON-RPC over a unix socket, its bounds and its strictness.

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use zerotap_tests::harness::rpc::unpack;
use zerotap_tests::harness::{Host, http};

const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;

#[test]
fn discover_answers_the_golden_document() {
    let host = Host::start().unwrap();
    let found = host.rpc().raw("rpc.discover", &json!({})).unwrap();
    let golden = include_str!("../../rpc-schema/openrpc.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    assert_eq!(found, golden);
    let names = found["methods"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap());
    assert!(names.eq(zerotap_rpc_schema::names()));
}

#[test]
fn parameters_are_strict() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let wrong = [
        ("SR.stat", json!({}), "sr"),
        ("SR.stat", json!({"sr": 7}), "string"),
        ("SR.stat", json!({"sr": null}), "string"),
        ("SR.stat", json!({"sr": "x", "rs": "x"}), "rs"),
        ("VDI.resize", json!({"sr": "x", "vdi": "y", "new_size": "big"}), "new_size"),
        ("VDI.resize", json!({"sr": "x", "vdi": "y", "new_size": 1.5}), "integer"),
        ("VDI.resize", json!({"sr": "x", "vdi": "y", "new_size": 1e30}), "integer"),
        ("VDI.attach3", json!({"dp": "d", "sr": "x", "vdi": "y", "vm": 5}), "vm"),
        ("VBD.stat", json!({"domid": 70000, "device": "xvda"}), "domid"),
        ("VBD.stat", json!({"domid": -1, "device": "xvda"}), "domid"),
    ];
    for (method, params, named) in wrong {
        let error = rpc.fails(method, &params);
        assert_eq!(error.code, INVALID_PARAMS, "{method} {params}: {error}");
        let text = raw(&host, method, &params).to_string();
        let helps = text.contains(named) || named == "integer" && text.contains("i64");
        assert!(helps, "{method} {params} must tell of {named}: {text}");
    }
    for method in ["SR.stats", "", "VDI.attach4", "rpc.discover2"] {
        assert_eq!(rpc.fails(method, &json!({})).code, METHOD_NOT_FOUND, "{method}");
    }
}

fn raw(host: &Host, method: &str, params: &Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = http::post(host.rpc().socket(), &request.to_string()).unwrap();
    serde_json::from_str(&answer.body).unwrap()
}

#[test]
fn what_is_no_json_rpc_is_refused_and_harms_nobody() {
    let host = Host::start().unwrap();
    for body in ["", "{", "null", "[]", "7", "\"SR.list\"", "{\"jsonrpc\":\"2.0\"}", "\u{0}"] {
        let answer = http::post(host.rpc().socket(), body).unwrap();
        let refused = answer.status >= 400
            || serde_json::from_str::<Value>(&answer.body).is_ok_and(|it| it["error"].is_object());
        assert!(refused, "{body:?}: {answer:?}");
    }
    let deep = "[".repeat(100_000);
    let answer = http::post(host.rpc().socket(), &deep).unwrap();
    assert!(!answer.body.contains("result"), "{answer:?}");
    host.rpc().raw("SR.list", &json!({})).unwrap();
}

#[test]
fn bodies_and_batches_are_bounded() {
    let host = Host::start().unwrap();
    let socket = host.rpc().socket().to_owned();
    let call = |id: usize| json!({"jsonrpc": "2.0", "id": id, "method": "SR.list", "params": {}});

    let small: Vec<Value> = (0..5).map(call).collect();
    let answer = http::post(&socket, &json!(small).to_string()).unwrap();
    let answers: Vec<Value> = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|it| unpack(it).is_some_and(|it| it.is_ok())), "{answers:?}");

    let large: Vec<Value> = (0..5000).map(call).collect();
    let answer = http::post(&socket, &json!(large).to_string()).unwrap();
    assert!(!answer.body.contains("result"), "5000 calls at once: {}", answer.body.len());

    let huge = "x".repeat(32 << 20);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SR.stat", "params": {"sr": huge}});
    match http::post(&socket, &body.to_string()) {
        Ok(answer) => assert!(answer.status == 413 || answer.body.contains("error"), "{answer:?}"),
        // It may hang up on who sends that much.
        Err(error) => assert!(error.root_cause().is::<std::io::Error>(), "{error:#}"),
    }
    host.rpc().raw("SR.list", &json!({})).unwrap();
}

#[test]
fn only_owner_and_group_may_connect() {
    let host = Host::start().unwrap();
    let socket = std::fs::metadata(host.rpc().socket()).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    assert_eq!(socket.uid(), rustix::process::geteuid().as_raw());
    if !rustix::process::geteuid().is_root() {
        // Another user's process can be had only as root; the mode above says what it would meet.
        return;
    }
    for dir in [host.run_dir(), host.data().to_owned()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let attempt = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/perl", "-MSocket"])
        .args(["-e", "socket(S, PF_UNIX, SOCK_STREAM, 0);"])
        .args(["-e", "connect(S, sockaddr_un($ARGV[0])) or die \"refused: $!\""])
        .arg(host.rpc().socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&attempt.stderr);
    assert!(said.contains("refused: Permission denied"), "{said}");
}

#[test]
fn state_changes_are_logged_with_who_ordered_them() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(1 << 20).unwrap();
    let log = host.log();
    let line = log.lines().find(|line| line.contains("VDI.create")).expect("a line on the call");
    let pid = std::process::id().to_string();
    assert!(line.contains(&pid) && line.contains("uid"), "who made {}: {line}", vdi.vdi);
}

/// One masked text frame, as a client sends it.
fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(short) if short < 126 => bytes.push(0x80 | short),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    bytes.extend(mask);
    bytes.extend(text.bytes().enumerate().map(|(n, byte)| byte ^ mask[n % 4]));
    bytes
}

/// The payload of the next frame.
fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    while head == [0x89, 0] {
        // The daemon asks whether its client lives.
        stream.read_exact(&mut head).unwrap();
    }
    assert_eq!(head[0], 0x81, "a whole text frame");
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            usize::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).unwrap();
            usize::try_from(u64::from_be_bytes(length)).unwrap()
        }
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    payload
}

#[test]
fn web_sockets_carry_the_same_calls() {
    let host = Host::start().unwrap();
    let mut stream = http::connect(host.rpc().socket()).unwrap();
    let head = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // The accept value that RFC 6455 gives for this very key.
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    for id in 1..=3 {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "SR.list", "params": {}});
        stream.write_all(&frame(&call.to_string())).unwrap();
        let answer: Value = serde_json::from_slice(&read_frame(&mut stream)).unwrap();
        assert_eq!(answer["id"], json!(id));
        assert_eq!(answer["result"], json!([]));
    }
}

#[test]
fn the_command_line_speaks_to_the_daemon() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(3 << 20).unwrap();
    let run = |args: &[&str]| {
        let output = host.zerotap(args).unwrap().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), said)
    };
    let (success, out, said) = run(&["vdi", "ls", "--json"]);
    assert!(success, "{said}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert!(listed.to_string().contains(&vdi.vdi), "{out}");
    let (success, out, said) = run(&["call", "SR.list"]);
    assert!(success, "{said}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), json!([vdi.sr]));
    let (success, _, said) = run(&["call", "SR.stat", "{\"sr\": \"nonesuch\"}"]);
    assert!(!success && said.contains("nonesuch"), "{said}");
}
