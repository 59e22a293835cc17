//! dom0 reaches a disk over NBD: other people's clients judge the server, over the real daemon and
//! worker.

use std::path::Path;
use std::process::Command;
use zerotap_tests::harness::nbd::{Client, Place};
use zerotap_tests::harness::{Disk, Host};

const MIB: i64 = 1 << 20;
const DOM0: u16 = 0;

/// Runs a program to its end; answers what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; Debian's qemu-utils, libnbd-bin and fio bring the peers")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{printed}");
    printed
}

fn qemu_io(place: &Place, options: &[&str], commands: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).args(options);
    commands.iter().for_each(|it| {
        command.args(["-c", it]);
    });
    let printed = run(command.arg(place.qemu()));
    // It exits with success even when a pattern is not what it should be, or a write fails.
    let bad = printed.contains("Pattern verification failed") || printed.contains("failed:");
    assert!(!bad, "{printed}");
    printed
}

fn info(place: &Place) -> serde_json::Value {
    let printed = run(Command::new("nbdinfo").arg("--json").arg(place.uri()));
    let info: serde_json::Value = serde_json::from_str(&printed).unwrap();
    info["exports"][0].clone()
}

/// A disk of dom0 and where it is served.
fn serve(host: &Host, bytes: i64) -> (Disk, Place) {
    let disk = host.serve(DOM0, bytes).unwrap();
    let place = disk.nbd(&host.rpc()).unwrap();
    (disk, place)
}

fn blocks(image: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(image).unwrap())
}

#[test]
fn the_place_is_final_at_attach_and_served_from_activate_to_deactivate() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(16 * MIB).unwrap();
    let disk = Disk { vdi, dp: "a".into(), domid: DOM0, read_only: false };
    disk.attach(&rpc).unwrap();
    let place = disk.nbd(&rpc).unwrap();
    assert_eq!(place.name, disk.vdi.vdi);
    Client::connect(&place).expect_err("nobody serves it yet");
    for _ in 0..2 {
        disk.activate(&rpc).unwrap();
        assert_eq!(disk.nbd(&rpc).unwrap().qemu(), place.qemu());
        let (_, size, _) = Client::open(&place).unwrap();
        assert_eq!(size, 16 << 20);
        disk.deactivate(&rpc).unwrap();
        Client::connect(&place).expect_err("nobody serves it any more");
    }
    // A worker that was killed leaves its socket behind; the next one takes its place.
    disk.activate(&rpc).unwrap();
    disk.kill_worker(&rpc).unwrap();
    disk.activate(&rpc).unwrap();
    Client::open(&place).unwrap();
    disk.remove(&rpc).unwrap();
    assert!(!place.socket.exists());
}

#[test]
fn nbdinfo_sees_what_there_is() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    let seen = info(&place);
    assert_eq!(seen["export-size"], 16 * MIB, "{seen}");
    assert_eq!(seen["export-name"], place.name, "{seen}");
    for yes in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache"] {
        assert_eq!(seen[yes], true, "{yes}: {seen}");
    }
    for yes in ["can_multi_conn", "can_df"] {
        assert_eq!(seen[yes], true, "{yes}: {seen}");
    }
    assert_eq!(seen["is_read_only"], false, "{seen}");
    assert_eq!(seen["contexts"], serde_json::json!(["base:allocation"]), "{seen}");
    assert_eq!(
        (&seen["block_size_minimum"], &seen["block_size_maximum"]),
        (&1.into(), &2097152.into())
    );
    let list = run(Command::new("nbdinfo").arg("--list").arg(place.uri()));
    assert!(list.contains(&format!("export=\"{}\"", place.name)), "{list}");
    let nowhere = Place { name: "another".into(), ..place.clone() };
    assert!(!Command::new("nbdinfo").arg(nowhere.uri()).output().unwrap().status.success());
    assert_eq!(disk.nbd_counters(&rpc).unwrap().refused, 0);
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();

    let disk = disk.vdi.serve(&rpc, DOM0, true).unwrap();
    let seen = info(&place);
    assert_eq!((&seen["is_read_only"], &seen["can_trim"]), (&true.into(), &false.into()), "{seen}");
    let (mut client, _, _) = Client::open(&place).unwrap();
    client.ask(1, 7, 0, 512).unwrap();
    client.say(&[&[0xee; 512]]).unwrap();
    assert_eq!(client.reply().unwrap(), (1, 7), "EPERM");
    client.ask(4, 8, 0, 4096).unwrap();
    assert_eq!(client.reply().unwrap(), (1, 8), "EPERM");
    disk.remove(&rpc).unwrap();
}

