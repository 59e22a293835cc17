//! What most scenarios do first: an SR, a VDI, attach, activate, plug.

use super::loop_device::LoopDevice;
use super::{Host, Rpc, eventually, uuid};
use std::path::PathBuf;
use zerotap_rpc_schema::admin::{VbdParams, VbdPlugParams, VbdStat, VbdUnplugParams};
use zerotap_rpc_schema::smapi2::{
    DpParams, DpStat, DpStatParams, NoParams, Pairs, SrCreateParams, VdiAttachParams,
    VdiCreateParams, VdiInfo, VdiParams,
};
use zerotap_rpc_schema::{admin, table};

/// The device that scenarios plug.
pub const DEVICE: &str = "xvda";

/// A VDI in its SR.
#[derive(Debug, Clone)]
pub struct Vdi {
    /// The SR's uuid.
    pub sr: String,
    /// The VDI's key.
    pub vdi: String,
    /// The SR's directory.
    pub sr_dir: PathBuf,
}

/// A VDI that is attached and activated for a domain.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The VDI.
    pub vdi: Vdi,
    /// The datapath.
    pub dp: String,
    /// The domain.
    pub domid: u16,
    /// Whether it is read-only.
    pub read_only: bool,
}

impl Host {
    /// A new file SR in a directory of its own; answers its uuid and directory.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn create_sr(&self) -> anyhow::Result<(String, PathBuf)> {
        let sr = uuid()?;
        let dir = self.data().join(format!("sr-{sr}"));
        std::fs::create_dir(&dir)?;
        self.create_sr_at(&sr, &dir)?;
        Ok((sr, dir))
    }

    /// A new file SR in a directory that is there.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn create_sr_at(&self, sr: &str, dir: &std::path::Path) -> anyhow::Result<()> {
        let path = dir.display().to_string();
        let params = SrCreateParams {
            dbg: String::new(),
            sr: sr.to_owned(),
            name_label: "scenario".into(),
            name_description: String::new(),
            device_config: Pairs::from([("path".to_owned(), path)]),
            physical_size: 0,
        };
        self.rpc().call::<table::SrCreate>(&params).map(drop)
    }

    /// A new VDI in a new SR.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn create_vdi(&self, bytes: i64) -> anyhow::Result<Vdi> {
        let (sr, sr_dir) = self.create_sr()?;
        let vdi = self.create_vdi_in(&sr, bytes)?.vdi;
        Ok(Vdi { sr, vdi, sr_dir })
    }

    /// A new VDI.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn create_vdi_in(&self, sr: &str, bytes: i64) -> anyhow::Result<VdiInfo> {
        let (dbg, sr) = (String::new(), sr.to_owned());
        let params = VdiCreateParams { dbg, sr, vdi_info: VdiInfo::new("scenario", bytes) };
        self.rpc().call::<table::VdiCreate>(&params)
    }

    /// Makes a block device the volume of a new SR.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn adopt(&self, device: &LoopDevice) -> anyhow::Result<Vdi> {
        let (sr, sr_dir) = self.create_sr()?;
        let mut vdi_info = VdiInfo::new("a device", 0);
        let path = device.path().display().to_string();
        vdi_info.sm_config = Pairs::from([("device".to_owned(), path)]);
        let params = VdiCreateParams { dbg: String::new(), sr: sr.clone(), vdi_info };
        let vdi = self.rpc().call::<table::VdiCreate>(&params)?.vdi;
        Ok(Vdi { sr, vdi, sr_dir })
    }

    /// A new VDI in a new SR, attached and activated for `domid`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn serve(&self, domid: u16, bytes: i64) -> anyhow::Result<Disk> {
        self.create_vdi(bytes)?.serve(&self.rpc(), domid, false)
    }
}

impl Vdi {
    /// What names it in a call.
    #[must_use]
    pub fn params(&self) -> VdiParams {
        VdiParams { dbg: String::new(), sr: self.sr.clone(), vdi: self.vdi.clone() }
    }

    /// Attaches and activates it.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn serve(&self, rpc: &Rpc, domid: u16, read_only: bool) -> anyhow::Result<Disk> {
        let dp = format!("vbd/{domid}/{DEVICE}");
        let disk = Disk { vdi: self.clone(), dp, domid, read_only };
        disk.attach(rpc)?;
        disk.activate(rpc)?;
        Ok(disk)
    }

    /// Superstate and datapaths.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn stat(&self, rpc: &Rpc) -> anyhow::Result<DpStat> {
        let VdiParams { dbg, sr, vdi } = self.params();
        rpc.call::<table::DpStatVdi>(&DpStatParams { dbg, sr, vdi, unit: () })
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn destroy(&self, rpc: &Rpc) -> anyhow::Result<()> {
        rpc.call::<table::VdiDestroy>(&self.params())
    }

    /// The image's file: the largest in the SR's directory whose name has the key in it.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self) -> anyhow::Result<PathBuf> {
        let mut found = None;
        for entry in std::fs::read_dir(&self.sr_dir)? {
            let (path, bytes) = {
                let entry = entry?;
                (entry.path(), entry.metadata()?.len())
            };
            let ours = path.file_name().is_some_and(|n| n.to_string_lossy().contains(&self.vdi));
            if ours && found.as_ref().is_none_or(|(_, most)| bytes > *most) {
                found = Some((path, bytes));
            }
        }
        found.map(|(path, _)| path).ok_or_else(|| anyhow::anyhow!("no image of {}", self.vdi))
    }
}

