//! Scenarios over a store in memory.

use super::*;
use crate::xenstore::Permissions;
use std::sync::atomic::{AtomicBool, Ordering};
use zerotap_rpc_schema::worker::Abi;

#[tokio::test]
async fn a_disk_is_plugged_used_and_unplugged() {
    let stage = Stage::connected().await;
    let (ring, read_only) = stage.disk.ring(ID).unwrap();
    assert_eq!(
        (ring.queues.len(), &ring.queues[0].ring_refs[..], ring.queues[0].port, read_only),
        (1, &[7][..], 8, false)
    );
    assert_eq!((ring.protocol, ring.persistent), (Abi::X86_64, true));
    let keys = ["hotplug-status", "kthread-pid", "max-ring-page-order", "sectors", "info"];
    let values = keys.map(|key| stage.backend(key).unwrap());
    assert_eq!(values, ["connected", "4242", "4", "4096", "0"]);
    let vbd = stage.vbd().await.unwrap();
    assert_eq!((vbd.state.as_str(), vbd.device.as_str()), ("connected", "xvda"));
    assert_eq!((vbd.worker.as_deref(), vbd.trouble), (Some("w1"), None));
    let stat = stage.vbds.stat(vbd_params()).await.unwrap();
    assert_eq!((stat.counters.reads, stat.ring.unwrap().queues[0].port), (3, 8));
    assert_eq!(stage.vbds.connected(), [(ID, vdi())]);

    let vbds = stage.vbds.clone();
    let unplug = tokio::spawn(async move { vbds.unplug(unplug_params(), PEER.to_owned()).await });
    stage.backend_reaches("5").await;
    assert_eq!(stage.backend("online").as_deref(), Some("0"));
    assert!(stage.disk.ring(ID).is_some());
    stage.guest("5");
    stage.guest("6");
    unplug.await.unwrap().unwrap();
    assert!(stage.disk.ring(ID).is_none());
    assert_eq!((stage.backend("state"), stage.store.get(FRONTEND)), (None, None));
    assert_eq!(stage.vbd().await, None);
    stage.vbds.unplug(unplug_params(), PEER.to_owned()).await.unwrap();

    stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
    stage.guest_connects(9).await;
    let calls = ["connect 5/51712 8", "disconnect 5/51712", "connect 5/51712 9"];
    assert_eq!(stage.disk.calls(), calls);
}

#[tokio::test]
async fn directories_are_made_with_permissions_and_in_order() {
    let stage = Stage::plugged().await;
    let owned = |owner, reader| Some(Permissions { owner, reader });
    assert_eq!(stage.store.permissions(FRONTEND), owned(DOMID, 0));
    assert_eq!(stage.store.permissions(BACKEND), owned(0, DOMID));
    let parent = "/local/domain/0/backend/zerotap/5";
    assert_eq!(stage.store.permissions(parent), owned(0, DOMID));
    let writes: Vec<_> = stage.store.writes().into_iter().map(|(path, _)| path).collect();
    let at = |path: &str| writes.iter().position(|written| written == path).unwrap();
    let state = |side: &str| format!("{side}/state");
    assert!(at(&format!("{FRONTEND}/backend")) < at(&state(FRONTEND)));
    assert!(at(&state(FRONTEND)) < at(&format!("{BACKEND}/frontend")));
    assert!(at(&format!("{BACKEND}/params")) < at(&state(BACKEND)));
}

#[tokio::test]
async fn what_cannot_be_plugged_is_refused_and_leaves_nothing() {
    let stage = Stage::new();
    let plug = async |change: &dyn Fn(&mut VbdPlugParams)| {
        let mut params = plug_params();
        change(&mut params);
        text(stage.vbds.plug(params, PEER.to_owned()).await.unwrap_err())
    };
    eventually("own domid", || stage.vbds.own.borrow().is_some()).await;
    assert!(plug(&|p| p.domid = 6).await.contains("no such domain"));
    assert!(plug(&|p| p.domid = 0).await.contains("this host itself"));
    assert!(plug(&|p| p.device = "cow".to_owned()).await.contains("no device name"));
    assert!(plug(&|p| p.vdi = "other".to_owned()).await.contains("not activated"));
    assert_eq!(stage.store.writes(), []);
    stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
    stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
    assert!(plug(&|p| p.read_only = true).await.contains("another mode"));
    let other = PretendedDisk::new("w2", VdiId::new("sr", "other"));
    stage.disks.add(&other);
    assert!(plug(&|p| p.vdi = "other".to_owned()).await.contains("zerotap:sr/vdi"));
}

