//! Measures what a ring costs: a simulated guest's requests to a worker without a daemon. A line of
//! figures on standard output: the guest's, the worker's processor time and memory.

use anyhow::Context as _;
use clap::Parser;
use rustix::fs::OFlags;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};
use std::time::Duration;
use zerotap_rpc_schema::worker::{VbdId, journal_bytes};
use zerotap_tests::bare_worker::{BareWorker, Control, HandBackend};
use zerotap_tests::bench::{self, Figures, Pattern};
use zerotap_tests::blkfront::{Blkfront, Options, state};
use zerotap_tests::footprint;
use zerotap_tests::guest::Domain;
use zerotap_tests::simhost::SimHost;

/// The first guest's.
const DOMID: u16 = 1;
const DEVID: u32 = 51712;
const MEMORY_BYTES: u64 = 64 << 20;

/// Reads at random of a simulated guest by a bare worker.
#[derive(Debug, Parser)]
struct Args {
    /// The disk's image.
    #[arg(long)]
    image: PathBuf,
    /// How long.
    #[arg(long)]
    seconds: f64,
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    block_bytes: u64,
    /// Requests in flight.
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Queues.
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Log2 of a ring's pages, 0 to 4.
    #[arg(long, default_value_t = 0)]
    ring_order: u32,
    /// Microseconds to look at the ring before asking for an event.
    #[arg(long, default_value_t = 0)]
    spin_us: u64,
    /// Give the rings journals.
    #[arg(long)]
    journal: bool,
    /// What tells the worker how idle the host is.
    #[arg(long, default_value = "/proc/stat")]
    stat: PathBuf,
    /// All of a request goes into one page of the guest's: it has no more than 32 768 to grant.
    #[arg(long)]
    one_page: bool,
    /// The worker has the first CPU and the guest the second, and neither another.
    #[arg(long, conflicts_with = "guests")]
    pinned: bool,
    /// So many guests at once, each with a CPU that it shares with its queue. IOPS and processor
    /// time are of all of them, the other figures of the first.
    #[arg(long)]
    guests: Option<u16>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let (sim_dir, own) = (memory.path().join("host"), memory.path().join("own"));
    std::fs::create_dir(&own)?;
    let host = SimHost::start(&sim_dir)?;
    // Not to block matters only on tmpfs: io_uring would have a thread of the kernel's read there.
    let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed();
    let image = File::options().read(true).custom_flags(flags).open(&args.image);
    let image = image.with_context(|| format!("open {}", args.image.display()))?;
    let stat = File::open(&args.stat);
    let stat = stat.with_context(|| format!("open {}", args.stat.display()))?;
    let worker = BareWorker::start_told(&host, &own, image, true, Some(stat))?;
    if args.pinned {
        pin(Some(worker.pid()), 0)?;
        pin(None, 1)?;
    }
    let plan = bench::Plan {
        pattern: Pattern::RandRead,
        block_bytes: args.block_bytes,
        depth: args.depth,
        time: Duration::from_secs_f64(args.seconds),
        spin: Duration::from_micros(args.spin_us),
        one_page: args.one_page,
    };
    let before = footprint::cpu_ns(worker.pid())?;
    let control = Mutex::new(worker.control()?);
    let guests = args.guests.unwrap_or(1);
    let connected = Barrier::new(guests.into());
    let begin = |number: u16| {
        let mut control = control.lock().expect("no guest panics");
        let before = threads(worker.pid())?;
        let front = connect(&args, &host, &own, &worker, &mut control, DOMID + number)?;
        let all = threads(worker.pid())?;
        for new in all.into_iter().filter(|it| args.guests.is_some() && !before.contains(it)) {
            pin(Some(new), number.into())?;
        }
        anyhow::Ok(front)
    };
    let guest = |number: u16| -> anyhow::Result<Figures> {
        // Whatever becomes of it, the others are not kept waiting.
        let front = begin(number);
        connected.wait();
        if args.guests.is_some() {
            pin(None, number.into())?;
        }
        let (mut front, _backend) = front?;
        bench::run(&mut front, &plan)
    };
    let ran = std::thread::scope(|scope| {
        let guest = &guest;
        let guests: Vec<_> = (0..guests).map(|number| scope.spawn(move || guest(number))).collect();
        let ends = guests.into_iter().map(|it| it.join().expect("no guest panics"));
        ends.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let cpu_ns = footprint::cpu_ns(worker.pid())? - before;
    let mut said = serde_json::to_value(&ran[0])?;
    said["iops"] = json!(ran.iter().map(|figures| figures.iops).sum::<f64>());
    let requests = ran.iter().map(|figures| figures.requests).sum::<u64>();
    said["worker_cpu_ns"] = json!(cpu_ns / requests.max(1));
    let mut control = control.into_inner().expect("no guest panics");
    let counters = control.counters(VbdId { domid: DOMID, devid: DEVID })?.counters;
    said["look_hits"] = json!(counters.look_hits);
    said["look_misses"] = json!(counters.look_misses);
    said["worker_kib"] = json!(footprint::own_kib(worker.pid())?);
    println!("{said}");
    Ok(())
}

/// A guest whose disk the worker serves.
fn connect(
    args: &Args,
    host: &SimHost,
    own: &Path,
    worker: &BareWorker,
    control: &mut Control,
    domid: u16,
) -> anyhow::Result<(Blkfront, HandBackend)> {
    let (queues, ring_order) = (args.queues, args.ring_order);
    let options =
        Options { checked: false, queues, ring_order, devid: DEVID, ..Options::default() };
    let vbd = VbdId { domid, devid: DEVID };
    let domain = Domain::create(host.dir(), domid, MEMORY_BYTES, false)?;
    let image = control.image().expect("a control connection was greeted");
    let mut backend = HandBackend::offer(host, vbd, &image)?;
    let mut front = Blkfront::announce(domain, options)?;
    front.publish()?;
    let ring = backend.ring()?;
    let mut journals = Vec::new();
    for (number, queue) in ring.queues.iter().enumerate().filter(|_| args.journal) {
        let path = own.join(format!("journal-{domid}-{number}"));
        let journal = File::options().create_new(true).read(true).write(true).open(path)?;
        journal.set_len(journal_bytes(queue.ring_refs.len()) as u64)?;
        journals.push(journal);
    }
    worker.connect_with(control, vbd, ring, true, &journals)?;
    backend.set_state(state::CONNECTED)?;
    front.adopt_offer()?;
    Ok((front, backend))
}

/// A process's threads.
fn threads(pid: u32) -> anyhow::Result<Vec<u32>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let number = |task: std::io::Result<std::fs::DirEntry>| {
        let name = task?.file_name();
        name.to_str().and_then(|name| name.parse().ok()).context("a thread's number")
    };
    tasks.map(number).collect()
}

/// Lets a thread, or this one, run on one CPU only.
fn pin(pid: Option<u32>, cpu: usize) -> anyhow::Result<()> {
    let pid = match pid {
        Some(pid) => Some(Pid::from_raw(i32::try_from(pid)?).context("a process")?),
        None => None,
    };
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(pid, &set).context("pin to a CPU")
}
