//! Times a daemon as its callers see it, and prints what it measured as one JSON object.
//!
//! It is the message switch and, over it, XAPI: one session whose calls overlap. Only `SR.scan2` is
//! asked at the JSON-RPC door, where no switch's handling of megabytes counts. `cargo xtask bench`
//! starts it beside a daemon of its own, and judges.

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerotap_tests::harness::{Rpc, eventually, http, uuid};
use zerotap_tests::message_switch::{Caller, Switch};
use zerotap_tests::pause;

/// Attachments one after the other.
const ATTACHMENTS: usize = 101;
/// VDIs attached and activated at a time.
const PARALLEL: usize = 256;
/// Rounds of that.
const ROUNDS: usize = 3;
/// Volumes of the SR that is scanned.
const VOLUMES: usize = 10_000;
/// Scans that count, and how long others warm up before them.
const SCANS: usize = 11;
const WARM_UP: Duration = Duration::from_secs(4);
/// How long idle workers are watched.
const IDLE: Duration = Duration::from_secs(5);

/// Calls a daemon as XAPI does, and measures.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to be the message switch.
    #[arg(long)]
    switch: PathBuf,
    /// The daemon's JSON-RPC socket.
    #[arg(long)]
    socket: PathBuf,
    /// The daemon's state database.
    #[arg(long)]
    state: PathBuf,
    /// The daemon's process.
    #[arg(long)]
    pid: u32,
    /// The simulated host's directory.
    #[arg(long)]
    sim_dir: PathBuf,
    /// An empty directory for SRs.
    #[arg(long)]
    storage: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let switch = Switch::start(&args.switch)?;
    let mut caller = eventually("the daemon serves the queue", || {
        let mut caller = switch.caller()?;
        Ok(caller.call("SR.list", &json!({"dbg": "bench"})).ok().map(|_| caller))
    })?;
    let rpc = Rpc::new(&args.socket);
    let pauses = pause::of_copies(&rpc, &args.sim_dir, &args.storage)?;
    println!("guest's wait while its disk is copied, each copy: {pauses:.1?} ms");
    let scans = scans(&rpc, &args.storage)?;
    let sr = make_sr(&rpc, &args.storage.join("disks"))?;
    let vdis = (0..PARALLEL).map(|_| make_vdi(&rpc, &sr)).collect::<anyhow::Result<Vec<_>>>()?;
    let disks = Disks { sr, vdis };
    let commit = Commit::new(&args.state)?;
    let one_by_one = disks.one_by_one(&mut caller, &commit)?;
    let commits_per_attach = disks.commits_per_attach(&mut caller, &args.state)?;
    let mut parallel_seconds = Vec::new();
    let (mut rss_mib, mut idle_percent) = (0.0, 0.0);
    for round in 1..=ROUNDS {
        let started = Instant::now();
        let attached = disks.post(&mut caller, "VDI.attach3")?;
        let activated = disks.post(&mut caller, "VDI.activate3")?;
        disks.await_all(&mut caller, &attached)?;
        disks.await_all(&mut caller, &activated)?;
        parallel_seconds.push(started.elapsed().as_secs_f64());
        if round == ROUNDS {
            rss_mib = resident_mib(args.pid)?;
            idle_percent = idle_percent_of(&rpc)?;
        }
        for method in ["VDI.deactivate", "VDI.detach"] {
            let ended = disks.post(&mut caller, method)?;
            disks.await_all(&mut caller, &ended)?;
        }
    }
    switch.check()?;
    println!(
        "{}",
        json!({
            "one_by_one": one_by_one, "commits_per_attach": commits_per_attach,
            "parallel_seconds": parallel_seconds, "rss_mib": rss_mib,
            "idle_percent": idle_percent, "scan_ms": scans, "pause_ms": pauses,
        })
    );
    Ok(())
}

/// VDIs that are used.
struct Disks {
    sr: String,
    vdis: Vec<String>,
}

impl Disks {
    fn params(&self, vdi: &str) -> Value {
        let sr = &self.sr;
        json!({"dbg": "bench", "dp": "bench", "sr": sr, "vdi": vdi, "vm": "5", "read_write": true})
    }

    fn post(&self, caller: &mut Caller, method: &str) -> anyhow::Result<Vec<i64>> {
        self.vdis.iter().map(|vdi| caller.post(method, &self.params(vdi))).collect()
    }

    fn await_all(&self, caller: &mut Caller, messages: &[i64]) -> anyhow::Result<()> {
        for message in messages {
            let answer = caller.answer(*message)?;
            ensure!(answer.is_ok(), "{answer:?}");
        }
        Ok(())
    }

