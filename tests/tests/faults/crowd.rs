//! 64 disks in use and out of use again, over and over, each by a caller of its own through XAPI's
//! message switch, while the daemon and workers are killed at random.

use crate::queue::{Site, Stubborn};
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zerotap_tests::harness::nbd::{Client, Place};
use zerotap_tests::harness::{Host, eventually};
use zerotap_tests::workload::random::Random;

const DISKS: usize = 64;
const BLOCK: usize = 4096;
/// How often each disk is taken into use; `ZEROTAP_TEST_ROUNDS` says otherwise.
const ROUNDS: usize = 10;

fn rounds() -> usize {
    let wanted = std::env::var("ZEROTAP_TEST_ROUNDS").ok();
    wanted.map_or(ROUNDS, |text| text.parse().expect("ZEROTAP_TEST_ROUNDS is a number"))
}

/// What a round leaves in its block of a disk.
fn block(disk: usize, round: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, byte) in block.iter_mut().enumerate() {
        *byte = u8::try_from((disk * 31 + round * 7 + at) % 251).unwrap_or_default() + 1;
    }
    block
}

/// Writes a block and has it made durable.
fn write(place: &Place, disk: usize, round: usize) -> anyhow::Result<()> {
    let (mut client, _, _) = Client::open(place)?;
    client.ask(1, 1, u64::try_from(round * BLOCK)?, u32::try_from(BLOCK)?)?;
    client.say(&[&block(disk, round)])?;
    ensure!(client.reply()? == (0, 1), "written");
    client.ask(3, 2, 0, 0)?;
    ensure!(client.reply()? == (0, 2), "flushed");
    Ok(())
}

/// One use of a disk, from attach to detach.
fn round(
    xapi: &mut Stubborn,
    sr: &str,
    vdi: &str,
    disk: usize,
    round: usize,
) -> anyhow::Result<()> {
    let dp = json!({"dbg": "t", "dp": format!("vbd/{disk}/xvda"), "sr": sr, "vdi": vdi,
        "vm": disk.to_string()});
    let mut attach = dp.clone();
    attach["read_write"] = json!(true);
    let backend = xapi.ask("VDI.attach3", &attach)?;
    let uri = backend["implementations"][1][1]["uri"].as_str().context("an NBD URI")?;
    let parts: Vec<&str> = uri.split(':').collect();
    let name = parts[3].trim_start_matches("exportname=").to_owned();
    let place = Place { socket: parts[2].into(), name };
    eventually("a worker takes the block", || {
        // Its worker may have been killed.
        xapi.ask("VDI.activate3", &dp)?;
        write(&place, disk, round).map(Some)
    })?;
    xapi.ask("VDI.deactivate", &dp)?;
    xapi.ask("VDI.detach", &dp).map(drop)
}

/// kill -9 of the daemon, or of a worker that it knows.
fn kill(host: &mut Host, random: &mut Random) {
    if random.below(3) == 0 {
        host.kill_daemon().unwrap();
        return host.start_daemon().unwrap();
    }
    let workers = host.rpc().raw("Worker.list", &json!({})).unwrap();
    let workers = workers.as_array().unwrap();
    if workers.is_empty() {
        return;
    }
    let chosen = random.below(workers.len() as u64);
    let pid = workers[usize::try_from(chosen).unwrap()]["pid"].as_i64().unwrap();
    if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()) {
        // It may have ended by now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn check(image: &Path, disk: usize, rounds: usize) {
    let bytes = std::fs::read(image).unwrap();
    let (written, rest) = bytes.split_at(rounds * BLOCK);
    for (number, found) in written.chunks(BLOCK).enumerate() {
        assert!(found == block(disk, number), "disk {disk}, block {number}");
    }
    assert!(rest.iter().all(|&byte| byte == 0), "disk {disk} has garbage beyond");
}

#[test]
fn sixty_four_disks_survive_random_deaths() {
    let (mut site, rounds) = (Site::start(), rounds());
    let (sr, dir) = site.host.create_sr().unwrap();
    let bytes = i64::try_from((rounds + 1) * BLOCK).unwrap();
    let make = |_| site.host.create_vdi_in(&sr, bytes).unwrap().vdi;
    let vdis: Vec<String> = (0..DISKS).map(make).collect();
    let (switch, ended) = (site.switch.socket().to_owned(), AtomicU64::new(0));
    let mut random = Random::new(64);
    let live = |disk: usize, vdi: &str| {
        let mut xapi = Stubborn::new(&switch);
        for number in 0..rounds {
            round(&mut xapi, &sr, vdi, disk, number)
                .unwrap_or_else(|error| panic!("disk {disk}, round {number}: {error:#}"));
            ended.fetch_add(1, Ordering::Relaxed);
        }
    };
    let live = &live;
    std::thread::scope(|scope| {
        let callers =
            vdis.iter().enumerate().map(|(disk, vdi)| scope.spawn(move || live(disk, vdi)));
        let callers: Vec<_> = callers.collect();
        let mut next = 16;
        while !callers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            if ended.load(Ordering::Relaxed) >= next {
                kill(&mut site.host, &mut random);
                next = ended.load(Ordering::Relaxed) + 8 + random.below(32);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    site.host.kill_daemon().unwrap();
    site.host.start_daemon().unwrap();
    let rpc = site.host.rpc();
    eventually("every message is acknowledged", || Ok((site.switch.waiting() == 0).then_some(())))
        .unwrap();
    site.switch.check().unwrap();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    for (disk, vdi) in vdis.iter().enumerate() {
        let params = json!({"sr": sr, "vdi": vdi});
        let stat = rpc.raw("DP.stat_vdi", &params).unwrap();
        assert_eq!(stat, json!({"superstate": "Detached", "dps": {}}));
        check(&dir.join(format!("{vdi}.raw")), disk, rounds);
        rpc.raw("VDI.destroy", &params).unwrap();
    }
    rpc.raw("SR.destroy", &json!({ "sr": sr })).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "files are left");
}