#[tokio::test]
async fn a_name_that_another_backend_has_is_taken_and_leftovers_are_not() {
    let stage = Stage::new();
    eventually("own domid", || stage.vbds.own.borrow().is_some()).await;
    let other = "/local/domain/0/backend/vbd/5/51712";
    stage.store.set(&format!("{FRONTEND}/backend"), other);
    stage.store.set(&format!("{FRONTEND}/ring-page-order"), "3");
    stage.store.set(&format!("{other}/state"), "4");
    let refused = stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap_err();
    assert!(text(refused).contains(other));
    stage.store.cut(other);
    stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap();
    assert_eq!(stage.store.get(&format!("{FRONTEND}/ring-page-order")), None);
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_is_told_of_and_can_be_forced() {
    let stage = Stage::connected().await;
    let params = VbdUnplugParams { timeout_seconds: Some(0), ..unplug_params() };
    let refused = text(stage.vbds.unplug(params, PEER.to_owned()).await.unwrap_err());
    assert!(refused.contains("connected") && refused.contains("--force"), "{refused}");
    assert!(stage.disk.ring(ID).is_some());
    let force = VbdUnplugParams { force: true, ..unplug_params() };
    stage.vbds.unplug(force, PEER.to_owned()).await.unwrap();
    assert!(stage.disk.ring(ID).is_none());
    assert_eq!((stage.backend("state"), stage.store.get(FRONTEND)), (None, None));
}

#[tokio::test]
async fn force_never_removes_a_device_whose_pages_are_still_held() {
    let stage = Stage::connected().await;
    stage.disk.stick(true);
    let force = VbdUnplugParams { force: true, timeout_seconds: Some(0), ..unplug_params() };
    let refused = text(stage.vbds.unplug(force.clone(), PEER.to_owned()).await.unwrap_err());
    assert!(refused.contains("still holds pages"), "{refused}");
    assert!(stage.backend("state").is_some());
    stage.disk.stick(false);
    let force = VbdUnplugParams { timeout_seconds: Some(10), ..force };
    stage.vbds.unplug(force, PEER.to_owned()).await.unwrap();
    assert_eq!(stage.backend("state"), None);
}

#[tokio::test]
async fn a_paused_guest_is_plugged_and_unplugged() {
    let stage = Stage::plugged().await;
    stage.vbds.unplug(unplug_params(), PEER.to_owned()).await.unwrap();
    assert_eq!((stage.backend("state"), stage.disk.calls()), (None, vec![]));
}

#[tokio::test]
async fn a_restarted_daemon_leaves_a_live_guest_alone() {
    let mut stage = Stage::connected().await;
    let writes = stage.store.writes().len();
    stage.restart().await;
    // The first question waits until it is known what the last daemon left.
    assert!(stage.vbds.stat(vbd_params()).await.unwrap().ring.is_some());
    assert_eq!(stage.vbds.connected().len(), 1);
    assert_eq!(stage.disk.calls(), ["connect 5/51712 8"]);
    assert_eq!(stage.store.writes().len(), writes);
    assert_eq!(stage.vbd().await.unwrap().trouble, None);
    // What happened meanwhile is caught up with.
    stage.vbds.stop().await;
    stage.guest("6");
    (stage.news, stage.vbds) = start(&stage.store, &stage.disks);
    stage.backend_reaches("6").await;
    assert!(stage.disk.ring(ID).is_none());
}

#[tokio::test]
async fn what_happens_while_xenstored_is_away_is_caught_up_with() {
    let stage = Stage::connected().await;
    stage.store.away(true);
    stage.guest("6");
    let refused = text(stage.vbds.plug(plug_params(), PEER.to_owned()).await.unwrap_err());
    assert!(refused.contains("xenstored does not answer"), "{refused}");
    stage.trouble("xenstored").await;
    assert!(!stage.vbds.xenstore_alive());
    assert_eq!(stage.vbd().await.unwrap().state, "connected");
    stage.store.away(false);
    stage.backend_reaches("6").await;
    assert!(stage.disk.ring(ID).is_none() && stage.vbds.xenstore_alive());
    stage.no_trouble().await;
}

#[tokio::test]
async fn a_qdisk_of_ours_waits_for_the_script_and_others_are_left_alone() {
    let stage = Stage::new();
    let xapi = |devid: u32, params: &str| {
        let frontend = format!("/local/domain/5/device/vbd/{devid}");
        stage.store.set(&format!("{frontend}/state"), "1");
        let backend = format!("/local/domain/0/backend/qdisk/5/{devid}");
        for (key, value) in [
            ("frontend", frontend.as_str()),
            ("frontend-id", "5"),
            ("online", "1"),
            ("mode", "r"),
            ("params", params),
            ("state", "1"),
        ] {
            stage.store.set(&format!("{backend}/{key}"), value);
        }
        backend
    };
    let qemu = xapi(51728, "aio:/srv/disk.img");
    let ours = xapi(51712, "zerotap:sr/vdi");
    stage.trouble("hotplug-status").await;
    stage.store.set(&format!("{ours}/hotplug-status"), "connected");
    let state = |backend: &str| stage.store.get(&format!("{backend}/state"));
    eventually("offered", || state(&ours).as_deref() == Some("2")).await;
    assert_eq!(state(&qemu).as_deref(), Some("1"));
    let all = stage.vbds.list().await.unwrap();
    assert_eq!((all.len(), all[0].kind.as_str(), all[0].devid), (1, "qdisk", 51712));
    let refused = stage.vbds.unplug(unplug_params(), PEER.to_owned()).await.unwrap_err();
    assert!(text(refused).contains("toolstack"));
    // xenopsd's way: the datapath's answer under another key.
    let late = xapi(51744, "");
    stage.store.set(&format!("{late}/hotplug-status"), "connected");
    stage.store.set(&format!("{late}/qemu-params"), "zerotap:sr/vdi");
    eventually("offered", || state(&late).as_deref() == Some("2")).await;
}

#[tokio::test]
async fn a_directory_that_names_another_domains_frontend_is_refused() {
    let stage = Stage::new();
    let backend = "/local/domain/0/backend/zerotap/5/51712";
    for (key, value) in [
        ("params", "zerotap:sr/vdi"),
        ("frontend", "/local/domain/6/device/vbd/51712"),
        ("mode", "w"),
        ("state", "1"),
    ] {
        stage.store.set(&format!("{backend}/{key}"), value);
    }
    stage.trouble("its frontend is not").await;
    assert_eq!((stage.backend("state").as_deref(), stage.vbd().await), (Some("1"), None));
    stage.store.set(&format!("{FRONTEND}/state"), "1");
    stage.store.set(&format!("{backend}/frontend"), FRONTEND);
    stage.backend_reaches("2").await;
    stage.no_trouble().await;
}

#[tokio::test]
async fn a_domain_that_dies_is_let_go_of() {
    let stage = Stage::connected().await;
    stage.store.domain(DOMID, false);
    eventually("removed", || stage.backend("state").is_none()).await;
    assert!(stage.disk.ring(ID).is_none());
    eventually("forgotten", || stage.vbds.statuses().is_empty()).await;
}

#[tokio::test]
async fn a_vdi_is_deactivated_under_a_guest_and_activated_again() {
    let stage = Stage::connected().await;
    let (done, answer) = tokio::sync::oneshot::channel();
    let releasing = News::Releasing { worker: "w1".to_owned(), vdi: vdi(), domid: None, done };
    stage.news.send(releasing).await.unwrap();
    answer.await.unwrap();
    assert!(stage.disk.ring(ID).is_none());
    stage.trouble("activate it").await;
    stage.disks.remove(&vdi());
    stage.disk.die();
    stage.worker_died("").await;
    let next = PretendedDisk::new("w2", vdi());
    stage.disks.add(&next);
    stage.news.send(News::Ready(next.clone())).await.unwrap();
    eventually("served again", || next.ring(ID).is_some()).await;
    stage.no_trouble().await;
    assert_eq!(stage.backend("state").as_deref(), Some("4"));
}

#[tokio::test]
async fn a_worker_that_dies_is_told_of_and_the_next_takes_up_where_it_was() {
    let stage = Stage::connected().await;
    stage.disk.die();
    stage.worker_died("its worker died: another is being started").await;
    stage.trouble("being started").await;
    stage.worker_died("its worker died: another is started in 3 s").await;
    stage.trouble("in 3 s").await;
    let next = PretendedDisk::journaled("w2", vdi());
    stage.disks.add(&next);
    stage.news.send(News::Ready(next.clone())).await.unwrap();
    eventually("served again", || next.ring(ID).is_some()).await;
    stage.no_trouble().await;
    assert_eq!(stage.backend("state").as_deref(), Some("4"));
}

#[tokio::test]
async fn what_is_in_no_journal_is_told_of_until_the_guest_starts_again() {
    let stage = Stage::connected().await;
    stage.disk.die();
    stage.worker_died("").await;
    stage.trouble("no worker").await;
    let next = PretendedDisk::new("w2", vdi());
    stage.disks.add(&next);
    stage.news.send(News::Ready(next.clone())).await.unwrap();
    stage.trouble("stands still").await;
    assert_eq!(stage.backend("state").as_deref(), Some("4"));
    assert!(next.ring(ID).is_none());
    stage.guest("1");
    stage.backend_reaches("2").await;
    stage.guest_connects(11).await;
    stage.no_trouble().await;
    assert_eq!(next.ring(ID).unwrap().0.queues[0].port, 11);
}

#[tokio::test]
async fn a_vbd_made_before_its_vdi_is_active_goes_on_when_it_is() {
    let stage = Stage::plugged().await;
    stage.disks.remove(&vdi());
    let backend = "/local/domain/0/backend/zerotap/5/51728";
    let frontend = "/local/domain/5/device/vbd/51728";
    stage.store.set(&format!("{frontend}/state"), "1");
    for (key, value) in
        [("frontend", frontend), ("mode", "r"), ("params", "zerotap:sr/late"), ("state", "1")]
    {
        stage.store.set(&format!("{backend}/{key}"), value);
    }
    stage.trouble("no worker serves the VDI").await;
    let late = PretendedDisk::new("w9", VdiId::new("sr", "late"));
    stage.disks.add(&late);
    stage.news.send(News::Ready(late)).await.unwrap();
    let state = format!("{backend}/state");
    eventually("offered", || stage.store.get(&state).as_deref() == Some("2")).await;
}

#[tokio::test]
async fn a_ring_that_cannot_be_served_is_written_into_the_error_node() {
    let stage = Stage::plugged().await;
    let node = "/local/domain/0/error/backend/zerotap/5/51712/error";
    stage.store.set(&format!("{FRONTEND}/ring-ref"), "7");
    stage.store.set(&format!("{FRONTEND}/event-channel"), "-1");
    stage.guest("3");
    eventually("told", || stage.store.get(node).is_some_and(|e| e.contains("event-channel"))).await;
    stage.trouble("event-channel").await;
    assert_eq!(stage.backend("state").as_deref(), Some("2"));
    stage.disk.refuse(Some("grant 7 of domain 5 cannot be mapped"));
    stage.store.set(&format!("{FRONTEND}/event-channel"), "4");
    stage.guest("1");
    tokio::time::sleep(Duration::from_millis(20)).await;
    stage.guest("3");
    eventually("told", || stage.store.get(node).is_some_and(|e| e.contains("grant 7"))).await;
    stage.disk.refuse(None);
    stage.guest("1");
    tokio::time::sleep(Duration::from_millis(20)).await;
    stage.guest_connects(4).await;
    eventually("taken back", || stage.store.get(node).is_none()).await;
    stage.no_trouble().await;
}

#[tokio::test]
async fn a_broken_ring_is_found() {
    let stage = Stage::connected().await;
    *stage.disk.broken.lock().unwrap() = true;
    let stat = stage.vbds.stat(vbd_params()).await.unwrap();
    assert!(stat.vbd.trouble.unwrap().contains("broke the ring"));
    stage.trouble("broke the ring").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_flaps_costs_a_bounded_pace_and_no_more() {
    let stage = Stage::connected().await;
    let go_on = Arc::new(AtomicBool::new(true));
    let (store, going) = (stage.store.clone(), go_on.clone());
    let flood = std::thread::spawn(move || {
        let mut n = 0usize;
        while going.load(Ordering::Relaxed) {
            let states = ["1", "3", "4", "5", "6", "9", ""];
            store.set(&format!("{FRONTEND}/state"), states[n * 31 % 7]);
            store.set(&format!("{FRONTEND}/event-channel"), &(n % 3).to_string());
            n += 1;
        }
        n
    });
    let before = (stage.store.writes().len(), stage.disk.calls().len());
    tokio::time::sleep(Duration::from_secs(2)).await;
    go_on.store(false, Ordering::Relaxed);
    let states = flood.join().unwrap();
    // 64 at once and 50 a second, each with a write or two.
    let work = stage.store.writes().len() + stage.disk.calls().len() - before.0 - before.1;
    assert!(states > 5000 && work < 1500, "{states} states made {work} writes and calls");
    // An honest guest is served soon after.
    stage.guest("6");
    stage.backend_reaches("6").await;
    stage.guest("1");
    stage.backend_reaches("2").await;
    stage.guest_connects(21).await;
    assert_eq!(stage.disk.ring(ID).unwrap().0.queues[0].port, 21);
}
