//! Disks that grow while they are in use: the guest sees it, NBD clients see it, and no crash of
//! the daemon leaves image, record, worker and guest of different minds.

use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::VdiResizeParams;
use zerotap_rpc_schema::{StorageError, table};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, Rpc, Vdi, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn boot(host: &Host, disk: &Disk) -> Running {
    let running = Running::start(host.sim().dir(), Guest::new(disk.domid), Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(50, SOON).unwrap();
    running
}

fn params(vdi: &Vdi, new_size: i64) -> VdiResizeParams {
    VdiResizeParams { dbg: String::new(), sr: vdi.sr.clone(), vdi: vdi.vdi.clone(), new_size }
}

fn resize(rpc: &Rpc, vdi: &Vdi, new_size: i64) -> anyhow::Result<i64> {
    rpc.call::<table::VdiResize>(&params(vdi, new_size))
}

/// Waits until the guest knows that its disk has so many bytes.
fn guest_sees(running: &Running, bytes: i64) {
    let sectors = bytes.cast_unsigned() / 512;
    eventually("the guest sees its disk grow", || {
        anyhow::ensure!(!running.is_finished(), "the guest has ended");
        let seen = running.progress.sectors.load(Ordering::Acquire);
        Ok((seen == sectors).then_some(()))
    })
    .unwrap();
}

/// Ends guest and disk in good order, and compares every byte on the image.
fn finish(rpc: &Rpc, disk: &Disk, running: Running, bytes: i64) {
    running.progresses(500, SOON).unwrap();
    let mut ended = running.stop().unwrap();
    assert_eq!(ended.report.errors, 0);
    assert_eq!(ended.model.sectors(), bytes.cast_unsigned() / 512);
    disk.unplug(rpc, false).unwrap();
    disk.deactivate(rpc).unwrap();
    let image = disk.vdi.image().unwrap();
    assert_eq!(image.metadata().unwrap().len(), bytes.cast_unsigned());
    ended.model.check_image(&image).unwrap();
    disk.detach(rpc).unwrap();
    disk.vdi.destroy(rpc).unwrap();
}

#[test]
fn a_guest_and_nbd_clients_see_a_disk_grow_under_load() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(5, MIB).unwrap();
    let running = boot(&host, &disk);
    let worker = disk.worker(&rpc).unwrap().pid;
    let place = disk.nbd(&rpc).unwrap();
    let (mut old, bytes, _) = Client::open(&place).unwrap();
    assert_eq!(bytes, 1 << 20);
    for size in [2 * MIB, 5 * MIB + 4096, 32 * MIB] {
        assert_eq!(resize(&rpc, &disk.vdi, size).unwrap(), size);
        assert_eq!(resize(&rpc, &disk.vdi, size).unwrap(), size, "asked again");
        let (_, bytes, _) = Client::open(&place).unwrap();
        assert_eq!(bytes, size.cast_unsigned(), "who connects now");
        guest_sees(&running, size);
    }
    // It writes all over the new space, and is served by the same worker.
    let written = running.progress.report(SOON, true).write_bytes;
    running.progresses(2000, SOON).unwrap();
    assert!(running.progress.report(SOON, true).write_bytes > written);
    assert_eq!(disk.worker(&rpc).unwrap().pid, worker);
    // Who was told of less may stay.
    old.ask(0, 7, 0, 512).unwrap();
    assert_eq!(old.reply().unwrap(), (0, 7));

    let error = rpc.fails("VDI.resize", &serde_json::to_value(params(&disk.vdi, MIB)).unwrap());
    let Some(StorageError::Backend((code, texts))) = error.storage else { panic!("{error}") };
    assert_eq!(code, "SR_BACKEND_FAILURE_110");
    assert!(texts[1].contains("only grows"), "{texts:?}");
    finish(&rpc, &disk, running, 32 * MIB);
}

#[test]
fn the_daemon_dies_in_the_middle_of_a_resize() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(5, MIB).unwrap();
    let running = boot(&host, &disk);
    let mut random = Random::new(29);
    let mut size = MIB;
    let mut delay_us_max = 12_000;
    for _ in 0..20 {
        let delay = Duration::from_micros(random.below(delay_us_max));
        let (vdi, rpc) = (disk.vdi.clone(), host.rpc());
        let answered = std::thread::scope(|scope| {
            let calls = scope.spawn(move || {
                let mut answered = size;
                while let Ok(now) = resize(&rpc, &vdi, answered + 4096) {
                    answered = now;
                }
                answered
            });
            // Any moment will do, and all of them should come.
            let until = Instant::now() + delay;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let pid = i32::try_from(host.daemon_pid().unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            calls.join().unwrap()
        });
        host.kill_daemon().unwrap();
        running.progresses(20, SOON).unwrap();
        host.start_daemon().unwrap();
        let told = host.rpc().call::<table::VdiStat>(&disk.vdi.params()).unwrap().virtual_size;
        let both = [answered, answered + 4096];
        assert!(both.contains(&told), "{told} bytes, {answered} were answered");
        let image = disk.vdi.image().unwrap().metadata().unwrap().len();
        assert_eq!(image, told.cast_unsigned(), "image and record agree");
        // Nobody asks again: the daemon brings its predecessor's work to its end by itself.
        if told > MIB {
            guest_sees(&running, told);
        }
        if told == size {
            // An instrumented build takes longer to answer.
            delay_us_max = (delay_us_max * 2).min(200_000);
        }
        size = told;
    }
    assert!(size > MIB, "not one was answered");
    finish(&host.rpc(), &disk, running, size);
}

#[test]
fn a_volume_follows_its_block_device() {
    let place = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&place.path().join("backing"), 8 << 20, 512).unwrap();
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.adopt(&device).unwrap();
    let disk = vdi.serve(&rpc, 5, false).unwrap();
    let running = boot(&host, &disk);

    let error = rpc.fails("VDI.resize", &serde_json::to_value(params(&vdi, 16 * MIB)).unwrap());
    let Some(StorageError::Backend((_, texts))) = error.storage else { panic!("{error}") };
    assert!(texts[1].contains("Grow the device first"), "{texts:?}");
    device.grow(24 << 20).unwrap();
    assert_eq!(resize(&rpc, &vdi, 16 * MIB).unwrap(), 24 * MIB, "it is all of the device");
    guest_sees(&running, 24 * MIB);
    // Nobody asks, and it follows all the same.
    device.grow(40 << 20).unwrap();
    guest_sees(&running, 40 * MIB);
    let told = rpc.call::<table::VdiStat>(&vdi.params()).unwrap().virtual_size;
    assert_eq!(told, 40 * MIB, "and its record says so");
    running.progresses(500, SOON).unwrap();
    let mut ended = running.stop().unwrap();
    assert_eq!(ended.report.errors, 0);
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    ended.model.check_image(device.path()).unwrap();
    disk.detach(&rpc).unwrap();
    rpc.raw("VDI.destroy", &json!({"sr": vdi.sr, "vdi": vdi.vdi})).unwrap();
}
