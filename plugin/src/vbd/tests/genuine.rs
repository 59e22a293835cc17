//! Scenarios over the genuine xenstored, with a guest that has a guest's rights.

use super::*;
use crate::events::Events;
use crate::xenstore::tests::{block_on, genuine, in_child, lead_to};
use std::sync::atomic::{AtomicBool, Ordering};
use zerotap_tests::genuine_xenstored::{GenuineGuest, GenuineXenstored};

/// A host whose xenstore is the genuine one.
struct Real {
    xenstored: GenuineXenstored,
    guest: Arc<GenuineGuest>,
    disk: Arc<PretendedDisk>,
    disks: PretendedDisks,
    /// Who sends news: the VBD side ends with it.
    news: mpsc::Sender<News>,
    vbds: Arc<Vbds>,
}

impl Real {
    fn new(path: &std::path::PathBuf) -> Self {
        let xenstored = genuine(path);
        let guest = Arc::new(xenstored.introduce(DOMID).unwrap());
        let disk = PretendedDisk::new("w1", vdi());
        let disks = PretendedDisks::default();
        disks.add(&disk);
        let (news, vbds) = Self::start(&disks);
        Real { xenstored, guest, disk, disks, news, vbds }
    }

    fn start(disks: &PretendedDisks) -> (mpsc::Sender<News>, Arc<Vbds>) {
        let (news, receiver) = mpsc::channel(16);
        let config = VbdConfig {
            kinds: vec!["qdisk".to_owned()],
            offer: Default::default(),
            events: Events::default(),
        };
        let store = Arc::new(crate::xenstore::live::Live::start());
        (news, Vbds::with(config, store, Arc::new(disks.clone()), receiver))
    }

    async fn plug(&self) {
        eventually("own domid", || self.vbds.own.borrow().is_some()).await;
        let vbd = self.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
        assert_eq!(vbd.state, "init-wait");
    }

    fn backend(&self, key: &str) -> Option<String> {
        self.xenstored.read(&format!("{BACKEND}/{key}")).ok()
    }

    async fn backend_reaches(&self, state: &str) {
        let reached = || self.backend("state").as_deref() == Some(state);
        eventually(&format!("state {state}"), reached).await;
    }

    /// As the guest, in its own directory: relative, and on its ring.
    fn guest_writes(&self, key: &str, value: &str) {
        self.guest.write(&format!("device/vbd/{DEVID}/{key}"), value).unwrap();
    }

    /// As the guest, who may read what is offered to it.
    fn guest_reads(&self, key: &str) -> String {
        self.guest.read(&format!("{BACKEND}/{key}")).unwrap()
    }

    async fn guest_connects(&self, port: u32) {
        for (key, value) in [("ring-page-order", 1), ("ring-ref0", 7), ("ring-ref1", 8)] {
            self.guest_writes(key, &value.to_string());
        }
        self.guest_writes("event-channel", &port.to_string());
        self.guest_writes("protocol", "x86_64-abi");
        self.guest_writes("state", "3");
        self.backend_reaches("4").await;
        self.guest_writes("state", "4");
    }
}

#[test]
fn a_guest_with_its_own_rights_gets_a_disk_and_gives_it_back() {
    let name = "vbd::tests::genuine::a_guest_with_its_own_rights_gets_a_disk_and_gives_it_back";
    let Some(path) = in_child(name) else { return };
    block_on(async {
        let host = Real::new(&path);
        host.plug().await;
        assert_eq!(host.guest.read("device/vbd/51712/backend").unwrap(), BACKEND);
        assert_eq!(host.guest_reads("feature-max-indirect-segments"), "256");
        assert_eq!(host.guest_reads("max-ring-page-order"), "4");
        let refused = host.guest.write(&format!("{BACKEND}/state"), "4").unwrap_err();
        assert_eq!(refused.to_string(), "EACCES");
        host.guest_connects(9).await;
        assert_eq!(host.disk.ring(ID).unwrap().0.queues[0].ring_refs, [7, 8]);
        for (key, value) in [("sectors", "4096"), ("sector-size", "512"), ("info", "0")] {
            assert_eq!(host.guest_reads(key), value);
        }
        assert_eq!(host.xenstored.permissions(FRONTEND).unwrap(), "n5 r0");
        assert_eq!(host.xenstored.permissions(&format!("{BACKEND}/sectors")).unwrap(), "n0 r5");

        let vbds = host.vbds.clone();
        let unplug = tokio::spawn(async move { vbds.unplug(unplug_params(), PEER.into()).await });
        host.backend_reaches("5").await;
        host.guest_writes("state", "5");
        host.guest_writes("state", "6");
        unplug.await.unwrap().unwrap();
        assert!(host.disk.ring(ID).is_none());
        assert!(host.xenstored.read(FRONTEND).is_err() && host.xenstored.read(BACKEND).is_err());
        host.plug().await;
        host.guest_connects(10).await;
    });
}

