//! The door with a real socket: who gets in, what is bounded, and that the whole table is behind
//! it.

use super::*;
use crate::config::{Config, HostKind, ServeArgs};
use crate::host::Host;
use crate::rpc::listen::Door;
use crate::state::State;
use crate::vbd::{VbdConfig, Vbds};
use crate::worker::journals::Journals;
use crate::worker::{Launcher, Workers};
use jsonrpsee::client_transport::ws::{Url, WsTransportClientBuilder};
use jsonrpsee::core::client::{Client, ClientBuilder, ClientT, Subscription, SubscriptionClientT};
use jsonrpsee::core::params::ObjectParams;
use jsonrpsee::server::{ServerHandle, stop_channel};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zerotap_rpc_schema::engine::EngineSetting;
use zerotap_rpc_schema::event::{Change, Event};
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::TransferRule;

const SR: &str = "8a6b0f4e-0d0c-4f0f-9a31-1f6d0b5a2c77";

struct Served {
    dir: tempfile::TempDir,
    config: Config,
    core: Arc<Core>,
    _calls: ServerHandle,
}

async fn core(dir: &Path) -> Arc<Core> {
    let state = State::open(&dir.join("state.db"), "boot").await.expect("a database");
    let srs =
        Arc::new(Srs::restore(state.clone(), false, Events::default()).await.expect("readable"));
    let (news, _) = mpsc::channel(1);
    let host = Host::Sim { dir: dir.into() };
    let launcher = Launcher {
        program: dir.join("worker"),
        engine: EngineSetting::Auto,
        dir: dir.into(),
        nbd_dir: dir.into(),
        journals: Journals { dir: dir.into() },
        host,
        budget: dir.join("budget"),
        mapped_pages_max: 0,
        transfer: TransferRule::Auto,
        no_space: NoSpace::Pause,
        polling: false,
    };
    let engine = launcher.engine().await;
    let events = Events::default();
    let workers = Workers::new(news, events.clone());
    let registry = Registry::new(state, Arc::clone(&srs), workers, launcher, "qdisk".into());
    let text = |text: &str| text.to_string();
    let kinds = vec![text("qdisk")];
    let config = VbdConfig { kinds, offer: Default::default(), events: events.clone() };
    let vbds = Vbds::start(config, Arc::clone(&registry), mpsc::channel(1).1);
    let (host, boot_id, since) = (text("sim"), text("b"), text("s"));
    let (calls, watched) = Default::default();
    Arc::new(Core { srs, registry, vbds, host, boot_id, engine, since, calls, watched, events })
}

async fn serve() -> Served {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("zerotap.toml");
    std::fs::write(&file, "").expect("writable");
    let config = Config::load(ServeArgs {
        config: Some(file),
        run_dir: Some(dir.path().into()),
        host: Some(HostKind::Sim),
        sim_dir: Some(dir.path().into()),
        state: None,
    })
    .expect("a configuration");
    let door = Door::open(&config).await.expect("a free place");
    let (stop, calls) = stop_channel();
    let core = core(dir.path()).await;
    tokio::spawn(door.serve(Arc::clone(&core), stop));
    Served { dir, config, core, _calls: calls }
}

impl Served {
    fn socket(&self) -> PathBuf {
        self.config.rpc_socket()
    }

    /// Sends a request as it is, and reads until the daemon closes.
    async fn http(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).await.expect("the door");
        let head = format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.expect("it listens");
        // It may answer, and close, before it has read all of a body that is too long.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string());
        (status, body.unwrap_or_default())
    }

    async fn post(&self, body: &str) -> (u16, String) {
        let head =
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
        self.http(head, body).await
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let (status, body) = self.post(&call.to_string()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    async fn websocket(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).await.expect("the door");
        let url = Url::parse("ws://localhost/").expect("a url");
        let transport = WsTransportClientBuilder::default().build_with_stream(url, stream).await;
        let (sender, receiver) = transport.expect("a websocket");
        ClientBuilder::default().build_with_tokio(sender, receiver)
    }
}

#[tokio::test]
async fn the_whole_table_is_served_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let methods = methods::all(core(dir.path()).await);
    let mut served: Vec<_> = methods.method_names().collect();
    let mut listed: Vec<_> = zerotap_rpc_schema::names().collect();
    served.sort_unstable();
    listed.sort_unstable();
    assert_eq!(served, listed);
}

#[tokio::test]
async fn http_and_websocket_lead_to_the_same_place() {
    let served = serve().await;
    let sr = served.dir.path().join("sr");
    std::fs::create_dir(&sr).expect("writable");
    let config = json!({ "path": sr });
    let params =
        json!({ "sr": SR, "name_label": "a", "name_description": "", "device_config": config });
    let created = served.call("SR.create", params).await;
    assert_eq!(created["result"], config, "{created}");
    let websocket = served.websocket().await;
    let listed: Vec<String> = websocket.request("SR.list", ObjectParams::new()).await.expect("SRs");
    assert_eq!(listed, [SR]);
    let info = json!({ "name_label": "disk", "virtual_size": 8192 });
    let made = served.call("VDI.create", json!({ "sr": SR, "vdi_info": info })).await;
    let scanned = served.call("SR.scan2", json!({ "sr": SR })).await;
    assert_eq!(scanned["result"][0][0], made["result"], "{scanned}");
    let stat = json!({ "sr": SR, "vdi": "nobody" });
    let unknown = served.call("VDI.stat", stat).await;
    assert_eq!(unknown["error"]["data"], json!(["Vdi_does_not_exist", "nobody"]), "{unknown}");
    let document = served.call("rpc.discover", json!({})).await;
    assert_eq!(
        document["result"]["methods"].as_array().map(Vec::len),
        Some(zerotap_rpc_schema::names().count())
    );
}

