//! `zerotap vdi`: virtual disks. Their SR is found by itself unless `--sr` names it.

mod render;
mod usage;

use super::context::{Context, DBG, json, write};
use super::failure::Failure;
use super::locate::{self, Which};
use super::progress::told;
use super::size;
use clap::{ArgGroup, Args, Subcommand};
use usage::Use;
use zerotap_rpc_schema::admin::VdiUnlockParams;
use zerotap_rpc_schema::smapi2::{
    DpStatParams, SrInfo, SrParams, VdiCopyParams, VdiCreateParams, VdiInfo,
    VdiNameDescriptionParams, VdiNameLabelParams, VdiParams, VdiResizeParams, VdiRevertParams,
};
use zerotap_rpc_schema::table::{
    DpStatVdi, SrList, SrScan2, VdiClone, VdiCreate, VdiDestroy, VdiResize, VdiRevert,
    VdiSetNameDescription, VdiSetNameLabel, VdiSnapshot, VdiStat, VdiUnlock, WorkerList,
};

const CREATE_EXAMPLES: &str = "\
Examples:
  zerotap vdi create --sr $SR --name root --size 10G
  zerotap vdi create --sr $SR --name database --size 200G --preallocated
  zerotap vdi create --sr $SR --name lun0 --device /dev/mapper/lun0

Sizes are powers of 1024 (10G = 10GiB) and rounded up to 4 KiB. The VDI's uuid is printed.";

const COPY_EXAMPLES: &str = "\
Examples:
  zerotap vdi snapshot $VDI --name before-upgrade
  zerotap vdi clone $SNAPSHOT --name second-try

Neither needs the other afterwards: any may be destroyed first. On XFS and btrfs extents are shared:
it takes no time and no space, and the VDI may be in use. Elsewhere the data is copied, and the VDI
must not be active; past two seconds this tells how far it is.";

const REVERT_EXAMPLES: &str = "\
Example: zerotap vdi revert $SNAPSHOT

The VDI that the snapshot was taken of gets its content and size; what was written to it since is
lost, and the snapshot stays. The VDI must not be active. Whatever happens meanwhile, it holds the
old content or the new, whole.";

const UNLOCK_EXAMPLES: &str = "\
Example: zerotap vdi unlock $VDI --force-from 5f1c0a4e-… --reason 'host3 burnt down, ticket 4711'

An SR that several hosts see: a host that died with a VDI active keeps it until it is up again. Make
sure that it is dead, or that it has let go (`zerotap status` there tells its uuid): two hosts that
write to one disk destroy it. Refused while anything that this host can see has the data locked, and
for any host but the one that has it.";

const RESIZE_EXAMPLES: &str = "\
Example: zerotap vdi resize $VDI --size 20G

A VDI only grows. A Linux guest that uses it sees its new size at once; what is on the disk
(partition table, file system) is the guest's to grow. A VDI that is a block device becomes as large
as the device, which is to be grown first (lvextend).";

const USE_EXAMPLES: &str = "\
Example: the four steps of a VDI's use by domain 5
  zerotap vdi attach $VDI --domid 5 --device xvda      reserve it
  zerotap vdi activate $VDI --domid 5 --device xvda    start a worker for it
  zerotap vdi deactivate $VDI --domid 5 --device xvda  stop the worker
  zerotap vdi detach $VDI --domid 5 --device xvda      give it back

All four name the same datapath: --dp NAME, or vbd/<domid>/<device> from --domid and --device, or
`cli`. deactivate and detach succeed when there is nothing to do.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a VDI and print its uuid
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Remove a VDI that nothing uses, and its data
    Destroy(Which),
    /// List the VDIs of all attached SRs, or of one
    #[command(after_help = "--json prints an array of SR.scan2's results, one an SR.")]
    Ls(Ls),
    /// Show a VDI and the datapaths that use it
    #[command(after_help = "--json prints VDI.stat's result; DP.stat_vdi gives the datapaths.")]
    Show(Which),
    /// Keep a VDI's content of this moment in a new VDI, and print that one's uuid
    #[command(after_help = COPY_EXAMPLES)]
    Snapshot(Copy),
    /// Make a writable VDI with another's content, and print its uuid
    #[command(after_help = COPY_EXAMPLES)]
    Clone(Copy),
    /// Give a VDI the content of its snapshot, which stays
    #[command(after_help = REVERT_EXAMPLES)]
    Revert(Which),
    /// Take a VDI from another host that is dead and had it active
    #[command(after_help = UNLOCK_EXAMPLES)]
    Unlock(Unlock),
    /// Grow a VDI, also one in use
    #[command(after_help = RESIZE_EXAMPLES)]
    Resize(Resize),
    /// Rename or describe a VDI
    Rename(Rename),
    /// Reserve a VDI for a use: a datapath
    #[command(after_help = USE_EXAMPLES)]
    Attach(Use),
    /// Start to serve an attached VDI
    #[command(after_help = USE_EXAMPLES)]
    Activate(Use),
    /// Stop to serve a VDI
    #[command(after_help = USE_EXAMPLES)]
    Deactivate(Use),
    /// End a use of a VDI
    #[command(after_help = USE_EXAMPLES)]
    Detach(Use),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("extent").required(true).args(["size", "device"]))]
