//! A guest whose SR is full waits for space, sees no error, and loses no byte, whoever dies
//! meanwhile; or is told of errors, where that was chosen. Needs root, for its small file systems.

use serde_json::json;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::event::Change;
use zerotap_rpc_schema::smapi2::Pairs;
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::harness::busy::{boot, end, finish, successor};
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::small::Small;
use zerotap_tests::harness::watch::Watch;
use zerotap_tests::harness::{DEVICE, Disk, Host, Vdi, eventually, uuid};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: u64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);
const DISK_BYTES: i64 = 48 << 20;
/// What a guest finds before it stands still: more than a boot writes.
const ROOM_BYTES: u64 = 12 * MIB;
/// Longer than the pause between two looks for space.
const STANDS: Duration = Duration::from_millis(2500);

/// A disk on a small file system with room for a part of it.
struct Site {
    host: Host,
    disk: Disk,
    small: Small,
}

fn site_on(small: Small, configuration: &str, config: &[(&str, &str)]) -> Site {
    let host = Host::start_with(configuration).unwrap();
    let disk = disk_on(&host, &small, config);
    Site { host, disk, small }
}

fn site() -> Site {
    site_on(Small::new(80 * MIB).unwrap(), "", &[])
}

/// A VDI in an SR with such a device-config, active, and little room for it.
fn disk_on(host: &Host, small: &Small, config: &[(&str, &str)]) -> Disk {
    let (sr, sr_dir) = (uuid().unwrap(), small.dir().to_owned());
    let mut device_config = Pairs::from([("path".to_owned(), sr_dir.display().to_string())]);
    device_config.extend(config.iter().map(|(key, value)| ((*key).into(), (*value).into())));
    let params = json!({"sr": sr, "name_label": "small", "name_description": "",
        "device_config": device_config});
    host.rpc().raw("SR.create", &params).unwrap();
    let vdi = host.create_vdi_in(&sr, DISK_BYTES).unwrap().vdi;
    small.fill_but(ROOM_BYTES).unwrap();
    Vdi { sr, vdi, sr_dir }.serve(&host.rpc(), DOMID, false).unwrap()
}

impl Site {
    fn boot(&self, options: Options) -> Running {
        boot(&self.host, &self.disk, options)
    }

    /// Waits until the guest's writes wait for space, and nothing goes on any more.
    fn stands(&self, running: &Running) {
        let mut last = (0, Instant::now());
        eventually("the guest stands still", || {
            let (now, counters) =
                (running.progress.answered(), self.disk.stat(&self.host.rpc())?.counters);
            anyhow::ensure!(!running.is_finished(), "the guest has ended");
            if now != last.0 || counters.waiting_for_space == 0 {
                last = (now, Instant::now());
            }
            Ok((last.1.elapsed() > STANDS).then_some(()))
        })
        .unwrap();
        assert_eq!(running.progress.report(SOON, true).errors, 0);
    }

    /// What `Host.status` complains of, and `VBD.list` of the disk.
    fn told(&self) -> (String, String) {
        let rpc = self.host.rpc();
        let status = rpc.raw("Host.status", &json!({})).unwrap()["trouble"].to_string();
        (status, rpc.raw("VBD.list", &json!({})).unwrap()[0]["trouble"].to_string())
    }

    fn all_is_well(&self) {
        eventually("all is well", || {
            let (status, vbd) = self.told();
            anyhow::ensure!((&*status, &*vbd) == ("[]", "null"), "{status} {vbd}");
            Ok(Some(()))
        })
        .unwrap();
    }

    /// There is space again: the guest goes on, every byte is right, and nothing is left behind.
    fn goes_on(self, running: Running) {
        self.small.free().unwrap();
        if let Err(problem) = running.progresses(200, SOON) {
            panic!("{problem}: {:?}", running.stop());
        }
        self.all_is_well();
        finish(&self.host, &self.disk, running);
    }
}

fn pauses(small: Small, options: Options, config: &[(&str, &str)]) {
    let site = site_on(small, "", config);
    let running = site.boot(options);
    site.stands(&running);
    site.goes_on(running);
}

#[test]
fn a_guest_pauses_until_there_is_space() {
    pauses(Small::new(80 * MIB).unwrap(), Options::default(), &[]);
}

#[test]
fn a_guest_whose_pages_are_mapped_pauses_on_xfs() {
    let options = Options { persistent: false, queues: 2, ..Options::default() };
    pauses(Small::xfs(320 * MIB).unwrap(), options, &[]);
}

#[test]
fn a_guest_whose_data_is_copied_pauses() {
    let options = Options { persistent: false, ..Options::default() };
    pauses(Small::new(80 * MIB).unwrap(), options, &[("transfer", "copy")]);
}