#[tokio::test]
async fn a_place_that_is_no_sr_is_named() {
    let served = serve().await;
    let file = served.dir.path().join("file");
    std::fs::write(&file, "").expect("writable");
    let missing = served.dir.path().join("missing");
    let cases = [
        (json!({}), "path"),
        (json!({ "path": "relative" }), "absolute"),
        (json!({ "path": missing }), "does not exist"),
        (json!({ "path": file }), "not a directory"),
        (json!({ "path": "/tmp", "size": "1" }), "size"),
    ];
    for (config, expected) in cases {
        let params = json!({ "sr": SR, "device_config": config,
            "name_label": "", "name_description": "" });
        let refused = served.call("SR.create", params).await;
        let text = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(text.contains(expected), "{config}: {refused}");
        assert_eq!(refused["error"]["data"][0], "Backend_error");
    }
    let params = json!({ "sr": "no-uuid", "device_config": { "path": "/tmp" } });
    let refused = served.call("SR.attach", params).await;
    assert!(refused["error"]["message"].as_str().unwrap_or_default().contains("uuid"));
    let probed = served.call("SR.probe", json!({ "device_config": { "path": missing } })).await;
    assert_eq!(probed["result"], json!(["Probe", []]));
}

#[tokio::test]
async fn what_a_client_sends_is_bounded() {
    let served = serve().await;
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"SR.list"}"#;
    let batch = |calls: usize| format!("[{}]", vec![call; calls].join(","));
    let (_, body) = served.post(&batch(64)).await;
    let answers: Vec<Value> = serde_json::from_str(&body).expect("a batch of answers");
    assert_eq!(answers.len(), 64);
    let (_, body) = served.post(&batch(65)).await;
    assert!(body.contains("-32010"), "{body}");
    let (status, body) = served.post(&format!("\"{}\"", "x".repeat(2 << 20))).await;
    assert!(status == 413 || body.contains("-32007"), "{status} {body}");
    let (_, body) = served.post(r#"{"jsonrpc":"2.0","id":1,"method":"VDI.forget"}"#).await;
    assert!(body.contains("-32601"), "{body}");
    let (_, body) = served.post("{").await;
    assert!(body.contains("-32700"), "{body}");
    let (status, body) =
        served.http("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close", "").await;
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    let (status, _) = served.http("GET / HTTP/1.1\r\nhost: x\r\nconnection: close", "").await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn the_socket_is_guarded_and_has_one_daemon() {
    let served = serve().await;
    let socket = std::fs::metadata(served.socket()).expect("there");
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    assert_eq!(socket.uid(), rustix::process::geteuid().as_raw());
    let error = Door::open(&served.config).await.expect_err("taken");
    assert!(error.to_string().contains("another daemon"), "{error}");
    let free = tempfile::tempdir().expect("a directory");
    let config = Config { run_dir: free.path().into(), ..served.config.clone() };
    drop(std::os::unix::net::UnixListener::bind(config.rpc_socket()).expect("a stale socket"));
    Door::open(&config).await.expect("nobody serves it");
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_break_work_off() {
    let served = serve().await;
    let sr = served.dir.path().join("sr");
    std::fs::create_dir(&sr).expect("writable");
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "SR.create", "params": { "sr": SR,
        "name_label": "", "name_description": "", "device_config": { "path": sr } } });
    let body = call.to_string();
    let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
    let mut stream = UnixStream::connect(served.socket()).await.expect("the door");
    let request = format!("{head}{}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("it listens");
    // Long enough to be read, and most often too short to be done.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    drop(stream);
    for _ in 0..500 {
        if served.call("SR.list", json!({})).await["result"] == json!([SR]) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the SR was not made");
}

#[tokio::test]
async fn a_subscriber_hears_every_event_or_how_many_it_missed() {
    const TOLD: u64 = 20_000;
    let served = serve().await;
    let websocket = served.websocket().await;
    let (subscribe, unsubscribe) = ("Event.subscribe", "Event.unsubscribe");
    let subscribed = websocket.subscribe(subscribe, ObjectParams::new(), unsubscribe).await;
    let mut events: Subscription<Event> = subscribed.expect("a subscription");
    for n in 0..TOLD {
        let change = Change::Sr { sr: n.to_string(), state: "attached".into() };
        served.core.events.tell(change);
    }
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < TOLD {
        match events.next().await.expect("more").expect("an event").change {
            Change::Lagged { missed: more } => missed += more,
            Change::Sr { sr, .. } => {
                assert_eq!(sr, (heard + missed).to_string(), "in order");
                heard += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(missed > 0 && heard >= 1024, "heard {heard}, missed {missed}");
    events.unsubscribe().await.expect("unsubscribed");
    let (_, body) = served.post(r#"{"jsonrpc":"2.0","id":1,"method":"Event.subscribe"}"#).await;
    assert!(body.contains("error"), "HTTP carries no events: {body}");
}
