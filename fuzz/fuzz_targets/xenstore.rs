//! Both directories of a VBD, whatever toolstack and guest write there in whatever order: read as
//! the daemon reads them, and fed to its xenbus machine, whose orders are carried out, or fail.
//!
//! An input is a history, of one to four bytes a happening: short ones go far.
#![no_main]

use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use zerotap_fuzz::tree::Tree;
use zerotap_fuzz::vbd::address::{Address, OWN_DOMID, Own};
use zerotap_fuzz::vbd::backend::{Action, Backend, ConnectError, Event, PublishError, Worker};
use zerotap_fuzz::vbd::offer::Offer;
use zerotap_fuzz::vbd::publish::{self, Identity, OWN_KIND};
use zerotap_fuzz::vbd::reading::{self, Found};
use zerotap_fuzz::vbd::{device, xenbus};
use zerotap_rpc_schema::worker::{
    Discard, ImageInfo, QUEUES_MAX, RingParameters, TransferRule, VbdId,
};

const ID: VbdId = VbdId { domid: 7, devid: 51712 };
/// Steps that one change may lead to; more is a machine that goes in circles.
const STEPS_MAX: usize = 32;
/// The longest complaint, bytes: it goes into xenstore.
const COMPLAINT_BYTES_MAX: usize = 1024;

/// An input, taken byte by byte.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// As many as there are, if there are fewer.
    fn bytes(&mut self, count: u8) -> &'a [u8] {
        let (these, rest) = self.0.split_at(usize::from(count).min(self.0.len()));
        self.0 = rest;
        these
    }
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
    "",
    "auto",
    "copy",
    "map",
];

/// A device, and the keys that are read of it.
struct Device {
    address: Address,
    /// The backend's, [`OWN_DOMID`], the frontend's with its `device-type` first.
    paths: Vec<String>,
}

/// One whose toolstack is the daemon, and one of another toolstack's.
static DEVICES: LazyLock<[Device; 2]> = LazyLock::new(|| [OWN_KIND, "qdisk"].map(Device::new));
/// Where in [`Device::paths`] they are.
const PARAMS: usize = 0;
const FRONTEND: usize = 2;
const MODE: usize = 4;
const DEVICE_TYPE: usize = 5;
const STATE: usize = 7;
const BACKEND_KEYS: &[&str] = &[
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
    "feature-persistent",
    "multi-queue-max-queues",
    "max-ring-page-order",
    reading::TRANSFER,
];

impl Device {
    fn new(kind: &str) -> Device {
        let own = Own { domid: 0, named: true };
        let address = Address { id: ID, kind: kind.to_owned(), own };
        let mut paths: Vec<String> = BACKEND_KEYS.iter().map(|name| address.key(name)).collect();
        paths.push(OWN_DOMID.to_owned());
        let frontend = address.frontend();
        let mut add = |name: &str| paths.push(format!("{frontend}/{name}"));
        [
            "device-type",
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
        Device { address, paths }
    }
}

/// A worker, and what it says of the ring that it may serve.
fn worker(bits: u8, served: Option<RingParameters>) -> Worker {
    let image = ImageInfo {
        sectors: if bits & 1 == 0 { 2048 } else { 4095 },
        sector_bytes: 512,
        physical_sector_bytes: 4096,
        emulated_sector_bytes: None,
        memory_align_bytes: 512,
        discard: Some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
    };
    Worker {
        pid: 1,
        image,
        read_only: bits & 2 != 0,
        indirect_segments_max: 256,
        ring_page_order_max: if bits & 4 == 0 { 4 } else { 0 },
        queues_max: if bits & 8 == 0 { 4 } else { 1 },
        transfer: (bits & 16 != 0).then_some(TransferRule::Auto),
        draining: bits & 32 != 0 && served.is_some(),
        answered_all: bits & 64 != 0 && served.is_none(),
        ring: served,
    }
}

/// How the next order ends; those after it end well.
const CONNECT_REFUSED: u8 = 1;
const CONNECT_AGAIN: u8 = 2;
const NOT_DRAINED: u8 = 3;
const NOT_PUBLISHED: u8 = 4;

/// One device as the daemon's actor has it.
struct Disk {
    device: &'static Device,
    tree: Tree,
    identity: Identity,
    machine: Backend,
    /// What the worker serves.
    served: Option<RingParameters>,
    /// How the next order ends.
    next: u8,
    /// Something has changed since both directories were looked at.
    news: bool,
    /// What has changed says who the device is.
    ours: bool,
    ended: bool,
}

impl Disk {
    fn new(bits: u8) -> Disk {
        let device = &DEVICES[usize::from(bits & 1)];
        let Device { address, paths } = device;
        let mode = if bits & 2 == 0 { "w" } else { "r" };
        let device_type = if bits & 4 == 0 { "disk" } else { "cdrom" };
        let mut tree = Tree::default();
        tree.introduced = true;
        let initial = [
            (PARAMS, WORDS[3]),
            (FRONTEND, WORDS[5]),
            (MODE, mode),
            (DEVICE_TYPE, device_type),
            (STATE, "1"),
            (BACKEND_KEYS.len(), "0"),
        ];
        tree.with(|nodes| {
            nodes.extend(initial.map(|(at, value)| (paths[at].clone(), value.into())));
        });
        let found = now(reading::identity(&tree, address, &Offer::default()));
        let Ok(Found::Ours(identity)) = found else { panic!("a complete directory is ours") };
        let machine = Backend::new(identity.read_only, address.kind == OWN_KIND);
        let (served, next, news, ours, ended) = (None, 0, true, false, false);
        Disk { device, tree, identity, machine, served, next, news, ours, ended }
    }

