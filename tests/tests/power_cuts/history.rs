//! A seed's history: calls and writes, a power cut amid a call, and what must be there then.

use crate::volume::{BLOCK, Volume, content};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zerotap_tests::harness::faults::Faults;
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, Rpc, Vdi, eventually, uuid};
use zerotap_tests::workload::random::Random;

const DP: &str = "vbd/5/xvda";
const VOLUMES_MAX: usize = 8;
const BLOCKS_MAX: usize = 512;
/// Calls pass a few more points than this at the most.
const POINTS: u64 = 12;

/// A host on a file system that loses its power.
pub(crate) struct History<'a> {
    host: Host,
    faults: Faults,
    device: &'a LoopDevice,
    sr: String,
    dir: PathBuf,
    random: Random,
    volumes: BTreeMap<String, Volume>,
    /// A volume that a call was making, or removing, when the power went.
    doubtful: Option<Volume>,
    /// The key of what a call was making was for the daemon to choose.
    nameless: bool,
    active: Option<String>,
    stamp: u64,
    /// Daemons that died amid a call.
    pub(crate) deaths: usize,
}

impl<'a> History<'a> {
    pub(crate) fn begin(seed: u64, device: &'a LoopDevice, top: &Path) -> anyhow::Result<Self> {
        let root = top.join(seed.to_string());
        let (sr, dir) = (uuid()?, root.join("sr"));
        std::fs::create_dir_all(&dir)?;
        let kept = format!("reattach_srs_at_boot = {}", seed.is_multiple_of(2));
        let mut host = Host::start_in(&kept, Some(&root.join("state.db")))?;
        let faults = host.faults()?;
        host.create_sr_at(&sr, &dir)?;
        let (volumes, random) = (BTreeMap::new(), Random::new(seed));
        let (doubtful, nameless, active, stamp, deaths) = (None, false, None, 0, 0);
        Ok(History {
            host,
            faults,
            device,
            sr,
            dir,
            random,
            volumes,
            doubtful,
            nameless,
            active,
            stamp,
            deaths,
        })
    }

    /// Some calls, the last of them cut short; then the power goes and comes back.
    pub(crate) fn live(&mut self, boot: usize) -> anyhow::Result<()> {
        for _ in 0..2 + self.random.below(5) {
            ensure!(self.act()?, "a call failed that nothing disturbed");
        }
        let point = usize::try_from(1 + self.random.below(POINTS))?;
        self.faults.arm(point)?;
        let done = self.act().with_context(|| format!("to be killed at point {point}"))?;
        self.device.cut_power()?;
        let passed = self.faults.disarm()?;
        self.deaths += usize::from(passed.len() >= point);
        let at =
            format!("{} calls, point {point} of {passed:?}", if done { "after" } else { "amid" });
        self.host.crash(&format!("boot {boot}"))?;
        self.device.mount_again()?;
        self.host.start_daemon()?;
        let config = json!({"path": self.dir});
        self.host.rpc().raw("SR.attach", &json!({"sr": self.sr, "device_config": config}))?;
        self.active = None;
        self.check().with_context(|| at)
    }

    /// One call, or a disk's use; false when the daemon died over it.
    fn act(&mut self) -> anyhow::Result<bool> {
        let n = self.random.below(self.volumes.len().max(1) as u64);
        let picked = self.volumes.keys().nth(usize::try_from(n)?).cloned();
        let full = self.volumes.len() >= VOLUMES_MAX;
        match (self.random.below(100), picked) {
            (_, None) => self.create(),
            (0..15, _) if !full => self.create(),
            (0..30, Some(key)) if self.active.as_ref() != Some(&key) => self.destroy(&key),
            (30..45, Some(key)) => self.grow(&key),
            (45..65, Some(key)) if !full => self.copy(&key),
            (_, Some(key)) => self.write(&key),
        }
    }

