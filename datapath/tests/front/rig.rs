//! A worker in a thread over a temporary image, and the simulated host's directory.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, bind, connect, listen, sendmsg, socket,
};
use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zerotap_datapath::engine::choice::choose;
use zerotap_datapath::image::Image;
use zerotap_datapath::ring::shared::SharedMapping;
use zerotap_datapath::worker::{Given, Worker};
use zerotap_datapath::xen::Host;
use zerotap_datapath::xen::budget::Budget;
use zerotap_rpc_schema::engine::{EngineChoice, EngineSetting};
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{Answer, Ask, Discard, PROTOCOL, Reply, Request, TransferRule};

/// Longer than any test.
const UNUSED_MAX: Duration = Duration::from_secs(600);
const DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

pub struct Rig {
    directory: tempfile::TempDir,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl Rig {
    /// A worker that serves an image of `pages` times 4096 zero bytes.
    pub fn new(pages: usize) -> Self {
        Self::start(pages, None, false, None, UNUSED_MAX, None)
    }

    /// The same, reached over a network.
    pub fn networked(pages: usize) -> Self {
        Self::start(pages, None, true, None, UNUSED_MAX, None)
    }

    /// That keeps no page for longer than this without using it.
    pub fn forgetful(pages: usize, unused_max: Duration) -> Self {
        Self::start(pages, None, false, None, unused_max, None)
    }

    /// On a host that lets its workers map 64 times so many pages as this file has bytes.
    pub fn with_budget(pages: usize, budget: OwnedFd) -> Self {
        Self::start(pages, None, false, Some(budget), UNUSED_MAX, None)
    }

    pub fn with_memory_align(pages: usize, bytes: u32) -> Self {
        Self::start(pages, Some(bytes), false, None, UNUSED_MAX, None)
    }

    /// Whose queues look before they sleep, on a host of which this tells how idle it is.
    pub fn looking(pages: usize, stat: OwnedFd) -> Self {
        Self::start(pages, None, false, None, UNUSED_MAX, Some(stat))
    }

    fn start(
        pages: usize,
        memory_align: Option<u32>,
        network: bool,
        budget: Option<OwnedFd>,
        unused_max: Duration,
        stat: Option<OwnedFd>,
    ) -> Self {
        // Beside the build, where the file system knows direct I/O.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path();
        std::fs::write(path.join("image"), vec![0; pages * 4096]).unwrap();
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let image = open(path.join("image"), flags, Mode::empty()).unwrap();
        let address = SocketAddrUnix::new(path.join("control")).unwrap();
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 4).unwrap();
        let gntdev = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        // Engine and devices belong to one thread: they are made in it.
        let worker = std::thread::spawn(move || {
            let units = Discard { granularity_bytes: 4096, alignment_bytes: 0 };
            let mut image = Image::new(image).unwrap().allow_discard(units);
            if let Some(bytes) = memory_align {
                image = image.assume_memory_align(bytes);
            }
            let (host, read_only, nbd, transfer) = (Host::Sim, false, None, TransferRule::Auto);
            let budget = budget.map_or_else(Budget::unlimited, |file| Budget::new(file).unwrap());
            let engine = engine(image.file());
            let given = Given {
                host,
                read_only,
                network,
                no_space: NoSpace::Error,
                transfer,
                budget,
                unused_max,
                stat,
                image,
                engine,
                listener,
                gntdev,
                nbd,
            };
            Worker::new(given).unwrap().run().unwrap();
        });
        Rig { directory, worker: Some(worker) }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn image(&self) -> Vec<u8> {
        std::fs::read(self.path("image")).unwrap()
    }

    pub fn allocated_bytes(&self) -> u64 {
        std::fs::metadata(self.path("image")).unwrap().blocks() * 512
    }

    pub fn shrink_image(&self, bytes: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(self.path("image")).unwrap();
        file.set_len(bytes).unwrap();
    }

    pub fn shared_file(&self, name: &str, bytes: usize) -> SharedMapping {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = open(self.path(name), flags, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        SharedMapping::map(&file, 0, bytes, true).unwrap()
    }

    pub fn fifo(&self, name: &str) -> OwnedFd {
        mkfifoat(CWD, self.path(name), Mode::RUSR | Mode::WUSR).unwrap();
        open(self.path(name), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap()
    }

    pub fn control(&self) -> Control {
        Control::connect(&self.path("control"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// What `ZEROTAP_TEST_ENGINE` names, or what a worker would choose.
fn engine(image: BorrowedFd<'_>) -> EngineChoice {
    let setting = std::env::var("ZEROTAP_TEST_ENGINE").map(|name| name.parse().unwrap());
    choose(setting.unwrap_or(EngineSetting::Auto), image).unwrap()
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.control().ask(Ask::Shutdown, None), Answer::Done);
            self.worker.take().unwrap().join().unwrap();
        }
    }
}

/// The daemon's end of the control protocol, one request at a time.
pub struct Control {
    lines: BufReader<UnixStream>,
    next: u64,
}

impl Control {
    fn connect(path: &Path) -> Self {
        let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        connect(&stream, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let mut control = Control { lines: BufReader::new(stream.into()), next: 0 };
        let hello = control.ask(Ask::Hello { protocol: PROTOCOL }, None);
        assert!(matches!(hello, Answer::Hello { .. }), "{hello:?}");
        control
    }

    pub fn ask(&mut self, ask: Ask, descriptor: Option<&OwnedFd>) -> Answer {
        self.next += 1;
        let mut line = serde_json::to_vec(&Request { id: self.next, ask }).unwrap();
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(AsFd::as_fd);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors.as_slice())));
        let slices = [IoSlice::new(&line)];
        sendmsg(self.lines.get_ref(), &slices, &mut ancillary, SendFlags::empty()).unwrap();
        let mut answer = String::new();
        self.lines.read_line(&mut answer).unwrap();
        let reply: Reply = serde_json::from_str(&answer).unwrap();
        assert_eq!(reply.id, self.next);
        reply.answer
    }
}

/// Waits for events and takes them.
pub fn wait_readable(fifo: &OwnedFd) {
    let mut descriptors = [PollFd::new(fifo, PollFlags::IN)];
    assert_ne!(poll(&mut descriptors, Some(&DEADLINE)).unwrap(), 0, "no event in time");
    let _ = rustix::io::read(fifo, &mut [0; 64]);
}
