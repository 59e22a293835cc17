//! The NBD server, beside qemu-nbd on the very same file, with QEMU's and libnbd's clients.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::figure::{Figure, NBD_4K, NBD_COPY};
use super::sim::{Bench, DISK_MIB};
use super::{PAIRS, in_turn};
use crate::sim_host::SimHost;
use crate::{packages, process};

/// Pairs of copies. The disk is the limit of both, and scatters more than they differ.
const COPY_PAIRS: usize = 15;
/// Requests of each run.
const REQUESTS: u32 = 150_000;
/// How long qemu-nbd may take to listen.
const START_SECONDS_MAX: u64 = 10;

/// A server and how each client names it.
struct Server {
    socket: String,
    name: String,
}

impl Server {
    /// Reads of 4 KiB, 32 at a time: requests a second.
    fn reads(&self) -> Result<f64> {
        let place = format!("nbd:unix:{}:exportname={}", self.socket, self.name);
        let mut client = Command::new("qemu-img");
        client.args(["bench", "-f", "raw", "-d", "32", "-s", "4096"]);
        let said = process::output(client.args(["-c", &REQUESTS.to_string(), &place]))?;
        let seconds = said
            .split_once("Run completed in ")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok())
            .with_context(|| format!("qemu-img bench says {said}"))?;
        Ok(f64::from(REQUESTS) / seconds)
    }

    /// A copy of the whole disk to nowhere: MiB a second.
    fn copy(&self) -> Result<f64> {
        let place = format!("nbd+unix:///{}?socket={}", self.name, self.socket);
        let started = Instant::now();
        process::run(Command::new("nbdcopy").args([&place, "null:"]))?;
        Ok(f64::from(u32::try_from(DISK_MIB)?) / started.elapsed().as_secs_f64())
    }
}

pub(crate) fn measure() -> Result<Vec<Figure>> {
    packages::ensure(packages::FOR_NBD_BENCH)?;
    let host = SimHost::start("release")?;
    let mut bench = Bench::new(&host)?;
    bench.attach_and_activate()?;
    let backend = bench.client.call("DP.attach_info", &bench.use_of_vdi())?;
    let uri = backend["implementations"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|way| (way[0] == json!("Nbd")).then(|| way[1]["uri"].as_str())?)
        .context("VDI.attach3 answers no Nbd")?;
    let parts: Vec<&str> = uri.split(':').collect();
    let [_, _, socket, export] = parts[..] else { bail!("{uri}: not an NBD URI of four parts") };
    let name = export.trim_start_matches("exportname=").to_owned();
    let ours = Server { socket: socket.to_owned(), name: name.clone() };
    let socket = host.storage().with_file_name("qemu-nbd.sock");
    let peer = QemuNbd::start(&bench.image, &socket, &name)?;
    let theirs = Server { socket: socket.display().to_string(), name };

    let (mut reads, mut copies) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        println!("NBD, pair {pair} of {PAIRS}");
        reads.push((ours.reads()?, theirs.reads()?));
    }
    for pair in 1..=COPY_PAIRS {
        println!("nbdcopy, pair {pair} of {COPY_PAIRS}");
        copies.push(in_turn(pair, || ours.copy(), || theirs.copy())?);
    }
    drop(peer);
    bench.release()?;
    Ok(vec![Figure::from_pairs(&NBD_4K, &reads), Figure::from_pairs(&NBD_COPY, &copies)])
}

/// qemu-nbd, ended when dropped.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(image: &Path, socket: &Path, name: &str) -> Result<QemuNbd> {
        let mut command = Command::new("qemu-nbd");
        command.args(["--aio=io_uring", "--cache=none", "--format=raw", "--persistent"]);
        // Its clients read, and nbdcopy has four connections.
        command.args(["--read-only", "--shared=8", "--export-name", name, "--socket"]);
        let child = command.arg(socket).arg(image).stdin(Stdio::null()).spawn();
        let server = QemuNbd(child.context("start qemu-nbd")?);
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while !socket.exists() {
            anyhow::ensure!(Instant::now() < limit, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
