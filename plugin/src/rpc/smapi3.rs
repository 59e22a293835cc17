//! SMAPIv3's methods: each handler names the core's call for it and turns the answer's words.
//!
//! Called by the executables that xapi-storage-script runs (`script`), through the same socket as
//! everybody. An SR's handle is its uuid. A datapath is named after the domain that it is for:
//! SMAPIv3 knows no other name of a use.

use crate::rpc::methods::Table;
use crate::rpc::{Core, diagnostics, smapi2, to_the_end};
use crate::sr::file::SrEdit;
use crate::state::now;
use crate::vdi::VdiId;
use crate::vdi::actor::Edit;
use crate::vdi::registry::Holder;
use std::sync::Arc;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Health, Mode, Pairs, Probe, SrInfo, VdiInfo, VdiState};
use zerotap_rpc_schema::smapi3::params::{DatapathParams, SrCreateParams, VolumeCreateParams};
use zerotap_rpc_schema::smapi3::table::{self, features};
use zerotap_rpc_schema::smapi3::{API_VERSION, ProbeResult, QueryResult, SrHealth, SrStat, Volume};

/// What `SR.probe` answers beside `path`, and what XAPI hands back to `SR.attach`.
const SR_UUID: &str = "sr_uuid";
/// What a datapath's name begins with; its domain follows.
const DATAPATH: &str = "smapi3/";

pub(super) fn add_to(table: &mut Table) {
    plugin(table);
    repositories(table);
    volumes(table);
    volume_edits(table);
    datapaths(table);
}

fn plugin(table: &mut Table) {
    table.add::<table::PluginQuery, _, _>(|_, _| async { Ok(about()) });
    table.add::<table::PluginLs, _, _>(|core, _| async move { Ok(core.srs.list()) });
    table.add::<table::PluginDiagnostics, _, _>(|core, _| async move {
        diagnostics::report(&core).await
    });
}

/// Plugin.query's answer, which is this program's and not the daemon's.
pub fn about() -> QueryResult {
    let about = smapi2::about();
    QueryResult {
        plugin: about.driver,
        name: about.name,
        description: about.description,
        vendor: about.vendor,
        copyright: about.copyright,
        version: about.version,
        required_api_version: API_VERSION.into(),
        features: features(),
        configuration: about.configuration,
        required_cluster_stack: about.required_cluster_stack,
    }
}

fn repositories(table: &mut Table) {
    table.add::<table::SrProbe, _, _>(|_, params| async move {
        let (configuration, _) = split(params.configuration);
        Ok(crate::sr::probe(&configuration).await?.into_iter().map(found).collect())
    });
    table.add::<table::SrCreate, _, _>(|core, params| to_the_end(create_sr(core, params)));
    table.add::<table::SrAttach, _, _>(|core, params| {
        to_the_end(attach_sr(core, params.configuration))
    });
    table.add::<table::SrDetach, _, _>(|core, params| {
        to_the_end(smapi2::detach_sr(core, params.sr))
    });
    table.add::<table::SrDestroy, _, _>(|core, params| {
        to_the_end(smapi2::destroy_sr(core, params.sr))
    });
    table.add::<table::SrStatMethod, _, _>(|core, params| async move {
        let info = core.srs.get(&params.sr)?.run(|file| file.stat()).await?;
        Ok(stat(params.sr, info))
    });
    table.add::<table::SrSetName, _, _>(|core, params| {
        to_the_end(smapi2::edit_sr(core, params.sr, SrEdit::NameLabel(params.new_name)))
    });
    table.add::<table::SrSetDescription, _, _>(|core, params| {
        let edit = SrEdit::NameDescription(params.new_description);
        to_the_end(smapi2::edit_sr(core, params.sr, edit))
    });
    table.add::<table::SrLs, _, _>(|core, params| async move {
        let volumes = core.srs.get(&params.sr)?.run(|file| file.volumes_and_keys()).await?;
        Ok(volumes.into_iter().map(|volume| tell(&params.sr, volume)).collect())
    });
}

/// The core's device-config, and the SR's uuid where XAPI knows it already. SMAPIv2's calls have it
/// in there for an SR that was found through SMAPIv3.
pub(super) fn split(mut configuration: Pairs) -> (Pairs, Option<String>) {
    let uuid = configuration.remove(SR_UUID);
    (configuration, uuid)
}

fn found(probe: Probe) -> ProbeResult {
    let Probe { mut configuration, complete, sr, extra_info } = probe;
    let sr = sr.map(|info| stat(info.sr_uuid.clone().unwrap_or_default(), info));
    if let Some(sr) = &sr {
        configuration.insert(SR_UUID.into(), sr.sr.clone());
    }
    ProbeResult { configuration, complete, sr, extra_info }
}