    /// Makes a call; false when the daemon died over it.
    fn call(&mut self, method: &str, params: &Value) -> anyhow::Result<Option<Value>> {
        match self.host.rpc().raw(method, params) {
            Ok(answer) => Ok(Some(answer)),
            Err(_) if self.host.daemon_has_ended()? => Ok(None),
            Err(error) => {
                // The connection goes a moment before the process.
                let gone = eventually("the daemon is gone", || {
                    Ok(self.host.daemon_has_ended()?.then_some(()))
                });
                gone.map(|()| None).with_context(|| format!("{method} {params}: {error:#}"))
            }
        }
    }

    fn create(&mut self) -> anyhow::Result<bool> {
        let key = uuid()?;
        let volume = Volume::new(key.clone(), 16 + usize::try_from(self.random.below(64))?);
        self.doubtful = Some(volume.clone());
        let info = json!({"uuid": key, "name_label": "v", "virtual_size": volume.bytes()});
        let done = self.call("VDI.create", &json!({"sr": self.sr, "vdi_info": info}))?;
        self.settle(done.is_some(), Some(volume));
        Ok(done.is_some())
    }

    fn destroy(&mut self, key: &str) -> anyhow::Result<bool> {
        self.doubtful = self.volumes.get(key).cloned();
        let done = self.call("VDI.destroy", &self.vdi(key))?.is_some();
        self.volumes.remove(key);
        self.settle(done, None);
        Ok(done)
    }

    fn grow(&mut self, key: &str) -> anyhow::Result<bool> {
        let blocks = self.volumes[key].blocks() + 1 + usize::try_from(self.random.below(32))?;
        if blocks > BLOCKS_MAX {
            return Ok(true);
        }
        let mut params = self.vdi(key);
        params["new_size"] = json!(blocks * BLOCK);
        let done = self.call("VDI.resize", &params)?.is_some();
        let volume = self.volumes.get_mut(key).context("known")?;
        if done {
            volume.resize(blocks);
        } else {
            volume.or_blocks = Some(blocks);
        }
        Ok(done)
    }

    /// A snapshot or a clone, of what may be in use.
    fn copy(&mut self, key: &str) -> anyhow::Result<bool> {
        let source = self.volumes[key].clone();
        let info = json!({"vdi": key, "name_label": "c", "virtual_size": source.bytes()});
        let method = ["VDI.snapshot", "VDI.clone"][usize::try_from(self.random.below(2))?];
        (self.doubtful, self.nameless) = (Some(source.copy(String::new())), true);
        let made = self.call(method, &json!({"sr": self.sr, "vdi_info": info}))?;
        let key =
            made.as_ref().and_then(|made| made["vdi"].as_str()).unwrap_or_default().to_owned();
        self.settle(made.is_some(), Some(source.copy(key)));
        Ok(made.is_some())
    }

    /// Uses a disk: what is written last may stay unflushed.
    fn write(&mut self, key: &str) -> anyhow::Result<bool> {
        if self.active.as_deref() != Some(key) && !(self.release()? && self.serve(key)?) {
            return Ok(false);
        }
        let vdi = Vdi { sr: self.sr.clone(), vdi: key.to_owned(), sr_dir: self.dir.clone() };
        let disk = Disk { vdi, dp: DP.into(), domid: 5, read_only: false };
        // The worker outlives a daemon that is dead; then nobody tells where it is.
        let Ok(place) = disk.nbd(&self.host.rpc()) else { return Ok(true) };
        let (mut client, _, _) = Client::open(&place)?;
        for cookie in 0..3 + self.random.below(12) {
            let volume = self.volumes.get_mut(key).context("known")?;
            if self.random.chance(20) {
                client.ask(3, cookie, 0, 0)?;
                ensure!(client.reply()? == (0, cookie), "a flush");
                volume.flushed();
                continue;
            }
            self.stamp += 1;
            let block = usize::try_from(self.random.below(volume.blocks() as u64))?;
            client.ask(1, cookie, (block * BLOCK) as u64, u32::try_from(BLOCK)?)?;
            client.say(&[&content(block, self.stamp)])?;
            ensure!(client.reply()? == (0, cookie), "a write");
            volume.written(block, self.stamp);
        }
        if self.random.chance(30) { self.release() } else { Ok(true) }
    }

