//! A disk's life from an empty directory to an empty directory, and what is true in between.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, Rpc, Vdi, eventually, uuid};
use zerotap_tests::workload::random::Random;

/// The VDI's size.
pub(crate) const BYTES: usize = 1 << 20;
const DP: &str = "vbd/5/xvda";
/// What the VDI holds before it is reverted.
static OTHER: [u8; BYTES] = [0x3c; BYTES];
/// The host that has it active before it is unlocked.
pub(crate) const FOREIGNER: &str = "f0e1d2c3-0000-4000-8000-000000000001";

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// An empty directory.
    Nothing,
    /// An SR.
    Sr,
    /// An SR with a VDI that has content.
    Vdi,
    /// The same, and the VDI has a snapshot and other content since.
    Snapshot,
    /// The VDI is in an epoch that shall be forgotten.
    Epoch,
    /// The VDI is active on another host, which is dead.
    Foreign,
    /// An SR with a VDI that has content, detached.
    SrDetached,
    /// The VDI is attached for writing.
    Attached,
    /// The VDI is attached for reading.
    AttachedReadOnly,
    /// The VDI is active, and written to by its worker.
    Active,
}

/// A disk.
pub(crate) struct Life {
    /// Its SR.
    pub(crate) sr: String,
    /// The SR's directory.
    pub(crate) dir: PathBuf,
    key: String,
    /// What `VDI.snapshot` told.
    pub(crate) snapshot: Value,
    content: Vec<u8>,
    /// Whether the content is on the disk.
    written: bool,
}

impl Life {
    /// A life that has come so far.
    pub(crate) fn at(host: &Host, stage: Stage) -> Life {
        let (sr, key) = (uuid().unwrap(), uuid().unwrap());
        let dir = host.data().join(format!("sr-{sr}"));
        let mut random = Random::new(3);
        let content = std::iter::repeat_with(|| random.bits().to_le_bytes()).take(BYTES / 8);
        let content = content.flatten().collect();
        let mut life = Life { sr, dir, key, snapshot: Value::Null, content, written: false };
        life.reach(host, stage).expect("an undisturbed life");
        life
    }

    /// The life of a disk that somebody else wrote to.
    pub(crate) fn of(vdi: &Vdi) -> Life {
        let Vdi { sr, vdi: key, sr_dir: dir } = vdi.clone();
        Life { sr, dir, key, snapshot: Value::Null, content: Vec::new(), written: false }
    }