#[test]
fn people_are_told_while_a_guest_waits_for_space() {
    let site = site();
    let mut watch = Watch::start(&site.host);
    let running = site.boot(Options::default());
    site.stands(&running);
    let waits = |change: &Change| match change {
        Change::Vbd { trouble: Some(trouble), .. } => trouble.contains("wait for space"),
        _ => false,
    };
    watch.until(waits);
    let (status, vbd) = site.told();
    assert!(vbd.contains("wait for space") && vbd.contains("go on by themselves"), "{vbd}");
    let words = [&site.disk.vdi.sr, "small", site.small.dir().to_str().unwrap()];
    assert!(words.iter().all(|word| status.contains(word)), "{status}");
    assert!(status.contains("0 of ") && status.contains("a guest's writes wait"), "{status}");
    let show = ["vbd", "show", "--domid", "5", "--device", DEVICE, "--interval", "0"];
    let show = site.host.zerotap(&show).unwrap().output().unwrap();
    let show = String::from_utf8(show.stdout).unwrap();
    assert!(show.contains("wait for space") && show.contains("wait since"), "{show}");
    let metrics = site.host.metrics().unwrap();
    assert!(metrics.value("zerotap_vbd_waiting_for_space", &[]).unwrap() > 0.0);
    assert!(metrics.value("zerotap_vbd_space_waits_total", &[]).unwrap() > 0.0);
    site.small.free().unwrap();
    watch.until(|change| matches!(change, Change::Vbd { trouble: None, .. }));
    running.progresses(200, SOON).unwrap();
    let now = site.host.metrics().unwrap().value("zerotap_vbd_waiting_for_space", &[]);
    assert_eq!(now.unwrap(), 0.0);
    site.all_is_well();
    // The SRs that the watch was tried with are no concern here.
    end(&site.host, &site.disk, running);
}

/// Whoever dies or goes while a guest waits, it goes on waiting, and then on.
fn waits_through(event: impl FnOnce(&mut Site)) {
    let mut site = site();
    let running = site.boot(Options { queues: 2, ..Options::default() });
    site.stands(&running);
    event(&mut site);
    site.stands(&running);
    site.goes_on(running);
}

#[test]
fn a_worker_that_is_killed_leaves_what_waits_to_the_next() {
    waits_through(|site| {
        let last = site.disk.kill_worker(&site.host.rpc()).unwrap();
        successor(&site.host, &site.disk, last);
    });
}

#[test]
fn an_upgrade_hands_on_what_waits() {
    waits_through(|site| {
        let last = site.disk.worker(&site.host.rpc()).unwrap().pid;
        let params = serde_json::to_value(site.disk.vdi.params()).unwrap();
        site.host.rpc().raw("Worker.upgrade", &params).unwrap();
        assert_ne!(site.disk.worker(&site.host.rpc()).unwrap().pid, last);
    });
}

#[test]
fn a_daemon_finds_a_guest_that_waits() {
    waits_through(|site| {
        site.host.kill_daemon().unwrap();
        site.host.start_daemon().unwrap();
        eventually("people are told", || {
            Ok(site.told().1.contains("wait for space").then_some(()))
        })
        .unwrap();
    });
}

#[test]
fn a_vdi_is_deactivated_under_a_guest_that_waits() {
    let site = site();
    let running = site.boot(Options::default());
    site.stands(&running);
    let rpc = site.host.rpc();
    site.disk.deactivate(&rpc).unwrap();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    site.small.free().unwrap();
    // It takes space itself: whose the disk is is written down in the SR.
    site.disk.activate(&rpc).unwrap();
    running.progresses(200, SOON).expect("the next activation takes up what waited");
    site.all_is_well();
    finish(&site.host, &site.disk, running);
}

#[test]
fn a_device_that_is_unplugged_waits_for_its_guest() {
    let site = site();
    let running = site.boot(Options::default());
    site.stands(&running);
    let refused = json!({"domid": DOMID, "device": DEVICE, "timeout_seconds": 1});
    site.host.rpc().fails("VBD.unplug", &refused);
    assert!(!running.is_finished(), "what it wrote is not lost");
    site.small.free().unwrap();
    // It was asked to close, and has now done so with every request answered.
    end(&site.host, &site.disk, running);
}

