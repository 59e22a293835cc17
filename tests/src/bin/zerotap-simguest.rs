//! Runs a simulated guest: makes a domain, waits for its disk, checks or measures it, closes.

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerotap_tests::bench::{self, Pattern};
use zerotap_tests::blkfront::{Blkfront, Options};
use zerotap_tests::guest::Domain;
use zerotap_tests::simguest::{Expect, Guest, live};
use zerotap_tests::workload::{Plan, Progress, STALL_SECONDS_MAX};

/// How often progress is told.
const PROGRESS_MS: u64 = 200;

/// A simulated guest with one disk. Verified random I/O; exits 0 only when every byte was right.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The simulated host's directory.
    #[arg(long, env = "ZEROTAP_SIM_DIR")]
    dir: PathBuf,
    /// The new domain's number.
    #[arg(long)]
    domid: u16,
    /// The guest's memory: bytes, or with a suffix K, M, G.
    #[arg(long, default_value = "64M", value_parser = size)]
    memory: u64,
    /// The disk's device number; 51712 is xvda.
    #[arg(long, default_value_t = 51712)]
    devid: u32,
    /// End after so many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// End after so many requests.
    #[arg(long)]
    requests: Option<u64>,
    /// Of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests in flight.
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// The longest request, bytes.
    #[arg(long, default_value = "65536", value_parser = size)]
    size_max: u64,
    /// Never write.
    #[arg(long)]
    read_only: bool,
    /// The disk was never written: all that this guest has not written must be zeros.
    #[arg(long)]
    fresh: bool,
    /// Lines of JSON about the progress on standard output.
    #[arg(long, default_value = "none")]
    progress: ProgressFormat,
    /// Do not offer persistent grants.
    #[arg(long)]
    no_persistent: bool,
    /// Log2 of the ring's pages, 0 to 4.
    #[arg(long, default_value_t = 0)]
    ring_order: u32,
    /// Queues, as far as they are offered.
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Measure instead of checking.
    #[arg(long, value_name = "PATTERN")]
    bench: Option<BenchPattern>,
    /// Bytes of a measured request.
    #[arg(long, default_value = "4k", value_parser = size)]
    bs: u64,
    /// In a measurement, microseconds to look at the ring before asking for an event.
    #[arg(long, default_value_t = 0)]
    spin_us: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProgressFormat {
    Json,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "lower")]
enum BenchPattern {
    Read,
    Write,
    RandRead,
    RandWrite,
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        other => return Err(format!("{other} is no unit: K, M and G are")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let domain = Domain::create(&args.dir, args.domid, args.memory, args.bench.is_none())?;
    say(&format!("domain {}", args.domid))?;
    if args.bench.is_some() { measure(&args, domain) } else { verify(&args, domain) }
}

fn say(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    std::io::stdout().flush().context("standard output")
}

fn options(args: &Args) -> Options {
    Options {
        devid: args.devid,
        ring_order: args.ring_order,
        queues: args.queues,
        persistent: !args.no_persistent,
        checked: args.bench.is_none(),
        ..Options::default()
    }
}

fn verify(args: &Args, domain: Domain) -> anyhow::Result<()> {
    if args.seconds.is_none() && args.requests.is_none() {
        bail!("say how long: --seconds or --requests");
    }
    let plan = Plan {
        seed: args.seed,
        depth: args.depth,
        bytes_max: args.size_max,
        read_percent: if args.read_only { 100 } else { 50 },
        requests_max: args.requests.unwrap_or(u64::MAX),
        time_max: Duration::from_secs_f64(args.seconds.unwrap_or(86_400.0)),
        ..Plan::default()
    };
    let (domid, memory_bytes) = (args.domid, args.memory);
    let guest = Guest { domid, memory_bytes, options: options(args), plan };
    let expect = if args.fresh { Expect::Fresh } else { Expect::Used };
    let (progress, over) = (Arc::new(Progress::default()), Arc::new(Mutex::new(false)));
    if matches!(args.progress, ProgressFormat::Json) {
        let (progress, over) = (Arc::clone(&progress), Arc::clone(&over));
        std::thread::spawn(move || tell(&progress, &over));
    }
    let ended = live(domain, &guest, expect, &progress);
    *over.lock().expect("nobody panics who holds it") = true;
    match ended {
        Ok(ended) if ended.report.errors == 0 => say(&serde_json::to_string(&ended.report)?),
        Ok(ended) => {
            say(&serde_json::to_string(&ended.report)?)?;
            bail!("{} requests were answered with an error", ended.report.errors)
        }
        Err(error) => {
            let report = progress.report(Duration::ZERO, false);
            say(&serde_json::to_string(&report)?)?;
            Err(error)
        }
    }
}

/// Holds `over` while it tells: the report comes last.
fn tell(progress: &Progress, over: &Mutex<bool>) {
    let started = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(PROGRESS_MS));
        let over = over.lock().expect("nobody panics who holds it");
        if *over {
            return;
        }
        let report = progress.report(started.elapsed(), true);
        let line = json!({
            "progress": {
                "seconds": report.seconds,
                "requests": report.requests,
                "read_bytes": report.read_bytes,
                "write_bytes": report.write_bytes,
                "errors": report.errors,
            }
        });
        // Nobody may be reading; the guest goes on.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

fn measure(args: &Args, domain: Domain) -> anyhow::Result<()> {
    let seconds = args.seconds.context("say how long: --seconds")?;
    let pattern = match args.bench {
        Some(BenchPattern::Read) => Pattern::Read,
        Some(BenchPattern::Write) => Pattern::Write,
        Some(BenchPattern::RandWrite) => Pattern::RandWrite,
        Some(BenchPattern::RandRead) | None => Pattern::RandRead,
    };
    let plan = bench::Plan {
        pattern,
        block_bytes: args.bs,
        depth: args.depth,
        time: Duration::from_secs_f64(seconds),
        spin: Duration::from_micros(args.spin_us).min(Duration::from_secs(STALL_SECONDS_MAX)),
        one_page: false,
    };
    let mut front = Blkfront::connect(domain, options(args))?;
    let figures = bench::run(&mut front, &plan)?;
    front.close()?;
    say(&serde_json::to_string(&figures)?)
}
