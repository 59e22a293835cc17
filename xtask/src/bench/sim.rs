//! The simulated host: a guest's ring to the disk and back, beside fio on the very same file.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figure::{
    ATTACH, ATTACH_LIMIT_MS, Figure, IDLE_RSS, IDLE_RSS_LIMIT_MIB, SIM_CPU_4K, SIM_LATENCY,
    SIM_READ_1M, SIM_READ_4K, SIM_READ_4K_WOKEN, SIM_WRITE_4K,
};
use super::{PAIRS, fio, in_turn, pause, ring};
use crate::rpc::Client;
use crate::sim_host::SimHost;
use crate::{packages, process};

pub(super) const DISK_MIB: u64 = 1024;
/// Seconds of each run.
const RUN_SECONDS: u32 = 4;
/// How long the guest looks at its ring before it sleeps, in microseconds: longer than a request
/// takes. It stands for a guest with CPUs of its own, and leaves the ring and the worker to
/// measure.
const GUEST_LOOKS_US: u32 = 1000;
/// Attachments whose median counts.
const ATTACHMENTS: usize = 21;
const DP: &str = "bench";

pub(crate) fn measure() -> Result<Vec<Figure>> {
    packages::ensure(packages::FOR_BENCH)?;
    let host = SimHost::start("release")?;
    let mut bench = Bench::new(&host)?;
    let mut figures = bench.attachments()?;
    figures.extend(bench.beside_fio()?);
    figures.extend(pause::pauses(&mut bench)?);
    figures.push(pause::journal(&bench)?);
    figures.extend(ring::measure(&host, &bench.image)?);
    Ok(figures)
}

/// What a guest does.
pub(super) struct Load {
    pub(super) pattern: &'static str,
    pub(super) block: &'static str,
    pub(super) depth: u32,
    pub(super) seconds: u32,
    pub(super) looks_us: u32,
}

pub(super) const READ_4K: Load =
    Load { pattern: "randread", block: "4K", depth: 32, seconds: RUN_SECONDS, looks_us: 0 };
const WRITE_4K: Load = Load { pattern: "randwrite", looks_us: GUEST_LOOKS_US, ..READ_4K };
const READ_4K_ALONE: Load = Load { depth: 1, looks_us: GUEST_LOOKS_US, ..READ_4K };
const READ_1M: Load = Load { pattern: "read", block: "1M", depth: 8, ..READ_4K };

/// A disk on the simulated host.
pub(super) struct Bench<'a> {
    host: &'a SimHost,
    pub(super) client: Client,
    sr: String,
    vdi: String,
    pub(super) image: PathBuf,
    next_domid: u16,
}

impl<'a> Bench<'a> {
    /// A disk whose every block was written: reads of holes would never reach the device.
    pub(super) fn new(host: &'a SimHost) -> Result<Self> {
        let mut client = Client::connect(&host.socket())?;
        let sr = "5ca1ab1e-0000-4000-8000-00000000be9c".to_owned();
        let path = host.storage();
        client.call(
            "SR.create",
            &json!({ "sr": sr, "name_label": "bench", "name_description": "",
                     "device_config": { "path": path } }),
        )?;
        let size = DISK_MIB << 20;
        let vdi_info = json!({ "name_label": "bench", "virtual_size": size });
        let made = client.call("VDI.create", &json!({ "sr": sr, "vdi_info": vdi_info }))?;
        let vdi = made["vdi"].as_str().context("VDI.create answers a key")?.to_owned();
        let image = path.join(format!("{vdi}.raw"));
        let mut fill = Command::new("dd");
        fill.args(["if=/dev/urandom", "bs=1M", "oflag=direct", "conv=notrunc", "status=none"])
            .arg(format!("of={}", image.display()))
            .arg(format!("count={DISK_MIB}"));
        process::run(&mut fill)?;
        Ok(Bench { host, client, sr, vdi, image, next_domid: 1 })
    }

    pub(super) fn use_of_vdi(&self) -> Value {
        json!({ "dp": DP, "sr": self.sr, "vdi": self.vdi, "vm": "0" })
    }

    pub(super) fn attach_and_activate(&mut self) -> Result<()> {
        let mut params = self.use_of_vdi();
        params["read_write"] = json!(true);
        self.client.call("VDI.attach3", &params)?;
        self.client.call("VDI.activate3", &self.use_of_vdi())?;
        Ok(())
    }

    pub(super) fn release(&mut self) -> Result<()> {
        self.client.call("VDI.deactivate", &self.use_of_vdi())?;
        self.client.call("VDI.detach", &self.use_of_vdi())?;
        Ok(())
    }