pub(crate) struct Create {
    /// The uuid of the SR to make it in
    #[arg(long)]
    sr: String,
    /// A name for people
    #[arg(long)]
    name: String,
    /// A description for people
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// How large it shall be: 64M, 10G, 512KiB
    #[arg(long, value_parser = size::parse)]
    size: Option<i64>,
    /// A block device that shall be the volume, whole, instead of a file
    #[arg(long, value_name = "PATH")]
    device: Option<String>,
    /// Take the whole space now; sparse when absent
    #[arg(long, conflicts_with = "device")]
    preallocated: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only this SR's
    #[arg(long)]
    sr: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    #[command(flatten)]
    which: Which,
    /// The new VDI's name; the source's when absent
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Unlock {
    #[command(flatten)]
    which: Which,
    /// The uuid of the host that has it; `zerotap vdi activate` names it
    #[arg(long, value_name = "HOST")]
    force_from: String,
    /// Why; it is kept in the daemon's log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    #[command(flatten)]
    which: Which,
    /// The new size, not smaller than the old one: 64M, 10G, 512KiB
    #[arg(long, value_parser = size::parse)]
    size: i64,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("names")
    .required(true)
    .multiple(true)
    .args(["name", "description"]))]
pub(crate) struct Rename {
    #[command(flatten)]
    which: Which,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// The new description
    #[arg(long)]
    description: Option<String>,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Create(args) => create(args, context).await,
        Verb::Destroy(which) => {
            let params = locate::vdi(context, &which).await?;
            context.call::<VdiDestroy>(&params).await?;
            context.done()
        }
        Verb::Ls(args) => list(args, context).await,
        Verb::Show(which) => show(&which, context).await,
        Verb::Snapshot(args) => {
            let (vdi, params) = copy(args, context).await?;
            let made = told(context, &vdi, context.call::<VdiSnapshot>(&params)).await?;
            context.show(&made, |made| format!("{}\n", render::uuid(made)))
        }
        Verb::Clone(args) => {
            let (vdi, params) = copy(args, context).await?;
            let made = told(context, &vdi, context.call::<VdiClone>(&params)).await?;
            context.show(&made, |made| format!("{}\n", render::uuid(made)))
        }
        Verb::Revert(which) => revert(&which, context).await,
        Verb::Unlock(args) => unlock(args, context).await,
        Verb::Resize(args) => resize(&args, context).await,
        Verb::Rename(args) => rename(args, context).await,
        Verb::Attach(args) => usage::attach(&args, context).await,
        Verb::Activate(args) => usage::activate(&args, context).await,
        Verb::Deactivate(args) => usage::deactivate(&args, context).await,
        Verb::Detach(args) => usage::detach(&args, context).await,
    }
}

fn description(args: &Create) -> VdiInfo {
    // 0 asks for the whole device.
    let mut info = VdiInfo::new(args.name.clone(), args.size.unwrap_or(0));
    info.name_description.clone_from(&args.description);
    if let Some(device) = &args.device {
        info.sm_config.insert("device".into(), device.clone());
    }
    if args.preallocated {
        info.sm_config.insert("allocation".into(), "preallocated".into());
    }
    info
}

async fn create(args: Create, context: &Context) -> Result<(), Failure> {
    let vdi_info = description(&args);
    let params = VdiCreateParams { dbg: DBG.into(), sr: args.sr, vdi_info };
    let made = context.call::<VdiCreate>(&params).await?;
    context.show(&made, |made| format!("{}\n", render::uuid(made)))
}