#[test]
fn a_restarted_daemon_adopts_and_a_dead_domain_is_cleaned_up() {
    let name = "vbd::tests::genuine::a_restarted_daemon_adopts_and_a_dead_domain_is_cleaned_up";
    let Some(path) = in_child(name) else { return };
    block_on(async {
        let mut host = Real::new(&path);
        host.plug().await;
        host.guest_connects(9).await;
        host.vbds.stop().await;
        (host.news, host.vbds) = Real::start(&host.disks);
        eventually("adopted", || !host.vbds.connected().is_empty()).await;
        assert_eq!(host.disk.calls(), ["connect 5/51712 9"]);
        host.xenstored.kill_domain(DOMID).unwrap();
        eventually("let go", || host.disk.ring(ID).is_none()).await;
        eventually("removed", || host.backend("state").is_none()).await;
        eventually("forgotten", || host.vbds.statuses().is_empty()).await;
        assert!(!host.news.is_closed());
    });
}

#[test]
fn a_guest_that_writes_garbage_without_end_hurts_only_itself() {
    let name = "vbd::tests::genuine::a_guest_that_writes_garbage_without_end_hurts_only_itself";
    let Some(path) = in_child(name) else { return };
    block_on(async {
        let host = Real::new(&path);
        host.plug().await;
        let other = host.xenstored.introduce(6).unwrap();
        let go_on = Arc::new(AtomicBool::new(true));
        let (guest, going) = (host.guest.clone(), go_on.clone());
        let flood = tokio::task::spawn_blocking(move || {
            let garbage = ["", "-1", "99999999999999999999", "3", "1", "4", "x", "6"];
            let keys =
                ["state", "event-channel", "ring-ref", "protocol", "ring-page-order", "state"];
            let mut n = 0;
            while going.load(Ordering::Relaxed) {
                let (key, value) = (keys[n % keys.len()], garbage[n * 7 % garbage.len()]);
                guest.write(&format!("device/vbd/51712/{key}"), value).unwrap();
                n += 1;
            }
        });
        // Meanwhile another domain is served.
        let params = VbdPlugParams { domid: 6, ..plug_params() };
        host.vbds.plug(params, PEER.to_owned()).await.unwrap();
        other.write("device/vbd/51712/ring-ref", "3").unwrap();
        other.write("device/vbd/51712/event-channel", "4").unwrap();
        other.write("device/vbd/51712/state", "3").unwrap();
        let state = "/local/domain/0/backend/zerotap/6/51712/state";
        eventually("served", || host.xenstored.read(state).is_ok_and(|now| now == "4")).await;
        go_on.store(false, Ordering::Relaxed);
        flood.await.unwrap();
        for state in ["6", "1"] {
            host.guest_writes("state", state);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        host.backend_reaches("2").await;
        host.guest_connects(12).await;
    });
}

#[test]
fn an_xenstored_that_freezes_stops_nothing_for_good() {
    let name = "vbd::tests::genuine::an_xenstored_that_freezes_stops_nothing_for_good";
    let Some(path) = in_child(name) else { return };
    block_on(async {
        let host = Real::new(&path);
        host.plug().await;
        host.guest_connects(9).await;
        host.xenstored.freeze(true).unwrap();
        let force = VbdUnplugParams { force: true, ..unplug_params() };
        let refused = text(host.vbds.unplug(force, PEER.to_owned()).await.unwrap_err());
        assert!(refused.contains("xenstored does not answer"), "{refused}");
        eventually("known to be away", || !host.vbds.xenstore_alive()).await;
        assert!(host.disk.ring(ID).is_some());
        assert_eq!(host.vbds.connected().len(), 1);
        host.xenstored.freeze(false).unwrap();
        eventually("alive again", || host.vbds.xenstore_alive()).await;
        host.guest_writes("state", "6");
        host.backend_reaches("6").await;
        assert!(host.disk.ring(ID).is_none());
    });
}

#[test]
fn an_emptied_xenstored_takes_no_disk_from_a_guest() {
    let name = "vbd::tests::genuine::an_emptied_xenstored_takes_no_disk_from_a_guest";
    let Some(path) = in_child(name) else { return };
    block_on(async {
        let mut host = Real::new(&path);
        host.plug().await;
        host.guest_connects(9).await;
        host.xenstored.kill().unwrap();
        eventually("its end was seen", || !host.vbds.xenstore_alive()).await;
        host.xenstored = GenuineXenstored::start().unwrap();
        host.xenstored.remove("/local/domain/0/domid").unwrap();
        lead_to(&host.xenstored, &path);
        let told = |part: &str| format!("{:?}", host.vbds.trouble()).contains(part);
        eventually("told", || host.vbds.xenstore_alive() && told("lost all devices")).await;
        assert_eq!(host.disk.calls(), ["connect 5/51712 9"]);
    });
}