impl Disk {
    /// What names this use of the VDI in a call.
    #[must_use]
    pub fn params(&self) -> DpParams {
        let VdiParams { dbg, sr, vdi } = self.vdi.params();
        DpParams { dbg, dp: self.dp.clone(), sr, vdi, vm: self.domid.to_string() }
    }

    /// `VDI.attach3`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn attach(&self, rpc: &Rpc) -> anyhow::Result<()> {
        let DpParams { dbg, dp, sr, vdi, vm } = self.params();
        let params = VdiAttachParams { dbg, dp, sr, vdi, vm, read_write: !self.read_only };
        rpc.call::<table::VdiAttach>(&params).map(drop)
    }

    /// `VDI.activate3`, or `VDI.activate_readonly`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn activate(&self, rpc: &Rpc) -> anyhow::Result<()> {
        match self.read_only {
            true => rpc.call::<table::VdiActivateReadonly>(&self.params()),
            false => rpc.call::<table::VdiActivate>(&self.params()),
        }
    }

    /// `VDI.deactivate`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn deactivate(&self, rpc: &Rpc) -> anyhow::Result<()> {
        rpc.call::<table::VdiDeactivate>(&self.params())
    }

    /// `VDI.detach`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn detach(&self, rpc: &Rpc) -> anyhow::Result<()> {
        rpc.call::<table::VdiDetach>(&self.params())
    }

    /// `VBD.plug` as [`DEVICE`].
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn plug(&self, rpc: &Rpc) -> anyhow::Result<()> {
        let VdiParams { dbg, sr, vdi } = self.vdi.params();
        let (domid, device, read_only) = (self.domid, DEVICE.into(), self.read_only);
        let params = VbdPlugParams { dbg, domid, device, sr, vdi, read_only, transfer: None };
        rpc.call::<table::VbdPlug>(&params).map(drop)
    }

    /// `VBD.unplug`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn unplug(&self, rpc: &Rpc, force: bool) -> anyhow::Result<()> {
        let params = VbdUnplugParams {
            dbg: String::new(),
            domid: self.domid,
            device: DEVICE.into(),
            force,
            timeout_seconds: None,
        };
        rpc.call::<table::VbdUnplug>(&params)
    }

    /// `VBD.stat`.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn stat(&self, rpc: &Rpc) -> anyhow::Result<VbdStat> {
        let (dbg, domid, device) = (String::new(), self.domid, DEVICE.into());
        rpc.call::<table::VbdStatMethod>(&VbdParams { dbg, domid, device })
    }

    /// Deactivates, detaches and destroys the VDI.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn remove(&self, rpc: &Rpc) -> anyhow::Result<()> {
        self.deactivate(rpc)?;
        self.detach(rpc)?;
        self.vdi.destroy(rpc)
    }

    /// The worker that serves it.
    ///
    /// # Errors
    /// What the daemon answers, or that there is none.
    pub fn worker(&self, rpc: &Rpc) -> anyhow::Result<admin::Worker> {
        let workers = rpc.call::<table::WorkerList>(&NoParams { dbg: String::new() })?;
        let ours = |worker: &admin::Worker| worker.vdi == self.vdi.vdi && worker.state == "serving";
        let found = workers.into_iter().find(ours);
        found.ok_or_else(|| anyhow::anyhow!("no worker serves {}", self.vdi.vdi))
    }

    /// kill -9 of the worker.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_worker(&self, rpc: &Rpc) -> anyhow::Result<u32> {
        let pid = self.worker(rpc)?.pid;
        kill_worker(pid)?;
        Ok(pid)
    }
}

/// kill -9 of a worker that may be known by its pid alone; returns once it is gone.
///
/// # Errors
/// When it does not go.
pub fn kill_worker(pid: u32) -> anyhow::Result<()> {
    super::processes::kill(pid);
    eventually("the worker is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        // A zombie that nobody has waited for yet is gone as well.
        Ok(stat.is_none_or(|stat| stat.contains(") Z ")).then_some(()))
    })
}
