//! NBD clients that misbehave, hurry or die beside guests and other clients of the same worker:
//! none costs more than its share, and no byte of anybody's is wrong.

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::nbd::{Client, Place};
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const SOON: Duration = Duration::from_secs(30);

fn serve(host: &Host, bytes: i64) -> (Disk, Place) {
    let disk = host.serve(DOMID, bytes).unwrap();
    let place = disk.nbd(&host.rpc()).unwrap();
    (disk, place)
}

/// A read of one sector is answered.
fn works(place: &Place) {
    let (mut client, _, _) = Client::open(place).unwrap();
    client.ask(READ, 3, 0, 512).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 3));
    client.take::<512>().unwrap();
}

fn clients_are(disk: &Disk, host: &Host, count: u32) {
    eventually("so many clients", || {
        Ok((disk.nbd_counters(&host.rpc())?.clients == count).then_some(()))
    })
    .unwrap();
}

#[test]
fn who_breaks_the_protocol_is_hung_up_on_and_nobody_else() {
    let host = Host::start().unwrap();
    let (disk, place) = serve(&host, 16 * MIB);
    let (mut good, _, _) = Client::open(&place).unwrap();

    let mut garbage = Client::connect(&place).unwrap();
    garbage.say(&[b"GET / HTTP/1.1\r\n\r\n"]).unwrap();
    assert!(garbage.is_hung_up_on());
    let (mut magic, _, _) = Client::open(&place).unwrap();
    magic.say(&[&[0x5a; 28]]).unwrap();
    assert!(magic.is_hung_up_on());
    let (mut endless, _, _) = Client::open(&place).unwrap();
    endless.ask(WRITE, 1, 0, u32::MAX).unwrap();
    assert!(endless.is_hung_up_on());

    // Too long to be done, short enough to be read over; what follows is understood.
    let (mut long, _, _) = Client::open(&place).unwrap();
    long.ask(WRITE, 1, 0, 3 << 20).unwrap();
    for _ in 0..3 {
        long.say(&[&vec![0xee; 1 << 20]]).unwrap();
    }
    assert_eq!(long.reply().unwrap(), (75, 1), "EOVERFLOW");
    long.ask(READ, 2, 0, 3 << 20).unwrap();
    assert_eq!(long.reply().unwrap(), (75, 2), "EOVERFLOW");
    long.ask(READ, 3, u64::MAX - 100, 512).unwrap();
    assert_eq!(long.reply().unwrap(), (22, 3), "EINVAL");
    long.ask(DISC, 0, 0, 0).unwrap();
    assert!(long.is_hung_up_on());

    // Half a write, then nothing: it did not happen.
    let (mut half, _, _) = Client::open(&place).unwrap();
    half.ask(WRITE, 1, 0, 1 << 20).unwrap();
    half.say(&[&[0xee; 100_000]]).unwrap();
    drop(half);
    clients_are(&disk, &host, 1);
    good.ask(READ, 9, 0, 512).unwrap();
    assert_eq!(good.reply().unwrap(), (0, 9));
    assert_eq!(good.take::<512>().unwrap(), [0; 512], "nothing refused was written");
    disk.remove(&host.rpc()).unwrap();
}

#[test]
fn idle_handshakes_make_room_and_readers_that_never_read_cost_their_share() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    let idle: Vec<Client> = (0..16).map(|_| Client::connect(&place).unwrap()).collect();
    // Each that is refused has the oldest of the idle ones give way.
    eventually("room for a client", || Ok(Client::open(&place).ok().map(drop))).unwrap();
    drop(idle);
    clients_are(&disk, &host, 0);

    let guest = Guest { plan: Plan::default(), ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&rpc).unwrap();
    let mut never_read = Vec::new();
    for _ in 0..15 {
        let (mut client, _, _) = Client::open(&place).unwrap();
        client.0.set_nonblocking(true).unwrap();
        // As many as go: the server stops reading them.
        while client.ask(READ, 1, 0, 2 << 20).is_ok() {}
        never_read.push(client);
    }
    running.progresses(1000, SOON).expect("the guest goes on");
    works(&place);
    let kib = disk.worker(&rpc).unwrap().rss_kib;
    assert!(kib < 120 << 10, "{kib} KiB for 15 clients of 4 MiB");
    let started = Instant::now();
    running.progress.stop();
    let mut ended = running.join().unwrap();
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "clients do not hold a deactivate up");
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();
}

#[test]
fn anything_at_all_in_any_pieces() {
    let host = Host::start().unwrap();
    let (disk, place) = serve(&host, MIB);
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut client = if seed % 2 == 0 {
            Client::connect(&place).unwrap()
        } else {
            Client::open(&place).unwrap().0
        };
        let mut bytes = Vec::new();
        for _ in 0..=random.below(6) {
            let number = u16::try_from(random.below(13)).unwrap();
            match seed % 2 {
                0 if bytes.is_empty() => bytes.extend(3u32.to_be_bytes()),
                0 => {
                    let length = u32::try_from(random.below(30)).unwrap();
                    bytes.extend(b"IHAVEOPT");
                    bytes.extend(u32::from(number).to_be_bytes());
                    bytes.extend(length.to_be_bytes());
                    bytes.extend((0..length).map(|n| u8::try_from(n % 5).unwrap()));
                }
                _ => {
                    bytes.extend(0x2560_9513u32.to_be_bytes());
                    bytes.extend(u16::try_from(random.below(32)).unwrap().to_be_bytes());
                    bytes.extend((number % 9).to_be_bytes());
                    bytes.extend(random.below(1 << 20).to_be_bytes());
                    bytes.extend(random.below(1 << 21).to_be_bytes());
                    bytes.extend(u32::try_from(random.below(1 << 12)).unwrap().to_be_bytes());
                    let rest = usize::try_from(random.below(4096)).unwrap();
                    bytes.resize(bytes.len() + rest, 0x25);
                }
            }
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = rest.len().min(1 + usize::try_from(random.below(400)).unwrap());
            if client.say(&[&rest[..piece]]).is_err() {
                break;
            }
            rest = &rest[piece..];
        }
    }
    clients_are(&disk, &host, 0);
    works(&place);
    disk.remove(&host.rpc()).unwrap();
}