async fn create_sr(core: Arc<Core>, params: SrCreateParams) -> Result<Pairs, StorageError> {
    let SrCreateParams { uuid, configuration, name, description, .. } = params;
    let (device_config, _) = split(configuration.clone());
    core.srs.create(&uuid, &device_config, name, description).await?;
    Ok(configuration)
}

async fn attach_sr(core: Arc<Core>, configuration: Pairs) -> Result<String, StorageError> {
    let (device_config, uuid) = split(configuration);
    let uuid = match uuid {
        Some(uuid) => uuid,
        None => crate::sr::uuid_at(&device_config).await?,
    };
    core.srs.attach(&uuid, &device_config).await?;
    Ok(uuid)
}

fn stat(handle: String, info: SrInfo) -> SrStat {
    let text = String::new();
    SrStat {
        sr: handle,
        name: info.name_label,
        uuid: info.sr_uuid,
        description: info.name_description,
        free_space: info.free_space,
        total_space: info.total_space,
        datasources: vec![],
        clustered: info.clustered,
        health: match info.health {
            Health::Healthy => SrHealth::Healthy(text),
            Health::Recovering => SrHealth::Recovering(text),
            Health::Unreachable => SrHealth::Unreachable(text),
            Health::Unavailable => SrHealth::Unavailable(text),
        },
    }
}

fn volumes(table: &mut Table) {
    table.add::<table::VolumeCreate, _, _>(|core, params| async move {
        let VolumeCreateParams { sr, name, description, size, sharable, .. } = params;
        let wanted =
            VdiInfo { name_description: description, sharable, ..VdiInfo::new(name, size) };
        let made = core.registry.create(&sr, wanted).await?;
        look_at(&core, &sr, made.vdi).await
    });
    table.add::<table::VolumeDestroy, _, _>(|core, params| async move {
        core.registry.destroy(&VdiId::new(params.sr, params.key)).await
    });
    table.add::<table::VolumeSnapshot, _, _>(|core, params| async move {
        copy(&core, params.sr, params.key, |source| smapi2::as_snapshot(source, &now())).await
    });
    table.add::<table::VolumeClone, _, _>(|core, params| async move {
        copy(&core, params.sr, params.key, smapi2::as_clone).await
    });
    table.add::<table::VolumeRevert, _, _>(|core, params| async move {
        let vdi = VdiId::new(params.sr, params.key);
        core.registry.revert(&vdi, params.snapshot).await
    });
    table.add::<table::VolumeResize, _, _>(|core, params| async move {
        let vdi = VdiId::new(params.sr, params.key);
        core.registry.resize(&vdi, params.new_size).await.map(drop)
    });
    table.add::<table::VolumeStat, _, _>(|core, params| async move {
        look_at(&core, &params.sr, params.key).await
    });
}

/// A copy, described by its source.
async fn copy(
    core: &Core,
    sr: String,
    key: String,
    wanted: impl FnOnce(VdiInfo) -> VdiInfo,
) -> Result<Volume, StorageError> {
    let of = key.clone();
    let mut source = core.srs.get(&sr)?.run(move |file| file.volume_info(&of)).await?;
    let fresh = VdiInfo::new("", 0);
    (source.snapshot_time, source.snapshot_of) = (fresh.snapshot_time, String::new());
    let made = core.registry.copy(&VdiId::new(sr.clone(), key), wanted(source), None).await?;
    look_at(core, &sr, made.vdi).await
}

async fn look_at(core: &Core, sr: &str, key: String) -> Result<Volume, StorageError> {
    let volume = core.srs.get(sr)?.run(move |file| file.volume_and_keys(&key)).await?;
    Ok(tell(sr, volume))
}

fn tell(sr: &str, (info, keys): (VdiInfo, Pairs)) -> Volume {
    Volume {
        uri: vec![VdiId::new(sr, info.vdi.clone()).to_uri()],
        key: info.vdi,
        uuid: info.uuid,
        name: info.name_label,
        description: info.name_description,
        read_write: !info.read_only,
        sharable: info.sharable,
        virtual_size: info.virtual_size,
        physical_utilisation: info.physical_utilisation,
        keys,
        volume_type: None,
        cbt_enabled: None,
    }
}

fn volume_edits(table: &mut Table) {
    table.add::<table::VolumeSetName, _, _>(|core, params| {
        smapi2::edit_vdi(core, params.sr, params.key, Edit::NameLabel(params.new_name))
    });
    table.add::<table::VolumeSetDescription, _, _>(|core, params| {
        let edit = Edit::NameDescription(params.new_description);
        smapi2::edit_vdi(core, params.sr, params.key, edit)
    });
    table.add::<table::VolumeSet, _, _>(|core, params| {
        let edit = Edit::SetKey { key: params.k, value: params.v };
        smapi2::edit_vdi(core, params.sr, params.key, edit)
    });
    table.add::<table::VolumeUnset, _, _>(|core, params| {
        smapi2::edit_vdi(core, params.sr, params.key, Edit::UnsetKey { key: params.k })
    });
}

