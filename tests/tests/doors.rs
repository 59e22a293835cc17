//! Who gets in, by which door, and what it costs when somebody tries to.

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use zerotap_tests::harness::{Host, eventually, http};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// What the daemon's memory may grow by under all that is tried, KiB.
const GROWTH_KIB_MAX: u64 = 200 << 10;

/// Certificate, key and token, and the lines of configuration that name them.
struct Network {
    dir: tempfile::TempDir,
    port: u16,
}

impl Network {
    fn new() -> Network {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let network = Network { dir, port };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"])
            .arg(network.file("key"))
            .arg("-out")
            .arg(network.file("crt"))
            .args(["-addext", "subjectAltName=DNS:localhost,DNS:other.example,IP:127.0.0.1"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(network.file("token"), TOKEN).unwrap();
        network.set_mode("key", 0o600);
        network.set_mode("token", 0o600);
        network
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set_mode(&self, name: &str, mode: u32) {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.file(name), mode).unwrap();
    }

    fn lines(&self) -> String {
        format!(
            "[tcp]\nlisten = '127.0.0.1:{}'\ncertificate = {:?}\nkey = {:?}\ntoken_file = {:?}\n\
             hosts = ['localhost']\n",
            self.port,
            self.file("crt"),
            self.file("key"),
            self.file("token")
        )
    }

    /// curl's answer: status and body.
    fn curl(&self, url: &str, args: &[&str]) -> (u16, String) {
        let output = Command::new("curl")
            .args(["-s", "-m", "20", "-w", "\n%{http_code}", "--cacert"])
            .arg(self.file("crt"))
            .args(["--resolve", &format!("other.example:{}:127.0.0.1", self.port)])
            .args(args)
            .arg(url.replace("PORT", &self.port.to_string()))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.trim_end().to_owned())
    }

    fn call(&self, method: &str, params: &Value, token: &str) -> (u16, String) {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (call, token) = (call.to_string(), format!("authorization: Bearer {token}"));
        let json = "content-type: application/json";
        self.curl("https://localhost:PORT/", &["-H", json, "-H", &token, "-d", &call])
    }
}

/// The TCP sockets that a process has.
fn tcp_sockets(pid: u32) -> usize {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let Ok(link) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let link = link.to_string_lossy().into_owned();
        inodes.extend(link.strip_prefix("socket:[").map(|it| it.trim_end_matches(']').to_owned()));
    }
    let table = |name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let tables = table("tcp") + &table("tcp6");
    let ours = |line: &&str| {
        line.split_ascii_whitespace()
            .nth(9)
            .is_some_and(|inode| inodes.iter().any(|it| it == inode))
    };
    tables.lines().filter(ours).count()
}

