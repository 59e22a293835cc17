//! `cargo xtask demo`: one disk's whole life on the simulated host, each RPC call shown as it goes.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::sim_host::SimHost;
use crate::xen::{Backend, Boot, Guest, Outcome};
use crate::{packages, process};

const SR: &str = "5a1ad000-0000-4000-8000-000000000001";
const DOMID: u16 = 1;
const DEVICE: &str = "xvda";
const DISK_MIB: u64 = 256;
/// Seconds of the guest's I/O.
const IO_SECONDS: u32 = 20;
const BAR_WIDTH: usize = 40;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The same story on real Xen, in QEMU.
    #[arg(long)]
    xen: bool,
    /// Leave the daemon up, and say what to try next.
    #[arg(long, conflicts_with = "xen")]
    keep: bool,
}

/// The command.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.xen {
        return on_xen();
    }
    let demo = Demo { host: SimHost::start("dev")? };
    println!("The daemon listens on {}\n", demo.host.socket().display());
    let played = demo.play(options.keep);
    if played.is_err() {
        eprintln!("the daemon's log:\n{}", demo.host.log());
    }
    played?;
    println!("demo: OK");
    if options.keep {
        demo.leave()?;
    }
    Ok(true)
}

struct Demo {
    host: SimHost,
}

impl Demo {
    fn play(&self, keep: bool) -> Result<()> {
        let path = self.host.storage();
        self.call(
            "SR.create",
            &json!({ "sr": SR, "name_label": "demo", "name_description": "one directory",
                     "device_config": { "path": path } }),
        )?;
        let vdi_info = json!({ "name_label": "demo disk", "virtual_size": DISK_MIB << 20 });
        let made = self.call("VDI.create", &json!({ "sr": SR, "vdi_info": vdi_info }))?;
        let vdi = made["vdi"].as_str().context("VDI.create answers a key")?.to_owned();
        let dp = format!("vbd/{DOMID}/{DEVICE}");
        let dp = json!({ "dp": dp, "sr": SR, "vdi": vdi, "vm": DOMID.to_string() });
        let mut attach = dp.clone();
        attach["read_write"] = json!(true);
        self.call("VDI.attach3", &attach)?;
        self.call("VDI.activate3", &dp)?;

        let mut guest = RunningGuest(self.start_guest()?);
        let place = json!({ "domid": DOMID, "device": DEVICE });
        self.call("VBD.plug", &json!({ "domid": DOMID, "device": DEVICE, "sr": SR, "vdi": vdi }))?;
        let counters = self.watch(&mut guest.0)?;
        self.call("VBD.unplug", &place)?;
        if keep {
            self.call("VBD.list", &json!({}))?;
            return check(&counters);
        }
        self.call("VDI.deactivate", &dp)?;
        self.call("VDI.detach", &dp)?;
        self.call("VDI.destroy", &json!({ "sr": SR, "vdi": vdi }))?;
        self.call("SR.destroy", &json!({ "sr": SR }))?;
        check(&counters)
    }

    /// Calls a method and shows both sides of it.
    fn call(&self, method: &str, params: &Value) -> Result<Value> {
        println!("--> {method} {params}");
        let answer = self.host.call(method, params)?;
        println!("<-- {answer}\n");
        Ok(answer)
    }