#[test]
fn qemu_io_reads_what_it_wrote_and_so_does_the_file() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    qemu_io(
        &place,
        &[],
        &[
            "write -P 0xa1 0 64k",
            "write -P 0xb2 1M 4M",
            "write -f -P 0xc3 8M 4k",
            // Not whole sectors.
            "write -P 0xd4 100 1000",
            "write -P 0xe5 1048575 2",
            "flush",
            "read -P 0xa1 0 100",
            "read -P 0xd4 100 1000",
            "read -P 0xa1 1100 64436",
            "read -P 0 64k 983039",
            "read -P 0xe5 1048575 2",
            "read -P 0xb2 1048577 4194303",
            "read -P 0xc3 8M 4k",
        ],
    );
    let counters = disk.nbd_counters(&rpc).unwrap();
    assert_eq!((counters.refused, counters.io_errors, counters.in_flight), (0, 0, 0));
    assert!(counters.reads >= 6 && counters.writes >= 5 && counters.flushes >= 1, "{counters:?}");
    let bytes = std::fs::read(disk.vdi.image().unwrap()).unwrap();
    assert!(bytes[..100].iter().all(|&byte| byte == 0xa1));
    assert!(bytes[100..1100].iter().all(|&byte| byte == 0xd4));
    assert!(bytes[1100..65536].iter().all(|&byte| byte == 0xa1));
    assert_eq!(bytes[(1 << 20) - 2..(1 << 20) + 2], [0, 0xe5, 0xe5, 0xb2]);
    disk.remove(&rpc).unwrap();
}

/// Asks for these pages in one message, and answers which error each got; what it got is as in
/// `expected`.
fn read_pages(client: &mut Client, pages: &[u8], expected: impl Fn(u8) -> u8) -> Vec<(u8, u32)> {
    let mut asked = Vec::new();
    for &page in pages {
        asked.extend(0x2560_9513u32.to_be_bytes());
        asked.extend([0; 4]);
        asked.extend(u64::from(page).to_be_bytes());
        asked.extend((u64::from(page) * 4096).to_be_bytes());
        asked.extend(4096u32.to_be_bytes());
    }
    client.say(&[&asked]).unwrap();
    let answers = pages.iter().map(|_| {
        let (error, cookie) = client.reply().unwrap();
        let page = u8::try_from(cookie).unwrap();
        if error == 0 {
            assert!(client.take::<4096>().unwrap().iter().all(|&byte| byte == expected(page)));
        }
        (page, error)
    });
    let mut answers: Vec<_> = answers.collect();
    answers.sort_unstable();
    answers
}

