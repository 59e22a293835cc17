//! Whole command lines against a stand-in for the daemon that notes what it is asked.

use super::*;
use clap::CommandFactory;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use zerotap_rpc_schema::smapi2::{Backend, DpStat, Health, SrInfo, VdiInfo, VdiState};

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// The command lines of a document or a help text, shell syntax around them taken off.
fn examples(text: &str) -> Vec<Vec<String>> {
    let plain = |line: &str| {
        let line = line.split("  #").next().unwrap_or_default().split(" > ").next()?.trim();
        let at = line.find("$(zerotap ").map(|at| at + 2);
        let line = &line[at.or(line.starts_with("zerotap ").then_some(0))?..];
        Some(line.trim_end_matches([')', '&', ' ']).replace("$DOMID", "5").replace('\'', ""))
    };
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect();
    text.lines().filter_map(plain).map(words).collect()
}

#[test]
fn every_command_that_is_shown_parses() {
    let readme = include_str!("../../../README.md");
    for text in [EXAMPLES, readme] {
        let shown = examples(text);
        assert!(shown.len() > 8, "{shown:?}");
        for words in shown {
            let done = Cli::try_parse_from(&words);
            done.unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")));
        }
    }
}

#[tokio::test]
async fn a_vdi_is_found_in_its_sr() {
    let daemon = Daemon::start();
    daemon.run("vdi attach uuid-of-v --domid 5 --device xvda").await.expect("attached");
    assert_eq!(daemon.methods(), ["SR.list", "SR.scan2", "SR.scan2", "VDI.attach3"]);
    let params = daemon.last();
    assert_eq!(params["sr"], "s2");
    assert_eq!(params["vdi"], "v");
    assert_eq!(params["dp"], "vbd/5/xvda");
    assert_eq!(params["vm"], "5");
    assert_eq!(params["read_write"], true);
}

#[tokio::test]
async fn a_named_sr_is_not_searched() {
    let daemon = Daemon::start();
    daemon.run("vdi destroy v --sr s9").await.expect("destroyed");
    assert_eq!(daemon.methods(), ["VDI.destroy"]);
    assert_eq!(daemon.last()["sr"], "s9");
}

#[tokio::test]
async fn a_vdi_that_is_nowhere_is_an_error() {
    let daemon = Daemon::start();
    let failure = daemon.run("vdi destroy nowhere").await.expect_err("no such VDI");
    assert!(failure.problem.contains("nowhere"), "{failure}");
    assert_eq!(daemon.methods(), ["SR.list", "SR.scan2", "SR.scan2"]);
}

#[tokio::test]
async fn create_says_what_is_wanted() {
    let daemon = Daemon::start();
    let line = "vdi create --sr s1 --name root --size 512KiB --preallocated";
    daemon.run(line).await.expect("created");
    let info = &daemon.last()["vdi_info"];
    assert_eq!(info["virtual_size"], 512 << 10);
    assert_eq!(info["sm_config"], json!({ "allocation": "preallocated" }));

    daemon.run("vdi create --sr s1 --name lun --device /dev/sdb").await.expect("created");
    let info = &daemon.last()["vdi_info"];
    assert_eq!(info["virtual_size"], 0);
    assert_eq!(info["sm_config"], json!({ "device": "/dev/sdb" }));
}

#[tokio::test]
async fn an_sr_gets_a_uuid_of_its_own() {
    let daemon = Daemon::start();
    daemon.run("sr create --name local --device-config path=/srv").await.expect("created");
    let params = daemon.last();
    assert!(uuid::Uuid::parse_str(params["sr"].as_str().expect("text")).is_ok(), "{params}");
    assert_eq!(params["device_config"], json!({ "path": "/srv" }));
}

#[tokio::test]
async fn read_only_is_a_method_of_its_own() {
    let daemon = Daemon::start();
    daemon.run("vdi activate v --sr s2 --read-only").await.expect("activated");
    assert_eq!(daemon.methods(), ["VDI.activate_readonly"]);
    assert_eq!(daemon.last()["dp"], "cli");
}

#[tokio::test]
async fn unplug_says_how_long_the_guest_may_take() {
    let daemon = Daemon::start();
    daemon.run("vbd unplug --domid 5 --device xvda --timeout 7").await.expect("unplugged");
    assert_eq!(daemon.last()["timeout_seconds"], 7);
    assert_eq!(daemon.last()["force"], false);
}

#[tokio::test]
async fn an_incomplete_list_of_srs_fails() {
    let daemon = Daemon::start();
    let failure = daemon.run("sr ls").await.expect_err("s1 has no stat");
    assert!(failure.problem.contains("incomplete"), "{failure}");
    assert_eq!(daemon.methods(), ["SR.list", "SR.stat", "SR.stat"]);
}

/// Answers as a daemon with two SRs would: `s1` is empty and cannot be looked at, `s2` holds `v`.
struct Daemon {
    dir: tempfile::TempDir,
    calls: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("rpc.sock")).expect("a socket");
        let calls = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&calls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, &noted).await;
            }
        });
        Daemon { dir, calls }
    }

    async fn run(&self, line: &str) -> Result<(), Failure> {
        let socket = self.dir.path().join("rpc.sock");
        let words = ["zerotap", "--socket", socket.to_str().expect("plain text")];
        let cli = Cli::try_parse_from(words.into_iter().chain(line.split(' ')))
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        obey(cli).await
    }

    fn methods(&self) -> Vec<String> {
        self.calls.lock().expect("calls").iter().map(|(method, _)| method.clone()).collect()
    }

    fn last(&self) -> Value {
        self.calls.lock().expect("calls").last().expect("a call").1.clone()
    }
}

async fn serve(mut stream: UnixStream, calls: &Mutex<Vec<(String, Value)>>) {
    let mut request = Vec::new();
    let call: Value = loop {
        if stream.read_buf(&mut request).await.expect("a request") == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&request);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        if let Ok(call) = serde_json::from_str(body) {
            break call;
        }
    };
    let method = call["method"].as_str().expect("a method").to_owned();
    let mut answer = answer(&method, &call["params"]);
    answer["jsonrpc"] = "2.0".into();
    answer["id"] = call["id"].clone();
    calls.lock().expect("calls").push((method, call["params"].clone()));
    let body = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.expect("a reader");
}

fn answer(method: &str, params: &Value) -> Value {
    let vdi = VdiInfo { vdi: "v".into(), uuid: Some("uuid-of-v".into()), ..VdiInfo::new("d", 1) };
    let sr = SrInfo {
        sr_uuid: None,
        name_label: String::new(),
        name_description: String::new(),
        total_space: 1,
        free_space: 1,
        clustered: false,
        health: Health::Healthy,
    };
    let result = match (method, params["sr"].as_str()) {
        ("SR.list", _) => json!(["s1", "s2"]),
        ("SR.scan2", Some("s2")) => json!([[vdi], sr]),
        ("SR.scan2", _) => json!([[], sr]),
        ("SR.stat", Some("s1")) => return json!({ "error": { "code": 47, "message": "gone" } }),
        ("SR.stat", _) => json!(sr),
        ("SR.create", _) => params["device_config"].clone(),
        ("VDI.create", _) => json!(vdi),
        ("VDI.attach3", _) => json!(Backend { implementations: vec![] }),
        ("DP.stat_vdi", _) => json!(DpStat { superstate: VdiState::Detached, dps: [].into() }),
        _ => Value::Null,
    };
    json!({ "result": result })
}
