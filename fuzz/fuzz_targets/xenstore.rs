//! Both directories of a VBD, whatever toolstack and guest write there in whatever order: read as
//! the daemon reads them, and fed to its xenbus machine, whose orders are carried out.
#![no_main]

use futures_util::FutureExt as _;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use zerotap_fuzz::vbd::address::{Address, Own};
use zerotap_fuzz::vbd::backend::{Action, Backend, Event, Worker};
use zerotap_fuzz::vbd::offer::Offer;
use zerotap_fuzz::vbd::publish::{self, Identity};
use zerotap_fuzz::vbd::reading::{self, Found};
use zerotap_fuzz::vbd::{device, xenbus};
use zerotap_fuzz::xenstore::{Batch, Change, Guard, Pending, Sink, Store, StoreError, Watch};
use zerotap_rpc_schema::worker::{Discard, ImageInfo, QUEUES_MAX, VbdId};

const ID: VbdId = VbdId { domid: 7, devid: 51712 };
/// Steps that one change may lead to; more is a machine that goes in circles.
const STEPS_MAX: usize = 32;
/// The longest complaint, bytes: it goes into xenstore.
const COMPLAINT_BYTES_MAX: usize = 1024;

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Number(u32),
    Digit(u8),
    Word(u8),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Happens<'a> {
    Write(u8, Value<'a>),
    Remove(u8),
    Domain(bool),
    WorkerReady,
    WorkerDied,
    WorkerLeaves,
    RingBroken,
    Forced,
}

const WORDS: &[&str] = &[
    "x86_64-abi",
    "x86_32-abi",
    "arm-abi",
    "zerotap:sr/vdi",
    "zerotap:sr/other",
    "/local/domain/7/device/vbd/51712",
    "w",
    "r",
    "cdrom",
    "connected",
    "18446744073709551615",
    "4294967296",
];

/// The keys that are read, the backend's first.
fn paths(address: &Address) -> Vec<String> {
    let names = [
        "params",
        "qemu-params",
        "frontend",
        "frontend-id",
        "mode",
        "device-type",
        "removable",
        "state",
        "online",
        "hotplug-status",
        "sectors",
        "discard-enable",
        "multi-queue-max-queues",
        "max-ring-page-order",
    ];
    let mut paths: Vec<String> = names.iter().map(|name| address.key(name)).collect();
    let frontend = address.frontend();
    let mut add = |name: &str| paths.push(format!("{frontend}/{name}"));
    [
        "state",
        "event-channel",
        "protocol",
        "ring-page-order",
        "ring-ref",
        "feature-persistent",
        "multi-queue-num-queues",
    ]
    .into_iter()
    .for_each(&mut add);
    (0..=16).for_each(|n| add(&format!("ring-ref{n}")));
    for queue in 0..=QUEUES_MAX {
        add(&format!("queue-{queue}/event-channel"));
        add(&format!("queue-{queue}/ring-ref"));
        (0..4).for_each(|n| add(&format!("queue-{queue}/ring-ref{n}")));
    }
    paths
}

/// A tree of bytes that answers at once.
#[derive(Default)]
struct Tree {
    nodes: Mutex<BTreeMap<String, Vec<u8>>>,
    introduced: bool,
}

impl Tree {
    fn with<T>(&self, body: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        body(&mut self.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does a batch; false when a guard does not hold.
    fn apply(&self, batch: &Batch) -> bool {
        self.with(|nodes| {
            let holds = |guard: &Guard| match guard {
                Guard::Exists(path) => nodes.contains_key(path),
                Guard::Absent(path) => !nodes.contains_key(path),
                Guard::Equals(path, value) => {
                    nodes.get(path).is_some_and(|it| it == value.as_bytes())
                }
            };
            let all = batch.guards.iter().all(holds);
            for change in batch.changes.iter().filter(|_| all) {
                match change {
                    Change::Write(path, value) => {
                        nodes.insert(path.clone(), value.clone().into_bytes());
                    }
                    Change::Remove(path) => drop(nodes.remove(path)),
                    Change::Mkdir(_) | Change::Permit(..) => {}
                }
            }
            all
        })
    }
}

impl Store for Tree {
    fn read<'a>(&'a self, path: &'a str) -> Pending<'a, String> {
        let value = self.with(|nodes| nodes.get(path).cloned());
        let value = value.ok_or_else(|| StoreError::Missing(path.to_owned()));
        let text = value
            .and_then(|it| String::from_utf8(it).map_err(|_| StoreError::NotText(path.to_owned())));
        Box::pin(async move { text })
    }

    fn snapshot<'a>(&'a self, paths: &'a [String]) -> Pending<'a, Vec<Option<String>>> {
        let value = |path: &String| {
            let value = self.with(|nodes| nodes.get(path).cloned())?;
            Some(String::from_utf8(value).unwrap_or_else(|_| "\u{fffd}".to_owned()))
        };
        let values = paths.iter().map(value).collect();
        Box::pin(async move { Ok(values) })
    }

    fn introduced(&self, _: u16) -> Pending<'_, bool> {
        let introduced = self.introduced;
        Box::pin(async move { Ok(introduced) })
    }

    fn write<'a>(&'a self, _: &'a str, _: &'a str) -> Pending<'a, ()> {
        unreachable!("reading writes nothing")
    }

    fn remove<'a>(&'a self, _: &'a str) -> Pending<'a, ()> {
        unreachable!("reading removes nothing")
    }

    fn list<'a>(&'a self, _: &'a str) -> Pending<'a, Vec<String>> {
        unreachable!("a device lists nothing")
    }

    fn transact<'a>(&'a self, _: &'a Batch) -> Pending<'a, ()> {
        unreachable!("reading changes nothing")
    }

    fn watch(&self, _: &str, _: Sink) -> Watch {
        unreachable!("reading watches nothing")
    }

    fn alive(&self) -> bool {
        true
    }
}