#[test]
fn the_network_is_served_only_when_told_to_and_only_to_who_has_the_token() {
    let host = Host::start().unwrap();
    assert_eq!(tcp_sockets(host.daemon_pid().unwrap()), 0);
    drop(host);

    let network = Network::new();
    let host = Host::start_with(&network.lines()).unwrap();
    assert_eq!(tcp_sockets(host.daemon_pid().unwrap()), 1);
    let (sr, _) = host.create_sr().unwrap();
    let (status, body) = network.call("SR.list", &json!({}), TOKEN);
    assert_eq!(status, 200, "{body}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["result"], json!([sr]));
    let bearer = format!("authorization: Bearer {TOKEN}");
    let (status, body) = network.curl("https://localhost:PORT/metrics", &["-H", &bearer]);
    assert!(status == 200 && body.ends_with("# EOF"), "{status} {body}");
    let (second, _) = host.create_sr().unwrap();
    assert_eq!(network.call("SR.detach", &json!({"sr": second}), TOKEN).0, 200);
    let log = host.log();
    let line = log.lines().find(|line| line.contains("SR detached")).unwrap();
    assert!(line.contains("from=127.0.0.1"), "the log says who called: {line}");

    for token in ["", "0123456789abcdef0123456789abcdeF", "0123456789abcdef"] {
        assert_eq!(network.call("SR.list", &json!({}), token).0, 401, "{token}");
    }
    assert_eq!(network.curl("https://localhost:PORT/metrics", &[]).0, 401);
    assert_eq!(network.curl("https://localhost:PORT/healthz", &[]).0, 401);
    assert_eq!(network.curl("https://other.example:PORT/metrics", &["-H", &bearer]).0, 403);
    let (status, _) = network.curl("http://127.0.0.1:PORT/metrics", &["-H", &bearer]);
    assert_eq!(status, 0, "nothing without TLS");

    for method in ["SR.destroy", "SMAPIv3.SR.destroy"] {
        let (_, body) = network.call(method, &json!({"sr": sr}), TOKEN);
        assert!(body.contains("through its socket"), "{method}: {body}");
    }
    let batch = json!([{"jsonrpc": "2.0", "id": 1, "method": "SR.destroy", "params": {"sr": sr}}]);
    let json = "content-type: application/json";
    let args = ["-H", json, "-H", &bearer, "-d", &batch.to_string()];
    let (_, body) = network.curl("https://localhost:PORT/", &args);
    assert!(body.contains("through its socket"), "{body}");
    assert_eq!(host.rpc().raw("SR.list", &json!({})).unwrap(), json!([sr]), "it is still there");
    host.rpc().raw("SR.destroy", &json!({"sr": sr})).unwrap();
}

#[test]
fn who_calls_too_often_is_told_to_wait() {
    let network = Network::new();
    let host = Host::start_with(&network.lines()).unwrap();
    // One connection, wrong token: guesses are limited as well.
    let url = "https://localhost:PORT/healthz?[1-600]".replace("PORT", &network.port.to_string());
    let output = Command::new("curl")
        .args(["-s", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}\n", "--cacert"])
        .arg(network.file("crt"))
        .arg(url)
        .output()
        .unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    assert!(answers.lines().any(|status| status == "429"), "{answers}");
    assert!(answers.lines().any(|status| status == "401"), "{answers}");
    host.rpc().raw("SR.list", &json!({})).unwrap();
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let network = Network::new();
    network.set_mode("token", 0o644);
    let error = Host::start_with(&network.lines()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("token can be read by others") && text.contains("chmod 600"), "{text}");
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// A connection that has sent this and says no more.
fn silent(socket: &Path, text: &[u8]) -> Option<std::os::unix::net::UnixStream> {
    let mut stream = http::connect(socket).ok()?;
    stream.write_all(text).ok()?;
    Some(stream)
}

#[test]
fn slow_endless_and_malformed_requests_cost_a_bound_and_end() {
    let host = Host::start().unwrap();
    let (socket, pid) = (host.rpc().socket().to_owned(), host.daemon_pid().unwrap());
    let before = rss_kib(pid);

    // Without an end, in chunks: hung up on after a megabyte, not when it has all been read.
    let mut endless = http::connect(&socket).unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    endless.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let sent = (0..1000).take_while(|_| endless.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 1000, "64 MiB were taken");
    let mut answer = String::new();
    // It may hang up before the answer was read.
    let _ = endless.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");

    let mut garbage = zerotap_tests::workload::random::Random::new(7);
    for _ in 0..200 {
        let mut bytes = vec![0; 512];
        bytes.iter_mut().for_each(|byte| *byte = garbage.below(256) as u8);
        drop(silent(&socket, &bytes));
    }
    let endless_head = format!("GET / HTTP/1.1\r\n{}", "x-a: b\r\n".repeat(200_000));
    drop(silent(&socket, endless_head.as_bytes()));
    host.rpc().raw("SR.list", &json!({})).unwrap();

    // All places are taken by those who never finish; they are hung up on, and others get in.
    let halves = [
        "POST / HTTP/1.1\r\nHost: x\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\
         \r\n{",
    ];
    let slow: Vec<_> = (0..200).map(|n| silent(&socket, halves[n % 2].as_bytes())).collect();
    assert!(slow.len() == 200 && host.rpc().raw("SR.list", &json!({})).is_err(), "full");
    let limit = std::time::Instant::now() + Duration::from_secs(60);
    while host.rpc().raw("SR.list", &json!({})).is_err() {
        assert!(std::time::Instant::now() < limit, "who is slow keeps others out for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(slow);
    eventually("its memory is what it was", || {
        Ok((rss_kib(pid) < before + GROWTH_KIB_MAX).then_some(()))
    })
    .unwrap();
}

#[test]
fn whoever_comes_over_the_network_costs_a_bound_and_ends() {
    let network = Network::new();
    let host = Host::start_with(&network.lines()).unwrap();
    let before = rss_kib(host.daemon_pid().unwrap());
    let call = || network.call("SR.list", &json!({}), TOKEN).0;
    assert_eq!(call(), 200);
    let huge = network.file("huge");
    std::fs::write(&huge, vec![b' '; 8 << 20]).unwrap();
    let (data, bearer) = (format!("@{}", huge.display()), format!("authorization: Bearer {TOKEN}"));
    // Without "expect", of which curl would report the answer (100) when it is hung up on after it.
    let args = ["-H", "expect:", "-H", "content-type: application/json", "-H", &bearer];
    let args = [&args[..], &["--data-binary", &data]].concat();
    // It may hang up before the answer was read.
    let (status, _) = network.curl("https://localhost:PORT/", &args);
    assert!(status == 413 || status == 0, "{status}");
    // What is no HTTP, within TLS.
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", network.port)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    client.stdin.as_mut().unwrap().write_all(b"\x00\xff no HTTP\r\n\r\n").unwrap();
    let mut said = String::new();
    client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    client.wait().unwrap();
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");

    // What is no TLS; and all places are taken by those who say nothing.
    let connect = || TcpStream::connect(("127.0.0.1", network.port)).unwrap();
    let mut garbage = zerotap_tests::workload::random::Random::new(7);
    for _ in 0..8 {
        let bytes: Vec<u8> = (0..512).map(|_| garbage.below(256) as u8).collect();
        // It may be hung up on already.
        let _ = connect().write_all(&bytes);
    }
    let mut silent = Vec::new();
    eventually("nobody else gets in", || {
        silent.extend((0..50).map(|_| connect()));
        Ok((call() == 0).then_some(()))
    })
    .unwrap();
    eventually("others get in again", || Ok((call() == 200).then_some(()))).unwrap();
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("not hung up on: {other:?}"),
        }
    }
    eventually("its memory is what it was", || {
        Ok((rss_kib(host.daemon_pid().unwrap()) < before + GROWTH_KIB_MAX).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_page_of_somebody_else_may_not_call() {
    let host = Host::start().unwrap();
    let ask = |origin: &str, upgrade: &str| {
        let mut stream = http::connect(host.rpc().socket()).unwrap();
        let head = format!(
            "GET /healthz HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: {origin}\r\n{upgrade}\
             Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        http::read(stream).unwrap().status
    };
    assert_eq!(ask("http://localhost:8080", ""), 200);
    assert_eq!(ask("http://evil.example", ""), 403);
    assert_eq!(ask("http://evil.example", "Upgrade: websocket\r\n"), 403);
}