#[test]
fn a_device_that_is_unplugged_by_force_fails_what_waits() {
    let Site { host, disk, small } = site();
    let plan = Plan { errors_fatal: false, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let site = Site { host, disk, small };
    site.stands(&running);
    let rpc = site.host.rpc();
    site.disk.unplug(&rpc, true).unwrap();
    let mut ended = running.join().unwrap();
    assert!(ended.report.errors > 0, "it is told that they were not done");
    destroy(site.host.sim().dir(), DOMID).unwrap();
    let image = site.disk.vdi.image().unwrap();
    site.disk.deactivate(&rpc).unwrap();
    ended.model.check_image(&image).unwrap();
    site.disk.detach(&rpc).unwrap();
}

/// A guest that is told of errors; of no others than writes, and no byte of it is wrong.
fn errs(host: &Host, disk: &Disk) {
    let plan = Plan { errors_fatal: false, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    eventually("the guest is told", || {
        let errors = running.progress.report(SOON, true).errors;
        Ok((errors > 0).then_some(()))
    })
    .unwrap();
    running.progresses(200, SOON).expect("it goes on");
    let stat = disk.stat(&host.rpc()).unwrap();
    assert_eq!((stat.counters.space_waits, stat.counters.waiting_for_space), (0, 0));
    assert!(stat.counters.io_errors > 0 && stat.vbd.trouble.is_none(), "{stat:?}");
    let mut ended = running.stop().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();
    disk.detach(&host.rpc()).unwrap();
}

#[test]
fn an_sr_that_says_so_errs() {
    let Site { host, disk, small } =
        site_on(Small::new(80 * MIB).unwrap(), "", &[("no_space", "error")]);
    errs(&host, &disk);
    drop((host, small));
}

#[test]
fn a_host_that_says_so_errs_and_an_sr_may_say_otherwise() {
    let errs_here = site_on(Small::new(80 * MIB).unwrap(), "no_space = \"error\"", &[]);
    errs(&errs_here.host, &errs_here.disk);
    drop(errs_here);
    let small = Small::new(80 * MIB).unwrap();
    let site = site_on(small, "no_space = \"error\"", &[("no_space", "pause")]);
    let running = site.boot(Options::default());
    site.stands(&running);
    site.goes_on(running);
    let host = Host::start().unwrap();
    let config = json!({"path": host.data(), "no_space": "stop"});
    let refused = json!({"sr": uuid().unwrap(), "name_label": "", "name_description": "",
        "device_config": config});
    let refused = host.rpc().fails("SR.create", &refused);
    assert!(format!("{refused:?}").contains("no_space is pause or error"), "{refused:?}");
}

/// Puts a request of whole pages into the ring and shows it; its slot.
fn send(front: &mut Blkfront, op: Op, sector: u64, pages: usize, frame: u32) -> usize {
    let pieces = vec![Piece { frame, first: 0, last: 7 }; pages];
    let slot = front.submit(Io { op, sector, pieces }).unwrap();
    front.push().unwrap();
    slot
}

/// The next answer: whose it is, and its status.
fn answer(front: &mut Blkfront) -> (usize, i16) {
    let completion = eventually("an answer", || front.complete()).unwrap();
    (completion.slot, completion.status)
}

#[test]
fn others_go_on_beside_a_write_that_waits_and_a_barrier_does_not_overtake_it() {
    let site = site();
    let domain = Domain::create(site.host.sim().dir(), DOMID, 16 << 20, true).unwrap();
    site.disk.plug(&site.host.rpc()).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let frame = front.domain().frame().unwrap();
    let there = send(&mut front, Op::Write, 0, 8, frame);
    assert_eq!(answer(&mut front), (there, 0));
    site.small.fill_but(0).unwrap();
    let waits = send(&mut front, Op::Write, 32768, 256, frame);
    let count = |site: &Site| site.disk.stat(&site.host.rpc()).unwrap().counters;
    eventually("it waits", || Ok((count(&site).waiting_for_space == 1).then_some(()))).unwrap();
    for (op, sector, pages) in
        [(Op::Read, 32768, 8), (Op::Write, 0, 8), (Op::Flush, 0, 0), (Op::Read, 0, 8)]
    {
        let slot = send(&mut front, op, sector, pages, frame);
        assert_eq!(answer(&mut front), (slot, 0), "{op:?} is not held up");
    }
    let mut nbd = Client::open(&site.disk.nbd(&site.host.rpc()).unwrap()).unwrap().0;
    nbd.ask(1, 7, 40 * MIB, 65536).unwrap();
    nbd.say(&[&[7; 65536]]).unwrap();
    assert_eq!(nbd.reply().unwrap(), (28, 7), "NBD clients are told: ENOSPC");
    let barrier = send(&mut front, Op::Barrier, 0, 1, frame);
    let behind = send(&mut front, Op::Read, 0, 1, frame);
    eventually("the barrier is taken", || Ok((count(&site).in_flight == 2).then_some(()))).unwrap();
    let until = Instant::now() + STANDS;
    while Instant::now() < until {
        assert!(front.complete().unwrap().is_none(), "a barrier waits for what came before it");
    }
    // It is taken up by the next worker with its place in the order.
    let last = site.disk.kill_worker(&site.host.rpc()).unwrap();
    successor(&site.host, &site.disk, last);
    eventually("it waits", || Ok((count(&site).waiting_for_space == 1).then_some(()))).unwrap();
    let params = serde_json::to_value(site.disk.vdi.params()).unwrap();
    site.host.rpc().raw("Worker.upgrade", &params).unwrap();
    eventually("it waits", || Ok((count(&site).waiting_for_space == 1).then_some(()))).unwrap();
    site.small.free().unwrap();
    let answers = [answer(&mut front), answer(&mut front), answer(&mut front)];
    assert_eq!(answers, [(waits, 0), (barrier, 0), (behind, 0)]);
    front.close().unwrap();
    site.disk.unplug(&site.host.rpc(), false).unwrap();
    site.disk.remove(&site.host.rpc()).unwrap();
}
