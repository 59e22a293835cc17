//! Other programs agree with us: QEMU's tools on the images, our own command line and guests as
//! separate processes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::{Domain, FRAME_BYTES};
use zerotap_tests::harness::{Host, eventually};
use zerotap_tests::programs::program;
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;

/// Runs a program to its end; answers what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; qemu-img and qemu-io come with Debian's qemu-utils")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{printed}");
    printed
}

fn qemu_io(image: &Path, commands: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    commands.iter().for_each(|it| {
        command.args(["-c", it]);
    });
    let printed = run(command.arg(image));
    // It exits with success even when a pattern is not what it should be.
    assert!(!printed.contains("Pattern verification failed"), "{printed}");
    printed
}

#[test]
fn qemu_reads_what_a_guest_wrote_and_the_other_way_round() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let image = disk.vdi.image().unwrap();
    let info = run(Command::new("qemu-img")
        .args(["info", "-U", "-f", "raw", "--output=json"])
        .arg(&image));
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], serde_json::json!(16 * MIB));

    let domain = Domain::create(host.sim().dir(), DOMID, 16 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let frame = front.domain().frame().unwrap();
    let page = frame as usize * FRAME_BYTES;
    let transfer = |front: &mut Blkfront, op, sector| {
        let pieces = vec![Piece { frame, first: 0, last: 7 }];
        front.submit(Io { op, sector, pieces }).unwrap();
        front.push().unwrap();
        assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
    };
    front.domain().memory().copy_in(page, &[0xc7; FRAME_BYTES]);
    transfer(&mut front, Op::Write, 2048);
    front.submit(Io { op: Op::Flush, sector: 0, pieces: Vec::new() }).unwrap();
    front.push().unwrap();
    assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
    qemu_io(&image, &["read -P 0xc7 1M 4k", "read -P 0 0 1M"]);

    qemu_io(&image, &["write -P 0x3d 3M 4k"]);
    transfer(&mut front, Op::Read, 3 * 2048);
    let mut read = [0; FRAME_BYTES];
    front.domain().memory().copy_out(page, &mut read);
    assert!(read.iter().all(|&byte| byte == 0x3d), "what QEMU wrote");
    front.close().unwrap();
    disk.unplug(&rpc, false).unwrap();
    disk.remove(&rpc).unwrap();
}

#[test]
fn qemu_copies_an_image_byte_by_byte_as_the_guest_left_it() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let guest = Guest { plan: Plan { requests_max: 1000, ..Plan::default() }, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let mut ended = running.join().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    let copy = host.data().join("copy.qcow2");
    let (image, back) = (disk.vdi.image().unwrap(), host.data().join("back.raw"));
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&image)
        .arg(&copy));
    run(Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .arg(&copy)
        .arg(&back));
    ended.model.check_image(&back).unwrap();
}

#[test]
fn a_guest_in_a_process_of_its_own() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let mut guest = Command::new(program("zerotap-simguest").unwrap())
        .arg("--dir")
        .arg(host.sim().dir())
        .args(["--domid", "5", "--requests", "500", "--fresh", "--progress", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(guest.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "domain 5");
    let plug = ["vbd", "plug", "--domid", "5", "--device", "xvda", "--vdi", &disk.vdi.vdi];
    run(&mut host.zerotap(&plug).unwrap());
    let last = lines.map(Result::unwrap).last().expect("a report");
    let report: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&report["requests"], &report["verified"]), (&500.into(), &true.into()), "{last}");
    assert!(guest.wait().unwrap().success());
    let shown = run(&mut host
        .zerotap(&["vbd", "show", "--domid", "5", "--device", "xvda", "--json"])
        .unwrap());
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown.to_string().contains("\"copied_bytes\":0"), "{shown}");
    run(&mut host.zerotap(&["vbd", "unplug", "--domid", "5", "--device", "xvda"]).unwrap());
    disk.remove(&host.rpc()).unwrap();
}

#[test]
fn a_host_in_a_process_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Command::new(program("zerotap-simhost").unwrap())
        .arg("--dir")
        .arg(dir.path())
        .arg("--until-eof")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(host.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    let socket = zerotap_tests::xenstored::socket_path(dir.path(), 0);
    let mut client = zerotap_tests::xenstore::Client::connect(&socket).unwrap();
    assert_eq!(client.read("domid").unwrap(), "0");
    drop(host.stdin.take());
    assert!(host.wait().unwrap().success());
}