#[test]
fn adjacent_reads_are_read_at_once_and_each_gets_its_own_answer() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    let image = disk.vdi.image().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    for (page, chunk) in (0u8..).zip(bytes.chunks_mut(4096).take(12)) {
        chunk.fill(page + 1);
    }
    std::fs::write(&image, &bytes).unwrap();
    let (mut client, ..) = Client::open(&place).unwrap();
    // In no order, with a gap, and one of them twice.
    let pages = [3, 0, 1, 2, 9, 10, 1, 5, 4, 11];
    let answers = read_pages(&mut client, &pages, |page| page + 1);
    assert_eq!(answers.iter().map(|(page, _)| *page).collect::<Vec<_>>(), {
        let mut sorted = pages;
        sorted.sort_unstable();
        sorted
    });
    assert!(answers.iter().all(|(_, error)| *error == 0), "{answers:?}");
    // What lies beyond a cut is an error of who asked for it, not of its neighbours.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(3 * 4096).unwrap();
    let answers = read_pages(&mut client, &[4, 2, 1, 3, 0], |page| page + 1);
    assert_eq!(answers, [(0, 0), (1, 0), (2, 0), (3, 5), (4, 5)]);
    let counters = disk.nbd_counters(&rpc).unwrap();
    assert_eq!((counters.reads, counters.io_errors, counters.in_flight), (13, 2, 0));
    disk.remove(&rpc).unwrap();
}

#[test]
fn zeroes_and_discards_give_space_back() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    let image = disk.vdi.image().unwrap();
    qemu_io(&place, &[], &["write -P 0x77 0 16M", "flush"]);
    let full = blocks(&image);
    assert!(full * 512 >= 16 << 20);
    qemu_io(&place, &["-d", "unmap"], &["discard 4M 4M", "write -z -u 8M 4M", "write -z 12M 1M"]);
    assert!(blocks(&image) * 512 <= 9 << 20, "{} of {full} blocks", blocks(&image));
    qemu_io(
        &place,
        &[],
        &[
            "write -z 1000 5000",
            "read -P 0x77 0 1000",
            "read -P 0 1000 5000",
            "read -P 0x77 6000 4188304",
            "read -P 0 4M 9M",
            "read -P 0x77 13M 3M",
        ],
    );
    let map = |what: &str| -> serde_json::Value {
        let map =
            run(Command::new("qemu-img").args(["map", "--output=json", "-f", "raw"]).arg(what));
        serde_json::from_str(&map).unwrap()
    };
    let tell = |map: &serde_json::Value| -> Vec<(u64, u64, bool)> {
        let mut told: Vec<(u64, u64, bool)> = Vec::new();
        for extent in map.as_array().unwrap() {
            let (start, length) = (&extent["start"], &extent["length"]);
            let next = (start.as_u64().unwrap(), length.as_u64().unwrap(), extent["data"] == true);
            match told.last_mut() {
                Some(last) if last.2 == next.2 => last.1 += next.1,
                _ => told.push(next),
            }
        }
        told
    };
    let over_nbd = tell(&map(&place.qemu()));
    disk.deactivate(&rpc).unwrap();
    let direct = tell(&map(image.to_str().unwrap()));
    assert_eq!(over_nbd, direct);
    assert!(over_nbd.len() >= 3, "{over_nbd:?}");
}

#[test]
fn nbdcopy_and_fio_verify_what_they_moved() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 64 * MIB);
    let source: Vec<u8> =
        (0u32..16 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (from, to) = (host.data().join("from"), host.data().join("to"));
    std::fs::write(&from, &source).unwrap();
    run(Command::new("nbdcopy").arg("--flush").arg(&from).arg(place.uri()));
    run(Command::new("nbdcopy").arg(place.uri()).arg(&to));
    assert!(std::fs::read(&to).unwrap() == source, "copied there and back");
    assert!(std::fs::read(disk.vdi.image().unwrap()).unwrap() == source, "and on the disk");
    let copied = disk.nbd_counters(&rpc).unwrap().copied_bytes;
    assert!(copied < 16 << 20, "most data goes straight to its place: {copied}");
    run(Command::new("fio")
        .args(["--name=nbd", "--ioengine=nbd", "--rw=randrw", "--bs=512-64k", "--iodepth=32"])
        .args(["--size=64M", "--io_size=32M", "--verify=crc32c", "--verify_fatal=1"])
        .arg(format!("--uri={}", place.uri()))
        .current_dir(host.data()));
    disk.remove(&rpc).unwrap();
}