/// A copy is described by its source.
async fn copy(args: Copy, context: &Context) -> Result<(VdiParams, VdiCopyParams), Failure> {
    let place = locate::vdi(context, &args.which).await?;
    let mut vdi_info = context.call::<VdiStat>(&place).await?;
    if let Some(name) = args.name {
        vdi_info.name_label = name;
    }
    // A snapshot of a snapshot is one of this moment and of this VDI.
    let fresh = VdiInfo::new("", 0);
    (vdi_info.snapshot_time, vdi_info.snapshot_of) = (fresh.snapshot_time, String::new());
    let params = VdiCopyParams { dbg: DBG.into(), sr: place.sr.clone(), vdi_info };
    Ok((place, params))
}

async fn revert(which: &Which, context: &Context) -> Result<(), Failure> {
    let snapshot = locate::vdi(context, which).await?;
    let snapshot_info = context.call::<VdiStat>(&snapshot).await?;
    let (sr, vdi) = (snapshot.sr, snapshot_info.snapshot_of.clone());
    let of = VdiParams { dbg: DBG.into(), sr: sr.clone(), vdi };
    let params = VdiRevertParams { dbg: DBG.into(), sr, snapshot_info };
    told(context, &of, context.call::<VdiRevert>(&params)).await?;
    context.done()
}

async fn unlock(args: Unlock, context: &Context) -> Result<(), Failure> {
    let VdiParams { sr, vdi, .. } = locate::vdi(context, &args.which).await?;
    let Unlock { force_from, reason, .. } = args;
    let params = VdiUnlockParams { dbg: DBG.into(), sr, vdi, force_from, reason };
    let seen = context.call::<VdiUnlock>(&params).await?;
    context.show(&seen, render::unlocked)
}

async fn list(args: Ls, context: &Context) -> Result<(), Failure> {
    let srs = match args.sr {
        Some(sr) => vec![sr],
        None => context.ask::<SrList>().await?,
    };
    let mut scans = Vec::new();
    for sr in &srs {
        let params = SrParams { dbg: DBG.into(), sr: sr.clone() };
        scans.push(context.call::<SrScan2>(&params).await?);
    }
    if context.json {
        return write(&json(&scans));
    }
    let workers = context.ask::<WorkerList>().await?;
    let of_sr = |(sr, scan)| -> Vec<(&str, &VdiInfo)> {
        let (sr, (vdis, _)): (&String, &(Vec<VdiInfo>, SrInfo)) = (sr, scan);
        vdis.iter().map(|vdi| (sr.as_str(), vdi)).collect()
    };
    let vdis: Vec<_> = srs.iter().zip(&scans).flat_map(of_sr).collect();
    write(&render::list(&vdis, &workers))
}

async fn show(which: &Which, context: &Context) -> Result<(), Failure> {
    let params = locate::vdi(context, which).await?;
    let info = context.call::<VdiStat>(&params).await?;
    if context.json {
        return write(&json(&info));
    }
    let (sr, vdi) = (params.sr.clone(), params.vdi);
    let params = DpStatParams { dbg: DBG.into(), sr, vdi, unit: () };
    let datapaths = context.call::<DpStatVdi>(&params).await?;
    write(&render::one(&params.sr, &info, &datapaths))
}

async fn resize(args: &Resize, context: &Context) -> Result<(), Failure> {
    let vdi = locate::vdi(context, &args.which).await?;
    let params = VdiResizeParams { dbg: DBG.into(), sr: vdi.sr, vdi: vdi.vdi, new_size: args.size };
    let bytes = context.call::<VdiResize>(&params).await?;
    context.show(&bytes, |&bytes| format!("{}\n", size::human_signed(bytes)))
}

async fn rename(args: Rename, context: &Context) -> Result<(), Failure> {
    let found = locate::vdi(context, &args.which).await?;
    let place = || (DBG.to_owned(), found.sr.clone(), found.vdi.clone());
    if let Some(new_name_label) = args.name {
        let (dbg, sr, vdi) = place();
        let params = VdiNameLabelParams { dbg, sr, vdi, new_name_label };
        context.call::<VdiSetNameLabel>(&params).await?;
    }
    if let Some(new_name_description) = args.description {
        let (dbg, sr, vdi) = place();
        let params = VdiNameDescriptionParams { dbg, sr, vdi, new_name_description };
        context.call::<VdiSetNameDescription>(&params).await?;
    }
    context.done()
}