    fn start_guest(&self) -> Result<Child> {
        println!("A guest starts: domain {DOMID} of the simulated host\n");
        let mut guest = self
            .host
            .program("zerotap-simguest")
            .arg("--dir")
            .arg(self.host.sim_dir())
            .args(["--domid", &DOMID.to_string(), "--fresh", "--progress", "json"])
            .args(["--seconds", &IO_SECONDS.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .context("start zerotap-simguest")?;
        // Its first line says that the domain is there: only then it can be given a disk.
        let stdout = guest.stdout.as_mut().context("zerotap-simguest has no output")?;
        let mut byte = [0];
        let mut line = Vec::new();
        while byte != *b"\n" {
            std::io::Read::read_exact(stdout, &mut byte)?;
            line.extend(byte);
        }
        let line = String::from_utf8_lossy(&line);
        ensure!(line.trim() == format!("domain {DOMID}"), "zerotap-simguest said {line:?}");
        Ok(guest)
    }

    /// Draws the guest's progress. Near its end the disk is shown, while it is still connected.
    fn watch(&self, guest: &mut Child) -> Result<Value> {
        let stdout = guest.stdout.take().context("zerotap-simguest has no output")?;
        let mut shown = None;
        let mut last = Value::Null;
        for line in BufReader::new(stdout).lines() {
            last = serde_json::from_str(&line?).context("zerotap-simguest's progress")?;
            let Some(progress) = last.get("progress") else { continue };
            let seconds = progress["seconds"].as_f64().unwrap_or_default();
            draw(seconds, progress);
            if shown.is_none() && seconds > f64::from(IO_SECONDS) * 0.9 {
                shown =
                    Some(self.host.call("VBD.stat", &json!({ "domid": DOMID, "device": DEVICE }))?);
                println!();
                let show = ["vbd", "show", "--domid", &DOMID.to_string(), "--device", DEVICE];
                println!("\n$ zerotap {}", show.join(" "));
                println!("{}", process::output(&mut self.host.zerotap(&show))?);
            }
        }
        println!("\n");
        let status = guest.wait()?;
        ensure!(status.success(), "the guest found a wrong byte, or an error: {status}, {last}");
        ensure!(last["verified"] == json!(true), "the guest did not verify: {last}");
        println!("The guest: {last}\n");
        shown.context("the guest ended before its disk could be shown")
    }

    fn leave(self) -> Result<()> {
        println!(
            "\nThe daemon stays up. Try:\n  export ZEROTAP_SOCKET={socket}\n  {zerotap} status\n  \
             {zerotap} vdi ls\n  {zerotap} vbd ls\n  {zerotap} call rpc.discover\n\
             A guest:  {guest} --dir {sim} --domid 2 --seconds 60 &\n\
             A disk for it:  {zerotap} vbd plug --domid 2 --device xvda --vdi <uuid>\n\
             Its log: {log}",
            socket = self.host.socket().display(),
            zerotap = shown(&self.host.program("zerotap")),
            guest = shown(&self.host.program("zerotap-simguest")),
            sim = self.host.sim_dir().display(),
            log = self.host.directory().join("daemon.log").display(),
        );
        println!("To end it: {}", self.host.how_to_end()?);
        self.host.keep();
        Ok(())
    }
}

/// A guest that ends with the story, however that ends.
struct RunningGuest(Child);

impl Drop for RunningGuest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shown(command: &Command) -> String {
    process::shown(command)
}

/// The claim of the whole thing: every byte moved without a copy.
fn check(stat: &Value) -> Result<()> {
    let counters = &stat["counters"];
    let count = |key: &str| counters[key].as_u64().with_context(|| format!("counter {key}"));
    if count("copied_bytes")? != 0 || count("mapped_bytes")? == 0 {
        bail!("bytes were copied: {counters}");
    }
    Ok(())
}

fn draw(seconds: f64, progress: &Value) {
    let part = (seconds / f64::from(IO_SECONDS)).clamp(0.0, 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1 of a bar")]
    let filled = (part * BAR_WIDTH as f64) as usize;
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(BAR_WIDTH - filled));
    let requests = progress["requests"].as_u64().unwrap_or_default();
    let line = format!("[{bar}] {seconds:4.1} of {IO_SECONDS} s, {requests} requests verified");
    if std::io::stdout().is_terminal() {
        print!("\r{line}");
        let _ = std::io::stdout().flush();
    } else if requests > 0 && (seconds.fract() < 0.2 || part >= 1.0) {
        // A log gets a line a second.
        println!("{line}");
    }
}

/// The same story with a real guest: the scenario's scripts tell it.
fn on_xen() -> Result<bool> {
    packages::ensure(packages::FOR_XEN)?;
    let boot = Boot {
        guest: Guest::Pv,
        backend: Backend::Zerotap,
        dom0_script: include_str!("../xen/demo/demo.dom0.sh").to_owned(),
        guest_script: include_str!("../xen/demo/demo.guest.sh").to_owned(),
        vcpus: 1,
        keeps_grants: true,
        qemu: false,
        limit: Duration::from_secs(300),
    };
    let ended = boot.run()?;
    let passed = ended.outcome == Outcome::Passed;
    println!("demo: {}", if passed { "OK".to_owned() } else { format!("{}", ended.outcome) });
    Ok(passed)
}