    fn serve(&mut self, key: &str) -> anyhow::Result<bool> {
        let mut params = self.vdi(key);
        params["dp"] = json!(DP);
        params["vm"] = json!("5");
        let mut attach = params.clone();
        attach["read_write"] = json!(true);
        self.active = Some(key.to_owned());
        let attached = self.call("VDI.attach3", &attach)?.is_some();
        Ok(attached && self.call("VDI.activate3", &params)?.is_some())
    }

    /// Ends the use of the disk that is active: all of it is durable then.
    fn release(&mut self) -> anyhow::Result<bool> {
        let Some(key) = self.active.clone() else { return Ok(true) };
        let mut params = self.vdi(&key);
        params["dp"] = json!(DP);
        params["vm"] = json!("5");
        if self.call("VDI.deactivate", &params)?.is_none() {
            return Ok(false);
        }
        self.volumes.get_mut(&key).context("known")?.flushed();
        self.active = None;
        Ok(self.call("VDI.detach", &params)?.is_some())
    }

    fn vdi(&self, key: &str) -> Value {
        json!({"sr": self.sr, "vdi": key})
    }

    /// A call was answered: nothing of it is in doubt.
    fn settle(&mut self, answered: bool, made: Option<Volume>) {
        if answered {
            self.volumes.extend(made.map(|volume| (volume.key.clone(), volume)));
            (self.doubtful, self.nameless) = (None, false);
        }
    }

    /// What was answered is there, and nothing else but what was in doubt.
    fn check(&mut self) -> anyhow::Result<()> {
        // What a call left half done is cleared away behind the daemon's first answers.
        eventually("no intent is left", || {
            Ok((self.host.sqlite("SELECT count(*) FROM intent")? == "0").then_some(()))
        })?;
        let rpc = self.host.rpc();
        let mut told = listed(&rpc, &self.sr)?;
        if let Some(mut volume) = self.doubtful.take() {
            let unknown = || told.keys().find(|key| !self.volumes.contains_key(*key)).cloned();
            if std::mem::take(&mut self.nameless) {
                volume.key = unknown().unwrap_or_default();
            }
            if told.contains_key(&volume.key) {
                self.volumes.insert(volume.key.clone(), volume);
            }
        }
        for (key, volume) in &mut self.volumes {
            let bytes = told.remove(key).with_context(|| format!("volume {key} is lost"))?;
            volume.check(&self.dir.join(format!("{key}.raw")), bytes)?;
        }
        ensure!(told.is_empty(), "volumes that nobody made: {told:?}");
        self.check_files()?;
        let integrity = self.host.sqlite("PRAGMA integrity_check")?;
        ensure!(integrity == "ok", "SQLite: {integrity}");
        for table in ["datapath", "worker"] {
            let rows = self.host.sqlite(&format!("SELECT count(*) FROM {table}"))?;
            ensure!(rows == "0", "{rows} rows of another boot in {table}");
        }
        eventually("no trouble", || {
            Ok((rpc.raw("Host.status", &json!({}))?["trouble"] == json!([])).then_some(()))
        })
    }

    /// In the SR's directory is what the volumes are made of; and, until a volume's next change, a
    /// record that was not finished.
    fn check_files(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let whole = name.strip_prefix(".zerotap-").and_then(|name| name.strip_suffix(".tmp"));
            let whole = whole.unwrap_or(&name);
            let of_volume = [".raw", ".vdi.json"].iter().find_map(|end| whole.strip_suffix(end));
            let known = of_volume.is_some_and(|key| self.volumes.contains_key(key));
            let of_sr = ["zerotap-sr.json", ".zerotap-reserve"].contains(&&*name);
            ensure!(known || of_sr, "{name} is nobody's");
        }
        Ok(())
    }
}

/// Volumes and their sizes, as the daemon tells.
fn listed(rpc: &Rpc, sr: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let scan = rpc.raw("SR.scan2", &json!({"sr": sr}))?;
    let volumes = scan[0].as_array().context("a list")?;
    let told = volumes.iter().map(|volume| {
        let key = volume["vdi"].as_str().context("a key")?;
        Ok((key.to_owned(), volume["virtual_size"].as_u64().context("a size")?))
    });
    told.collect()
}