    fn reach(&mut self, host: &Host, stage: Stage) -> anyhow::Result<()> {
        let rpc = host.rpc();
        std::fs::create_dir(&self.dir)?;
        if stage >= Stage::Sr {
            host.create_sr_at(&self.sr, &self.dir)?;
        }
        if stage >= Stage::Vdi {
            rpc.raw("VDI.create", &self.create())?;
            std::fs::write(self.dir.join(format!("{}.raw", self.key)), &self.content)?;
            self.written = true;
        }
        match stage {
            Stage::Snapshot => {
                self.snapshot = rpc.raw("VDI.snapshot", &self.copy())?;
                std::fs::write(self.data(), OTHER.as_slice())?;
            }
            Stage::Epoch => {
                let epoch = self.vdi(json!({"vm": "5", "persistent": false}));
                rpc.raw("VDI.epoch_begin", &epoch)?;
            }
            Stage::Foreign => {
                let mut record = self.record()?;
                record["owner"] = json!({"host": FOREIGNER, "boot_id": "b", "epoch": 1,
                    "since": "2026-01-01T00:00:00Z"});
                record["epoch"] = json!(1);
                std::fs::write(self.record_path(), record.to_string())?;
            }
            _ => {}
        }
        if stage == Stage::SrDetached {
            rpc.raw("SR.detach", &json!({"sr": self.sr}))?;
        }
        if stage >= Stage::Attached {
            let read_write = stage != Stage::AttachedReadOnly;
            rpc.raw("VDI.attach3", &self.dp(json!({"vm": "5", "read_write": read_write})))?;
        }
        if stage == Stage::Active {
            rpc.raw("VDI.activate3", &self.dp(json!({"vm": "5"})))?;
            self.write_by_worker(&rpc)?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.join(format!("{}.raw", self.key))
    }

    fn record_path(&self) -> PathBuf {
        self.dir.join(format!("{}.vdi.json", self.key))
    }

    /// The VDI's record, as any host of the pool reads it.
    pub(crate) fn record(&self) -> anyhow::Result<Value> {
        let text = std::fs::read_to_string(self.record_path()).context("the record")?;
        serde_json::from_str(&text).context("a record is JSON")
    }

    /// The VDI itself holds what was written first.
    pub(crate) fn holds_its_content(&self) -> anyhow::Result<()> {
        ensure!(std::fs::read(self.data())? == self.content, "it holds something else");
        Ok(())
    }

    /// Whether its guest uses a copy, which is whole.
    pub(crate) fn is_in_an_epoch(&self, wanted: bool) -> anyhow::Result<()> {
        let files = self.files()?;
        let copy = ["raw", "vdi.json"].map(|end| format!("{}.boot.{end}", self.key));
        ensure!(copy.iter().all(|name| files.contains(name) == wanted), "{files:?}");
        if wanted {
            let bytes = std::fs::read(self.dir.join(&copy[0]))?;
            ensure!(bytes == self.content, "the copy holds something else");
        }
        Ok(())
    }

    /// 4 KiB in the middle, written and flushed over NBD.
    fn write_by_worker(&mut self, rpc: &Rpc) -> anyhow::Result<()> {
        const AT: usize = BYTES / 2;
        const DATA: [u8; 4096] = [0xa5; 4096];
        let vdi = Vdi { sr: self.sr.clone(), vdi: self.key.clone(), sr_dir: self.dir.clone() };
        let disk = Disk { vdi, dp: DP.into(), domid: 5, read_only: false };
        let (mut client, _, _) = Client::open(&disk.nbd(rpc)?)?;
        client.ask(1, 1, AT as u64, 4096)?;
        client.say(&[&DATA])?;
        ensure!(client.reply()? == (0, 1), "written");
        client.ask(3, 2, 0, 0)?;
        ensure!(client.reply()? == (0, 2), "flushed");
        self.content[AT..][..4096].copy_from_slice(&DATA);
        Ok(())
    }

    /// `VDI.create`'s parameters.
    pub(crate) fn create(&self) -> Value {
        let info = json!({"uuid": self.key, "name_label": "old", "virtual_size": BYTES,
            "sm_config": {"old": "value"}, "tags": ["old"]});
        json!({"sr": self.sr, "vdi_info": info})
    }

    /// The parameters of a call that makes a copy.
    pub(crate) fn copy(&self) -> Value {
        json!({"sr": self.sr, "vdi_info": {"vdi": self.key, "name_label": "copy",
            "virtual_size": BYTES}})
    }

    /// The parameters of a call for the VDI, with `more` of them.
    pub(crate) fn vdi(&self, more: Value) -> Value {
        let mut params = json!({"sr": self.sr, "vdi": self.key});
        if let (Value::Object(params), Value::Object(more)) = (&mut params, more) {
            params.extend(more);
        }
        params
    }

    /// The parameters of a call for the VDI's use.
    pub(crate) fn dp(&self, more: Value) -> Value {
        let mut params = self.vdi(more);
        params["dp"] = json!(DP);
        params
    }

    fn is_attached(&self, rpc: &Rpc) -> anyhow::Result<bool> {
        let listed = rpc.raw("SR.list", &json!({}))?;
        Ok(listed.as_array().is_some_and(|list| list.contains(&json!(self.sr))))
    }

    /// What SR.scan2 lists.
    pub(crate) fn volumes(&self, rpc: &Rpc) -> anyhow::Result<Vec<Value>> {
        let scan = rpc.raw("SR.scan2", &json!({"sr": self.sr}))?;
        scan[0].as_array().cloned().context("a list")
    }

    /// What must be true whatever was cut short, as soon as the daemon serves again.
    pub(crate) fn check(&self, host: &Host) -> anyhow::Result<()> {
        let rpc = host.rpc();
        if !self.is_attached(&rpc)? {
            ensure!(self.workers()?.is_empty(), "workers without an SR: {:?}", self.workers()?);
            return Ok(());
        }
        let mut data = BTreeSet::new();
        for volume in self.volumes(&rpc)? {
            let key = volume["vdi"].as_str().context("a key")?;
            let name = format!("{key}.raw");
            let bytes = std::fs::read(self.dir.join(&name)).with_context(|| name.clone())?;
            let size = volume["virtual_size"].as_u64().context("a size")?;
            ensure!(bytes.len() as u64 == size, "{name}: {} bytes, not {size}", bytes.len());
            // Reverted or not, and nothing in between.
            let not_yet = !self.snapshot.is_null() && key == self.key && bytes == OTHER;
            if self.written && !not_yet {
                ensure!(bytes[..BYTES] == self.content, "{name}: other bytes than were written");
                ensure!(bytes[BYTES..].iter().all(|&byte| byte == 0), "{name} grew by garbage");
            }
            data.insert(name);
        }
        // Scans do not list it.
        if self.dir.join(format!("{}.boot.vdi.json", self.key)).exists() {
            self.is_in_an_epoch(true)?;
            data.insert(format!("{}.boot.raw", self.key));
        }
        let orphans = self.files()?.into_iter().filter(|name| name.ends_with(".raw"));
        let orphans: BTreeSet<_> = orphans.filter(|name| !data.contains(name)).collect();
        ensure!(orphans.is_empty(), "data without a record: {orphans:?}");
        if !data.is_empty() {
            let stat = rpc.raw("DP.stat_vdi", &self.vdi(json!({})))?;
            let active = stat["superstate"][0] == "Activated";
            let listed = rpc.raw("Worker.list", &json!({}))?;
            let listed = listed.as_array().map_or(0, Vec::len);
            let runs = self.workers()?.len();
            ensure!((listed, runs) == (active.into(), active.into()), "{stat}: {listed}, {runs}");
        }
        Ok(())
    }

    fn files(&self) -> anyhow::Result<BTreeSet<String>> {
        let entries = std::fs::read_dir(&self.dir)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Ends the life in good order and makes sure that nothing is left of it.
    pub(crate) fn end(&self, host: &Host) -> anyhow::Result<()> {
        let rpc = host.rpc();
        let is_an_sr = self.dir.join("zerotap-sr.json").exists();
        if is_an_sr && !self.is_attached(&rpc)? {
            let config = json!({"path": self.dir});
            rpc.raw("SR.attach", &json!({"sr": self.sr, "device_config": config}))?;
        }
        if is_an_sr {
            rpc.raw("VDI.deactivate", &self.dp(json!({"vm": "5"})))?;
            rpc.raw("VDI.detach", &self.dp(json!({"vm": "5"})))?;
            self.check(host)?;
            for volume in self.volumes(&rpc)? {
                rpc.raw("VDI.destroy", &json!({"sr": self.sr, "vdi": volume["vdi"]}))?;
            }
            eventually("no intent is left", || Ok((rows(host, "intent")? == 0).then_some(())))?;
            rpc.raw("SR.destroy", &json!({"sr": self.sr}))?;
        }
        for table in ["sr", "datapath", "worker", "intent"] {
            ensure!(rows(host, table)? == 0, "rows are left in {table}");
        }
        ensure!(self.files()?.is_empty(), "files are left: {:?}", self.files()?);
        for dir in ["worker", "nbd"] {
            let sockets = std::fs::read_dir(host.run_dir().join(dir))?.count();
            ensure!(sockets == 0, "{sockets} sockets are left in {dir}");
        }
        ensure!(self.workers()?.is_empty(), "workers are left: {:?}", self.workers()?);
        // A connection to xenstored that was lost at the last moment may not be back yet.
        eventually("nothing is amiss", || {
            let status = rpc.raw("Host.status", &json!({}))?;
            ensure!(status["trouble"] == json!([]), "{status}");
            Ok(Some(()))
        })?;
        std::fs::remove_dir(&self.dir).map_err(Into::into)
    }

    /// kill -9 of its workers, as a reboot of the host ends them.
    pub(crate) fn kill_workers(&self) -> anyhow::Result<()> {
        for pid in self.workers()? {
            let pid = rustix::process::Pid::from_raw(pid.parse()?).context("a pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        eventually("the workers are gone", || Ok(self.workers()?.is_empty().then_some(())))
    }

    /// The pids of the VDI's workers, whoever knows of them.
    fn workers(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            // It may have ended by now; a zombie has no command line.
            let line = std::fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains("zerotap-datapath") && line.contains(&self.key) {
                found.push(name);
            }
        }
        Ok(found)
    }
}

/// How many rows a table of the daemon's database has, as any other program sees it.
fn rows(host: &Host, table: &str) -> anyhow::Result<usize> {
    host.sqlite(&format!("SELECT count(*) FROM {table}"))?.parse().context("a number")
}
