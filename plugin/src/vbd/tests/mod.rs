//! The VBD side as a whole, with a pretended worker: over a store in memory, and over the genuine
//! xenstored.

mod genuine;
mod pretended;
mod scenarios;

use super::*;
use crate::events::Events;
use crate::vdi::VdiId;
use crate::xenstore::memory::Memory;
use pretended::{PretendedDisk, PretendedDisks};
use std::time::Duration;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::{Vbd, VbdParams, VbdPlugParams, VbdUnplugParams};
use zerotap_rpc_schema::worker::VbdId;

const DOMID: u16 = 5;
const DEVID: u32 = 51712;
const ID: VbdId = VbdId { domid: DOMID, devid: DEVID };
const FRONTEND: &str = "/local/domain/5/device/vbd/51712";
const BACKEND: &str = "/local/domain/0/backend/zerotap/5/51712";
const PEER: &str = "uid=0 pid=1";

fn vdi() -> VdiId {
    VdiId::new("sr", "vdi")
}

fn plug_params() -> VbdPlugParams {
    VbdPlugParams {
        dbg: String::new(),
        domid: DOMID,
        device: "xvda".to_owned(),
        sr: "sr".to_owned(),
        vdi: "vdi".to_owned(),
        read_only: false,
        transfer: None,
    }
}

fn unplug_params() -> VbdUnplugParams {
    let device = "xvda".to_owned();
    VbdUnplugParams {
        dbg: String::new(),
        domid: DOMID,
        device,
        force: false,
        timeout_seconds: Some(10),
    }
}

fn vbd_params() -> VbdParams {
    VbdParams { dbg: String::new(), domid: DOMID, device: "xvda".to_owned() }
}

/// A host: xenstore in memory, a VDI that has a worker, the daemon's VBD side.
struct Stage {
    store: Memory,
    disks: PretendedDisks,
    disk: Arc<PretendedDisk>,
    news: mpsc::Sender<News>,
    vbds: Arc<Vbds>,
}

impl Stage {
    fn new() -> Self {
        let store = Memory::default();
        store.set("domid", "0");
        store.domain(DOMID, true);
        let disk = PretendedDisk::new("w1", vdi());
        let disks = PretendedDisks::default();
        disks.add(&disk);
        let (news, vbds) = start(&store, &disks);
        Stage { store, disks, disk, news, vbds }
    }

    /// The daemon dies and comes again: nothing of it is left but xenstore and workers.
    async fn restart(&mut self) {
        self.vbds.stop().await;
        (self.news, self.vbds) = start(&self.store, &self.disks);
    }

    async fn plugged() -> Self {
        let stage = Stage::new();
        let vbd = stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
        assert_eq!(vbd.state, "init-wait");
        stage
    }

    /// With a guest that does I/O.
    async fn connected() -> Self {
        let stage = Stage::plugged().await;
        stage.guest_connects(8).await;
        stage
    }

    async fn guest_connects(&self, port: u32) {
        self.store.set(&format!("{FRONTEND}/ring-ref"), "7");
        self.store.set(&format!("{FRONTEND}/event-channel"), &port.to_string());
        self.store.set(&format!("{FRONTEND}/protocol"), "x86_64-abi");
        self.store.set(&format!("{FRONTEND}/feature-persistent"), "1");
        self.guest("3");
        self.backend_reaches("4").await;
        self.guest("4");
        let seen = || self.vbds.find(ID).is_some_and(|s| s.frontend_state.as_deref() == Some("4"));
        eventually("seen connected", seen).await;
    }

    fn guest(&self, state: &str) {
        self.store.set(&format!("{FRONTEND}/state"), state);
    }

    fn backend(&self, key: &str) -> Option<String> {
        self.store.get(&format!("{BACKEND}/{key}"))
    }

    async fn backend_reaches(&self, state: &str) {
        let reached = || self.backend("state").as_deref() == Some(state);
        eventually(&format!("state {state}"), reached).await;
    }

    async fn worker_died(&self, why: &str) {
        let (worker, why) = ("w1".to_owned(), why.to_owned());
        self.news.send(News::Died { worker, vdi: vdi(), why }).await.unwrap();
    }

    async fn vbd(&self) -> Option<Vbd> {
        self.vbds.list().await.unwrap().into_iter().find(|vbd| vbd.devid == DEVID)
    }

    async fn trouble(&self, part: &str) {
        let told = || self.vbds.trouble().iter().any(|t| format!("{t:?}").contains(part));
        eventually(&format!("trouble: {part}"), told).await;
    }

    async fn no_trouble(&self) {
        eventually("no trouble", || self.vbds.trouble().is_empty()).await;
    }
}

fn start(store: &Memory, disks: &PretendedDisks) -> (mpsc::Sender<News>, Arc<Vbds>) {
    let (news, receiver) = mpsc::channel(16);
    let config = VbdConfig {
        kinds: vec!["qdisk".to_owned()],
        offer: Default::default(),
        events: Events::default(),
    };
    let vbds = Vbds::with(config, Arc::new(store.clone()), Arc::new(disks.clone()), receiver);
    (news, vbds)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("never: {what}");
}

fn text(error: StorageError) -> String {
    match error {
        StorageError::Backend(_) => error.to_string(),
        other => panic!("not for people: {other}"),
    }
}
