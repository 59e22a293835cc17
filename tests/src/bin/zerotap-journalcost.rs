//! Measures what a ring's journal costs: the same reads by a worker without a daemon, whose ring
//! has a journal or, as the protocol leaves open, none. A line of figures on standard output.

use clap::Parser;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use zerotap_rpc_schema::worker::{VbdId, journal_bytes};
use zerotap_tests::bare_worker::{BareWorker, HandBackend};
use zerotap_tests::bench::{self, Pattern};
use zerotap_tests::blkfront::{Blkfront, Options, state};
use zerotap_tests::guest::Domain;
use zerotap_tests::simhost::SimHost;

const DOMID: u16 = 1;
const MEMORY_BYTES: u64 = 64 << 20;

/// 4 KiB reads at random, 32 at a time, of a simulated guest by a bare worker.
#[derive(Debug, Parser)]
struct Args {
    /// The disk's image.
    #[arg(long)]
    image: PathBuf,
    /// How long.
    #[arg(long)]
    seconds: f64,
    /// Microseconds to look at the ring before asking for an event.
    #[arg(long, default_value_t = 0)]
    spin_us: u64,
    /// Give the ring a journal.
    #[arg(long)]
    journal: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let (sim_dir, own) = (memory.path().join("host"), memory.path().join("own"));
    std::fs::create_dir(&own)?;
    let host = SimHost::start(&sim_dir)?;
    let worker = BareWorker::start(&host, &own, &args.image, true)?;
    let mut control = worker.control()?;
    let options = Options { checked: false, ..Options::default() };
    let vbd = VbdId { domid: DOMID, devid: options.devid };
    let domain = Domain::create(host.dir(), DOMID, MEMORY_BYTES, false)?;
    let image = control.image().expect("a control connection was greeted");
    let mut backend = HandBackend::offer(&host, vbd, &image)?;
    let mut front = Blkfront::announce(domain, options)?;
    front.publish()?;
    let ring = backend.ring()?;
    let mut journals = Vec::new();
    for (number, queue) in ring.queues.iter().enumerate().filter(|_| args.journal) {
        let path = own.join(format!("journal-{number}"));
        let journal = File::options().create_new(true).read(true).write(true).open(path)?;
        journal.set_len(journal_bytes(queue.ring_refs.len()) as u64)?;
        journals.push(journal);
    }
    worker.connect_with(&mut control, vbd, ring, true, &journals)?;
    backend.set_state(state::CONNECTED)?;
    front.adopt_offer()?;
    let (block_bytes, depth, spin) = (4096, 32, Duration::from_micros(args.spin_us));
    let time = Duration::from_secs_f64(args.seconds);
    let plan = bench::Plan { pattern: Pattern::RandRead, block_bytes, depth, time, spin };
    let figures = bench::run(&mut front, &plan)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