    /// Of each attachment: a commit, attach3, attach3 with activate3; milliseconds.
    fn one_by_one(&self, caller: &mut Caller, commit: &Commit) -> anyhow::Result<Vec<[f64; 3]>> {
        let params = self.params(&self.vdis[0]);
        let mut times = Vec::new();
        for number in 0..ATTACHMENTS {
            let commit_ms = commit.measure(number)?;
            let started = Instant::now();
            caller.result("VDI.attach3", &params)?;
            let attach_ms = milliseconds(started);
            caller.result("VDI.activate3", &params)?;
            times.push([commit_ms, attach_ms, milliseconds(started)]);
            caller.result("VDI.deactivate", &params)?;
            caller.result("VDI.detach", &params)?;
        }
        Ok(times)
    }

    fn commits_per_attach(&self, caller: &mut Caller, state: &Path) -> anyhow::Result<f64> {
        let before = transactions(state)?;
        let attached = self.post(caller, "VDI.attach3")?;
        self.await_all(caller, &attached)?;
        let commits = transactions(state)?.wrapping_sub(before);
        let detached = self.post(caller, "VDI.detach")?;
        self.await_all(caller, &detached)?;
        Ok(f64::from(commits) / f64::from(u32::try_from(self.vdis.len())?))
    }
}

/// What one durable commit costs on the state's file system: a page written and synced.
struct Commit(File);

impl Commit {
    fn new(state: &Path) -> anyhow::Result<Commit> {
        let path = state.with_extension("probe");
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        // It is only known to us.
        std::fs::remove_file(path)?;
        Ok(Commit(file))
    }

    fn measure(&self, number: usize) -> anyhow::Result<f64> {
        let started = Instant::now();
        self.0.write_all_at(&[0x5a; 4096], u64::try_from(number * 4096)?)?;
        self.0.sync_all()?;
        Ok(milliseconds(started))
    }
}

/// How many transactions the database has seen: `iChange` of the WAL index's header
/// (<https://www.sqlite.org/walformat.html>, 2.1), in the machine's byte order.
fn transactions(state: &Path) -> anyhow::Result<u32> {
    let mut index = state.as_os_str().to_owned();
    index.push("-shm");
    let mut word = [0; 4];
    File::open(&index)?.read_exact_at(&mut word, 8).context("the WAL index")?;
    Ok(u32::from_ne_bytes(word))
}

fn make_sr(rpc: &Rpc, dir: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(dir)?;
    let sr = uuid()?;
    let config = json!({ "path": dir });
    let params = json!({
        "sr": sr, "name_label": "bench", "name_description": "", "device_config": config,
    });
    rpc.raw("SR.create", &params)?;
    Ok(sr)
}

fn make_vdi(rpc: &Rpc, sr: &str) -> anyhow::Result<String> {
    let vdi_info = json!({"name_label": "bench", "virtual_size": 1 << 20});
    let made = rpc.raw("VDI.create", &json!({ "sr": sr, "vdi_info": vdi_info }))?;
    Ok(made["vdi"].as_str().context("VDI.create answers a key")?.to_owned())
}

/// `SR.scan2` once it is warm, milliseconds each, until the last byte of the answer was read.
fn scans(rpc: &Rpc, storage: &Path) -> anyhow::Result<Vec<f64>> {
    let dir = storage.join("many");
    let sr = make_sr(rpc, &dir)?;
    let first = make_vdi(rpc, &sr)?;
    // The others as another host of the pool would have made them.
    let record = std::fs::read_to_string(dir.join(format!("{first}.vdi.json")))?;
    for _ in 1..VOLUMES {
        let key = uuid()?;
        let text = record.replace(&first, &key);
        File::create(dir.join(format!("{key}.vdi.json")))?.write_all(text.as_bytes())?;
        File::create(dir.join(format!("{key}.raw")))?.set_len(1 << 20)?;
    }
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "SR.scan2", "params": { "sr": sr }})
        .to_string();
    let scan = || {
        let started = Instant::now();
        let answer = http::post(rpc.socket(), &call)?;
        let ms = milliseconds(started);
        let volumes = answer.body.matches("\"virtual_size\"").count();
        ensure!(volumes == VOLUMES, "{volumes} of {VOLUMES} volumes");
        Ok(ms)
    };
    let began = Instant::now();
    println!("scan, cold: {:.0} ms", scan()?);
    while began.elapsed() < WARM_UP {
        scan()?;
    }
    (0..SCANS).map(|_| scan()).collect()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// What all workers together take of one processor while nobody wants anything of them.
fn idle_percent_of(rpc: &Rpc) -> anyhow::Result<f64> {
    let workers = rpc.raw("Worker.list", &json!({}))?;
    let workers = workers.as_array().context("a list")?;
    ensure!(workers.len() == PARALLEL, "{} of {PARALLEL} workers", workers.len());
    let run_ns = || {
        let each = workers.iter().map(|worker| {
            // proc(5): time on a processor comes first, nanoseconds.
            let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", worker["pid"]))?;
            anyhow::Ok(stat.split(' ').next().context("schedstat")?.parse::<f64>()?)
        });
        each.sum::<anyhow::Result<f64>>()
    };
    let before = run_ns()?;
    std::thread::sleep(IDLE);
    Ok((run_ns()? - before) / 1e9 / IDLE.as_secs_f64() * 100.0)
}