fn worker() -> Worker {
    let image = ImageInfo {
        sectors: 2048,
        sector_bytes: 512,
        physical_sector_bytes: 512,
        emulated_sector_bytes: None,
        memory_align_bytes: 512,
        discard: Some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
    };
    Worker {
        pid: 1,
        image,
        read_only: false,
        indirect_segments_max: 256,
        ring_page_order_max: 4,
        queues_max: 4,
        transfer: None,
        ring: None,
        draining: false,
        answered_all: false,
    }
}

/// One device as the daemon's actor has it.
struct Disk {
    tree: Tree,
    address: Address,
    identity: Identity,
    machine: Backend,
}

impl Disk {
    fn look(&self) -> Option<Event> {
        let seen = reading::sight(&self.tree, &self.address, &self.identity, &self.machine);
        seen.now_or_never().expect("the tree answers at once").ok().map(Event::Seen)
    }

    /// Feeds an event, and what follows from it.
    fn happen(&mut self, first: Event) {
        let mut events = vec![first];
        for _ in 0..STEPS_MAX {
            let Some(event) = events.pop() else { return };
            let (machine, actions) = self.machine.clone().step(event);
            self.machine = machine;
            for action in actions {
                events.extend(self.act(action));
            }
        }
        panic!("{STEPS_MAX} steps and no end: {:?}", self.machine);
    }

    fn act(&self, action: Action) -> Option<Event> {
        match action {
            Action::Connect(ring, _) => {
                assert!((1..=QUEUES_MAX).contains(&ring.queues.len()));
                for queue in &ring.queues {
                    assert!(matches!(queue.ring_refs.len(), 1 | 2 | 4 | 8 | 16));
                }
                Some(Event::Connected(Ok(())))
            }
            Action::Disconnect => Some(Event::Disconnected { drained: true }),
            Action::Publish { from, what } => {
                let batch = publish::batch(&self.address, &self.identity, &from, &what);
                assert!(self.tree.apply(&batch), "it has just been seen");
                Some(Event::Published(Ok(())))
            }
            Action::Complain(text) => {
                assert!(text.len() <= COMPLAINT_BYTES_MAX, "{} bytes", text.len());
                None
            }
            Action::RemoveDirectories => {
                self.tree.with(BTreeMap::clear);
                None
            }
            Action::End => None,
        }
    }
}

fuzz_target!(|input: Vec<Happens<'_>>| {
    let own = Own { domid: 0, named: false };
    let address = Address { id: ID, kind: publish::OWN_KIND.to_owned(), own };
    let paths = paths(&address);
    let tree = Tree { introduced: true, ..Tree::default() };
    let initial = [(0, WORDS[3]), (2, WORDS[5]), (4, "w"), (7, "1")];
    tree.with(|nodes| {
        nodes.extend(initial.map(|(at, value)| (paths[at].clone(), value.into())));
    });
    let found = now(reading::identity(&tree, &address, &Offer::default()));
    let Ok(Found::Ours(identity)) = found else {
        panic!("a complete directory is ours")
    };
    let mut disk = Disk { tree, address, identity, machine: Backend::new(false, true) };
    for happens in input {
        let path = |n: u8| paths[usize::from(n) % paths.len()].clone();
        match happens {
            Happens::Write(at, value) => {
                let value = match value {
                    Value::Number(number) => number.to_string().into_bytes(),
                    Value::Digit(digit) => (digit % 10).to_string().into_bytes(),
                    Value::Word(word) => WORDS[usize::from(word) % WORDS.len()].into(),
                    Value::Raw(bytes) => bytes.to_vec(),
                };
                if let Ok(text) = std::str::from_utf8(&value) {
                    let _ = xenbus::State::describe(Some(text));
                    if let Ok(devid) = device::devid(text) {
                        assert_eq!(device::devid(&device::name(devid)), Ok(devid));
                    }
                }
                disk.tree.with(|nodes| nodes.insert(path(at), value));
            }
            Happens::Remove(at) => drop(disk.tree.with(|nodes| nodes.remove(&path(at)))),
            Happens::Domain(alive) => disk.tree.introduced = alive,
            Happens::WorkerReady => disk.happen(Event::WorkerReady(worker())),
            Happens::WorkerDied => {
                disk.happen(Event::WorkerDied("it died".to_owned()));
            }
            Happens::WorkerLeaves => disk.happen(Event::WorkerLeaves),
            Happens::RingBroken => disk.happen(Event::RingBroken),
            Happens::Forced => disk.happen(Event::Forced),
        }
        let _ = now(reading::identity(&disk.tree, &disk.address, &Offer::default()));
        if let Some(seen) = disk.look() {
            disk.happen(seen);
        }
    }
});

fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the tree answers at once")
}