fn datapaths(table: &mut Table) {
    table.add::<table::DatapathOpen, _, _>(|core, params| async move {
        core.registry.epoch_begin(&named(&params.uri)?, params.persistent).await
    });
    table.add::<table::DatapathClose, _, _>(|core, params| async move {
        core.registry.epoch_end(&named(&params.uri)?).await
    });
    table.add::<table::DatapathAttach, _, _>(|core, params| async move {
        let vdi = named(&params.uri)?;
        // SMAPIv3 does not tell who will only read; a volume that nobody may write is one to read.
        let read_only = is_read_only(&core, &vdi).await?;
        let mode = if read_only { Mode::ReadOnly } else { Mode::ReadWrite };
        let (dp, domain) = (datapath(&params.domain), params.domain);
        match core.registry.attach(&vdi, dp.clone(), domain.clone(), mode).await {
            // Who shares it with those that only read is refused once it activates to write.
            Err(error) if error.code() == i32::from(number::VDI_IN_USE) => {
                let reads = core.registry.attach(&vdi, dp, domain, Mode::ReadOnly);
                reads.await.map_err(|_| error)
            }
            attached => attached,
        }
    });
    table.add::<table::DatapathActivate, _, _>(|core, params| {
        to_the_end(activate(core, params, Mode::ReadWrite))
    });
    table.add::<table::DatapathActivateReadonly, _, _>(|core, params| {
        to_the_end(activate(core, params, Mode::ReadOnly))
    });
    table.add::<table::DatapathDeactivate, _, _>(|core, params| async move {
        let vdi = named(&params.uri)?;
        match use_of(&core, &vdi, &params.domain).await? {
            Some(dp) => core.registry.deactivate(&vdi, dp).await,
            None => Ok(()),
        }
    });
    table.add::<table::DatapathDetach, _, _>(|core, params| async move {
        let vdi = named(&params.uri)?;
        match use_of(&core, &vdi, &params.domain).await? {
            Some(dp) => core.registry.detach(&vdi, dp).await,
            None => Ok(()),
        }
    });
}

/// Only now does SMAPIv3 tell whether the use will write: one that was attached otherwise is
/// attached anew.
async fn activate(core: Arc<Core>, params: DatapathParams, mode: Mode) -> Result<(), StorageError> {
    let (vdi, dp) = (named(&params.uri)?, datapath(&params.domain));
    let held = core.registry.holders(&vdi).await?;
    let held = held.into_iter().find(|held| held.dp == dp);
    if let Some(Holder { state: VdiState::Attached(attached), domain, .. }) = held
        && attached != mode
        && (mode == Mode::ReadOnly || !is_read_only(&core, &vdi).await?)
    {
        core.registry.detach(&vdi, dp.clone()).await?;
        let anew = core.registry.attach(&vdi, dp.clone(), domain.clone(), mode).await;
        if let Err(error) = anew {
            core.registry.attach(&vdi, dp, domain, attached).await?;
            return Err(error);
        }
    }
    core.registry.activate(&vdi, dp, mode == Mode::ReadOnly).await
}

async fn is_read_only(core: &Core, vdi: &VdiId) -> Result<bool, StorageError> {
    let key = vdi.vdi.clone();
    Ok(core.srs.get(&vdi.sr)?.run(move |file| file.volume(&key)).await?.read_only)
}

fn named(uri: &str) -> Result<VdiId, StorageError> {
    VdiId::from_uri(uri).ok_or_else(|| {
        let text = format!("cannot tell which volume {uri:?} is: give zerotap://SR/KEY");
        StorageError::backend(number::BAD_REQUEST, text)
    })
}

fn datapath(domain: &str) -> String {
    format!("{DATAPATH}{domain}")
}

/// Whose use of the volume a domain means when one is to end. xenopsd says "" for a guest that is
/// gone already (xen-api `ocaml/xapi-storage-script/main.ml`, `domain_of`); dom0's uses, `0` and
/// `u0_…`, always tell their names.
async fn use_of(core: &Core, vdi: &VdiId, domain: &str) -> Result<Option<String>, StorageError> {
    let exact = datapath(domain);
    let held = core.registry.holders(vdi).await?.into_iter().map(|held| held.dp);
    let ours: Vec<String> = held.filter(|dp| dp.starts_with(DATAPATH)).collect();
    if domain.is_empty() && !ours.contains(&exact) {
        let of_dom0 = |dp: &str| dp == "smapi3/0" || dp.starts_with("smapi3/u0_");
        let mut guests = ours.into_iter().filter(|dp| !of_dom0(dp));
        // With two there is no telling which is meant: the one that lives must not lose its disk.
        return Ok(guests.next().filter(|_| guests.next().is_none()));
    }
    Ok(ours.into_iter().find(|dp| *dp == exact))
}