    /// How long until a worker is ready, and how much memory it then has.
    fn attachments(&mut self) -> Result<Vec<Figure>> {
        let (mut times, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..ATTACHMENTS {
            let started = Instant::now();
            self.attach_and_activate()?;
            times.push((started.elapsed().as_secs_f64() * 1e3, ATTACH_LIMIT_MS));
            let worker = self.worker()?;
            let kib = worker["rss_kib"].as_f64().context("a worker's rss_kib")?;
            sizes.push((kib / 1024.0, IDLE_RSS_LIMIT_MIB));
            self.release()?;
        }
        Ok(vec![Figure::from_pairs(&ATTACH, &times), Figure::from_pairs(&IDLE_RSS, &sizes)])
    }

    fn beside_fio(&mut self) -> Result<Vec<Figure>> {
        self.attach_and_activate()?;
        let (mut iops, mut cpu, mut mib) = (Vec::new(), Vec::new(), Vec::new());
        let (mut woken, mut writes, mut latency) = (Vec::new(), Vec::new(), Vec::new());
        let image = &self.image.clone();
        let theirs =
            |pattern, block, depth| move || fio::run(image, pattern, block, depth, RUN_SECONDS);
        for pair in 1..=PAIRS {
            println!("simulated host, pair {pair} of {PAIRS}");
            let (ours, peer) = in_turn(
                pair,
                || self.guest(&Load { looks_us: GUEST_LOOKS_US, ..READ_4K }),
                theirs("randread", "4k", 32),
            )?;
            iops.push((ours.iops, peer.iops));
            let ours = self.guest(&READ_4K)?;
            woken.push((ours.iops, peer.iops));
            // Of the dearer of both: this worker wakes its guest.
            cpu.push((ours.cpu_us, peer.cpu_us));
            let (ours, peer) = in_turn(pair, || self.guest(&READ_1M), theirs("read", "1m", 8))?;
            mib.push((ours.mib, peer.mib));
            let ours = || self.guest(&WRITE_4K);
            let (ours, peer) = in_turn(pair, ours, theirs("randwrite", "4k", 32))?;
            writes.push((ours.iops, peer.iops));
            let ours = || self.guest(&READ_4K_ALONE);
            let (ours, peer) = in_turn(pair, ours, theirs("randread", "4k", 1))?;
            latency.push((1e6 / ours.iops, 1e6 / peer.iops));
        }
        self.release()?;
        Ok(vec![
            Figure::from_pairs(&SIM_READ_4K, &iops),
            Figure::from_pairs(&SIM_READ_4K_WOKEN, &woken),
            Figure::from_pairs(&SIM_CPU_4K, &cpu),
            Figure::from_pairs(&SIM_READ_1M, &mib),
            Figure::from_pairs(&SIM_WRITE_4K, &writes),
            Figure::from_pairs(&SIM_LATENCY, &latency),
        ])
    }

    /// One guest from plug to unplug; the worker's processor time is counted over all of it.
    fn guest(&mut self, load: &Load) -> Result<fio::Run> {
        let pid = self.worker()?["pid"].as_u64().context("a worker's pid")?;
        let before = cpu_us(pid)?;
        let report = self.load(load, |_| Ok(()))?;
        let after = cpu_us(pid)?;
        let number = |key: &str| report[key].as_f64().context("zerotap-simguest's figures");
        Ok(fio::Run {
            iops: number("iops")?,
            mib: number("mib_per_second")?,
            cpu_us: (after - before) / number("requests")?,
        })
    }

    /// One guest from plug to unplug, and what is done to it meanwhile: what it reports.
    pub(super) fn load(
        &mut self,
        load: &Load,
        meanwhile: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Value> {
        let domid = self.next_domid;
        self.next_domid += 1;
        let mut command = self.host.program("zerotap-simguest");
        command
            .arg("--dir")
            .arg(self.host.sim_dir())
            .args(["--domid", &domid.to_string(), "--bench", load.pattern, "--bs", load.block])
            .args(["--depth", &load.depth.to_string(), "--seconds", &load.seconds.to_string()])
            .args(["--spin-us", &load.looks_us.to_string()])
            .stdout(Stdio::piped());
        let guest = command.spawn().context("start zerotap-simguest")?;
        self.plug(domid)?;
        meanwhile(self)?;
        let report = report(guest)?;
        let place = json!({ "domid": domid, "device": "xvda" });
        self.client.call("VBD.unplug", &place)?;
        Ok(report)
    }

    /// IOPS of a worker without a daemon on the disk's image, with and without a journal.
    pub(super) fn journaled(&self, journal: bool) -> Result<f64> {
        let mut command = self.host.program("zerotap-ringcost");
        command.arg("--image").arg(&self.image);
        command.args(["--seconds", &RUN_SECONDS.to_string()]).stdout(Stdio::piped());
        command.args(["--spin-us", &GUEST_LOOKS_US.to_string()]);
        if journal {
            command.arg("--journal");
        }
        let report = report(command.spawn().context("start zerotap-ringcost")?)?;
        report["iops"].as_f64().context("zerotap-ringcost's IOPS")
    }

    /// What names the VDI in a call.
    pub(super) fn vdi(&self) -> Value {
        json!({ "sr": self.sr, "vdi": self.vdi })
    }

    /// The guest makes its domain by itself: until then there is nothing to plug into.
    fn plug(&mut self, domid: u16) -> Result<()> {
        let limit = Instant::now() + std::time::Duration::from_secs(10);
        let params = json!({ "domid": domid, "device": "xvda", "sr": self.sr, "vdi": self.vdi });
        loop {
            match self.client.call("VBD.plug", &params) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > limit => return Err(error),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }

    pub(super) fn worker(&mut self) -> Result<Value> {
        let workers = self.client.call("Worker.list", &json!({}))?;
        workers.get(0).cloned().context("a worker serves the VDI")
    }
}

/// The last line that a program of the tests says: what it measured.
fn report(program: Child) -> Result<Value> {
    let output = program.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "a measuring program: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().context("a measuring program says what it measured")?;
    serde_json::from_str(last).with_context(|| last.to_owned())
}

/// Processor time of a process so far, all its threads, microseconds.
fn cpu_us(pid: u64) -> Result<f64> {
    const TICK_US: f64 = 1e4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>();
    Ok(ticks.context("a process's times")? * TICK_US)
}