    /// One that is about to change.
    fn path(&mut self, script: &mut Script<'_>) -> Option<&'static str> {
        let paths = &self.device.paths;
        let at = usize::from(script.byte()?) % paths.len();
        self.ours |= at <= BACKEND_KEYS.len() + 1;
        Some(&paths[at])
    }

    fn write(&mut self, path: &str, value: &[u8]) {
        self.tree.with(|nodes| nodes.insert(path.to_owned(), value.to_vec()));
        self.news = true;
    }

    /// What a frontend by the book publishes.
    fn publish_ring(&mut self, shape: u8, first: u8) {
        // One queue of up to sixteen pages, or up to four of up to two.
        let (queues, order) = match shape % 8 {
            order @ 0..5 => (1, Some(order)),
            queues => (queues - 3, (shape & 8 == 0).then_some(1)),
        };
        let order = order.filter(|_| shape & 16 == 0);
        let directory = self.device.address.frontend();
        let mut number = u32::from(first);
        let mut add =
            |name: &str, value: &str| self.write(&format!("{directory}/{name}"), value.as_bytes());
        add("state", "3");
        add("protocol", WORDS[usize::from(shape / 32 % 2)]);
        add("feature-persistent", if shape & 64 == 0 { "0" } else { "1" });
        add("multi-queue-num-queues", &queues.to_string());
        if let Some(order) = order {
            add("ring-page-order", &order.to_string());
        }
        for queue in 0..queues {
            let prefix = if queues == 1 { String::new() } else { format!("queue-{queue}/") };
            let mut add = |name: &str| {
                number += 1;
                add(&format!("{prefix}{name}"), &number.to_string());
            };
            add("event-channel");
            match order {
                None => add("ring-ref"),
                Some(order) => (0..1 << order).for_each(|n| add(&format!("ring-ref{n}"))),
            }
        }
    }

    /// One happening of a history; none when the history or the device is at its end.
    fn live(&mut self, script: &mut Script<'_>) -> Option<()> {
        let what = script.byte()?;
        let mut event = None;
        match what % 16 {
            0 => {
                let path = self.path(script)?;
                let number = script.bytes(4).iter().fold(0, |n, &byte| n << 8 | u32::from(byte));
                self.write(path, number.to_string().as_bytes());
            }
            1 | 2 => {
                let path = self.path(script)?;
                self.write(path, (script.byte()? % 10).to_string().as_bytes());
            }
            3 => {
                let path = self.path(script)?;
                self.write(path, WORDS[usize::from(script.byte()?) % WORDS.len()].as_bytes());
            }
            4 => {
                let path = self.path(script)?;
                let count = script.byte()?;
                let value = script.bytes(count);
                if let Ok(text) = std::str::from_utf8(value) {
                    let _ = xenbus::State::describe(Some(text));
                    if let Ok(devid) = device::devid(text) {
                        assert_eq!(device::devid(&device::name(devid)), Ok(devid));
                    }
                }
                self.write(path, value);
            }
            5 => {
                let path = self.path(script)?;
                self.news |= self.tree.with(|nodes| nodes.remove(path)).is_some();
            }
            6 => self.publish_ring(script.byte()?, script.byte()?),
            7 => (self.tree.introduced, self.news) = (script.byte()? % 2 == 1, true),
            8 => {
                let bits = script.byte()?;
                // Another worker than the one before.
                if bits & 128 != 0 {
                    self.served = None;
                }
                event = Some(Event::WorkerReady(worker(bits, self.served.clone())));
            }
            9 => {
                self.served = None;
                event = Some(Event::WorkerDied("it died".to_owned()));
            }
            10 => event = Some(Event::WorkerLeaves),
            11 => event = Some(Event::RingBroken),
            12 => event = Some(Event::Short(script.byte()? % 2 == 1)),
            13 => event = Some(Event::Forced),
            14 => self.next = script.byte()?,
            _ => self.news = true,
        }
        // Of several changes in a row the daemon may see the last alone.
        self.happen(event, what < 128);
        (!self.ended).then_some(())
    }

    /// Feeds an event, and what follows from it until nothing moves any more.
    fn happen(&mut self, first: Option<Event>, look: bool) {
        let mut events: Vec<Event> = first.into_iter().collect();
        for _ in 0..STEPS_MAX {
            if events.is_empty() && look {
                events.extend(self.look());
            }
            let Some(event) = events.pop() else { return };
            let empty = Backend::new(false, false);
            let (machine, actions) = std::mem::replace(&mut self.machine, empty).step(event);
            self.machine = machine;
            for action in actions {
                events.extend(self.act(action));
            }
            if self.ended {
                return;
            }
        }
        panic!("{STEPS_MAX} steps and no end: {:?}", self.machine);
    }

    fn look(&mut self) -> Option<Event> {
        if !self.news {
            return None;
        }
        let address = &self.device.address;
        if std::mem::take(&mut self.ours) {
            let _ = now(reading::identity(&self.tree, address, &Offer::default()));
        }
        let sight = reading::sight(&self.tree, address, &self.identity, &self.machine);
        let seen = now(sight).ok();
        self.news = seen.is_none();
        seen.map(Event::Seen)
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        let address = &self.device.address;
        match action {
            Action::Connect(ring, _) => {
                assert_eq!(self.served, None, "a ring over another");
                assert!((1..=QUEUES_MAX).contains(&ring.queues.len()));
                for queue in &ring.queues {
                    assert!(matches!(queue.ring_refs.len(), 1 | 2 | 4 | 8 | 16));
                }
                Some(Event::Connected(match std::mem::take(&mut self.next) {
                    CONNECT_REFUSED => Err(ConnectError::Refused("no such grant".to_owned())),
                    CONNECT_AGAIN => Err(ConnectError::Again),
                    _ => {
                        self.served = Some(ring);
                        Ok(())
                    }
                }))
            }
            Action::Disconnect => {
                self.served = None;
                let drained = std::mem::take(&mut self.next) != NOT_DRAINED;
                Some(Event::Disconnected { drained })
            }
            Action::Publish { from, what } => {
                if std::mem::take(&mut self.next) == NOT_PUBLISHED {
                    self.news = true;
                    return Some(Event::Published(Err(PublishError::Failed("no".to_owned()))));
                }
                let batch = publish::batch(address, &self.identity, &from, &what);
                let done = self.tree.apply(batch);
                assert!(done || self.news, "it has just been seen");
                self.news = true;
                Some(Event::Published(if done { Ok(()) } else { Err(PublishError::Changed) }))
            }
            Action::Complain(text) => {
                assert!(text.len() <= COMPLAINT_BYTES_MAX, "{} bytes", text.len());
                None
            }
            Action::RemoveDirectories => {
                assert_eq!(address.kind, OWN_KIND, "another toolstack's");
                self.tree.with(|nodes| nodes.retain(|path, _| path == OWN_DOMID));
                self.news = true;
                None
            }
            Action::End => {
                assert_eq!(self.served, None, "the guest's pages are held for ever");
                self.ended = true;
                None
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    if let Some(bits) = script.byte() {
        let mut disk = Disk::new(bits);
        while disk.live(&mut script).is_some() {
            assert_eq!(disk.machine.connected_ring(), disk.served.as_ref(), "who serves what");
        }
    }
});

fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the tree answers at once")
}