/// One client asks as fast as it can and reads what it gets; another, and the daemon, are answered.
#[test]
fn a_client_that_never_stops_asking_leaves_the_others_their_share() {
    let host = Host::start().unwrap();
    let (disk, place) = serve(&host, 16 * MIB);
    let (mut flood, _, _) = Client::open(&place).unwrap();
    let (mut modest, _, _) = Client::open(&place).unwrap();
    let socket = flood.0.try_clone().unwrap();
    let mut answers = flood.0.try_clone().unwrap();
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut cookie = 0;
            while flood.ask(READ, cookie, 0, 512).is_ok() {
                cookie += 1;
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = answers.read(&mut buffer) {
                taken.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
        let flooded = |least: u64| {
            let before = taken.load(Ordering::Relaxed);
            eventually("the flood goes on", || {
                Ok((taken.load(Ordering::Relaxed) >= before + least).then_some(()))
            })
        };
        let mut served = || -> anyhow::Result<()> {
            for cookie in 0..200 {
                flooded(1)?;
                modest.ask(READ, cookie, 4096, 512)?;
                anyhow::ensure!(modest.reply()? == (0, cookie));
                modest.take::<512>()?;
            }
            for _ in 0..20 {
                flooded(1 << 20)?;
                anyhow::ensure!(disk.nbd_counters(&host.rpc())?.clients == 2);
            }
            Ok(())
        };
        let served = served();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        served.unwrap();
    });
    disk.remove(&host.rpc()).unwrap();
}

#[test]
fn a_guest_is_verified_while_clients_read_its_disk_to_the_end() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, place) = serve(&host, 16 * MIB);
    let plan = Plan { requests_max: 3000, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&rpc).unwrap();
    while running.progress.answered() < 3000 {
        let copy = std::process::Command::new("nbdcopy").args([&place.uri(), "null:"]).output();
        let copy = copy.expect("nbdcopy comes with Debian's libnbd-bin");
        assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
    }
    let mut ended = running.join().unwrap();
    assert_eq!(ended.report.requests, 3000);
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();
}

/// Every client writes bytes of its own into the same sectors, all at once; none is lost.
fn neighbours_in_a_sector(host: &Host, disk: &Disk) {
    const CLIENTS: usize = 6;
    const BYTES: usize = 12 << 10;
    let place = disk.nbd(&host.rpc()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let place = &place;
            scope.spawn(move || {
                let (mut client, _, _) = Client::open(place).unwrap();
                let mine: Vec<usize> = (number..BYTES / 16).step_by(CLIENTS).collect();
                for some in mine.chunks(32) {
                    for &n in some {
                        client.ask(WRITE, n as u64, n as u64 * 16, 16).unwrap();
                        client.say(&[&[u8::try_from(number + 1).unwrap(); 16]]).unwrap();
                    }
                    for _ in some {
                        assert_eq!(client.reply().unwrap().0, 0);
                    }
                }
            });
        }
    });
    let (mut client, _, _) = Client::open(&place).unwrap();
    client.ask(READ, 1, 5, u32::try_from(BYTES).unwrap() - 10).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 1));
    let read = client.take::<{ BYTES - 10 }>().unwrap();
    for (n, byte) in (5..).zip(read) {
        assert_eq!(usize::from(byte), n / 16 % CLIENTS + 1, "byte {n}");
    }
}

#[test]
fn writes_of_parts_of_sectors_lose_nothing_of_their_neighbours() {
    let place = tempfile::tempdir().unwrap();
    for sector_bytes in [512, 4096] {
        let backing = place.path().join(sector_bytes.to_string());
        let device = LoopDevice::new(&backing, 16 << 20, sector_bytes).unwrap();
        let host = Host::start().unwrap();
        let disk = host.adopt(&device).unwrap().serve(&host.rpc(), DOMID, false).unwrap();
        neighbours_in_a_sector(&host, &disk);
        // Zeroes with ragged ends, where a block device makes none such by itself.
        let (mut client, _, _) = Client::open(&disk.nbd(&host.rpc()).unwrap()).unwrap();
        client.ask(6, 2, 100, 200_000).unwrap();
        assert_eq!(client.reply().unwrap(), (0, 2));
        client.ask(READ, 3, 0, 16 << 10).unwrap();
        assert_eq!(client.reply().unwrap(), (0, 3));
        let read = client.take::<{ 16 << 10 }>().unwrap();
        assert!(read[..100].iter().all(|&byte| byte != 0) && read[100..] == [0; 16284]);
        disk.remove(&host.rpc()).unwrap();
    }
}
