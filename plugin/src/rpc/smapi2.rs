//! SMAPIv2's methods: each handler names the core's call for it.

use crate::rpc::methods::Table;
use crate::rpc::{Core, diagnostics, smapi3, to_the_end};
use crate::sr::file::SrEdit;
use crate::state::now;
use crate::vdi::VdiId;
use crate::vdi::actor::Edit;
use std::sync::Arc;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{
    Mode, Pairs, ProbeResult, QueryResult, SrCreateParams, VdiAttachParams, VdiCopyParams,
    VdiCreateParams, VdiInfo, VdiRevertParams,
};
use zerotap_rpc_schema::{StorageError, table};

/// What this version does, in SMAPI's words; nothing that it does not do yet.
const FEATURES: &[&str] = &[
    "SR_CREATE",
    "SR_DELETE",
    "SR_ATTACH",
    "SR_DETACH",
    "SR_SCAN",
    "SR_PROBE",
    "SR_UPDATE",
    "VDI_CREATE",
    "VDI_CLONE",
    "VDI_SNAPSHOT",
    "VDI_DELETE",
    "VDI_ATTACH",
    "VDI_DETACH",
    "VDI_ACTIVATE",
    "VDI_ACTIVATE_READONLY",
    "VDI_DEACTIVATE",
    "VDI_UPDATE",
    "VDI_REVERT",
    "VDI_RESIZE",
    "VDI_RESIZE_ONLINE",
    "VDI_INTRODUCE",
    "VDI_RESET_ON_BOOT/2",
    "LARGE_VDI",
    "THIN_PROVISIONING",
];

pub(super) fn add_to(table: &mut Table) {
    query(table);
    repositories(table);
    volumes(table);
    datapaths(table);
}

fn query(table: &mut Table) {
    table.add::<table::QueryQuery, _, _>(|_, _| async { Ok(about()) });
    table.add::<table::QueryDiagnostics, _, _>(|core, _| async move {
        diagnostics::report(&core).await
    });
}

pub(super) fn about() -> QueryResult {
    let configuration = [
        ("path", "Absolute path of a directory, on a file system that can do direct I/O"),
        ("allocation", "How new VDIs are made: sparse (the default) or preallocated"),
        ("no_space", "What becomes of writes that find no space: pause or error"),
        ("transfer", "How guests' pages are reached: auto, map or copy"),
    ];
    QueryResult {
        driver: "zerotap".into(),
        name: "zerotap".into(),
        description: "Zero-copy datapath from guests' memory to files and block devices".into(),
        vendor: "zerotap".into(),
        copyright: "GPL-3.0-only".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        required_api_version: "5.0".into(),
        features: FEATURES.iter().map(ToString::to_string).collect(),
        configuration: Pairs::from(configuration.map(|(key, what)| (key.into(), what.into()))),
        required_cluster_stack: vec![],
        supported_image_formats: vec!["raw".into()],
        smapi_version: "SMAPIv3".into(),
    }
}

fn repositories(table: &mut Table) {
    table.add::<table::SrCreate, _, _>(|core, params| to_the_end(create_sr(core, params)));
    table.add::<table::SrAttach, _, _>(|core, params| {
        let (device_config, _) = smapi3::split(params.device_config);
        to_the_end(async move { core.srs.attach(&params.sr, &device_config).await })
    });
    table.add::<table::SrDetach, _, _>(|core, params| to_the_end(detach_sr(core, params.sr)));
    table.add::<table::SrDestroy, _, _>(|core, params| to_the_end(destroy_sr(core, params.sr)));
    table.add::<table::SrStat, _, _>(|core, params| async move {
        core.srs.get(&params.sr)?.run(|file| file.stat()).await
    });
    table.add::<table::SrList, _, _>(|core, _| async move { Ok(core.srs.list()) });
    table.add::<table::SrScan2, _, _>(|core, params| async move {
        core.srs.get(&params.sr)?.run(|file| file.scan()).await
    });
    table.add::<table::SrProbe, _, _>(|_, params| async move {
        let (device_config, _) = smapi3::split(params.device_config);
        crate::sr::probe(&device_config).await.map(ProbeResult::Probe)
    });
    table.add::<table::SrSetNameLabel, _, _>(|core, params| {
        to_the_end(edit_sr(core, params.sr, SrEdit::NameLabel(params.new_name_label)))
    });
    table.add::<table::SrSetNameDescription, _, _>(|core, params| {
        to_the_end(edit_sr(core, params.sr, SrEdit::NameDescription(params.new_name_description)))
    });
}

async fn create_sr(core: Arc<Core>, params: SrCreateParams) -> Result<Pairs, StorageError> {
    let SrCreateParams { sr, name_label, name_description, device_config, .. } = params;
    let (place, _) = smapi3::split(device_config.clone());
    core.srs.create(&sr, &place, name_label, name_description).await?;
    Ok(device_config)
}

/// A use that could not be ended when it should be is not in the way if it can be now.
pub(super) async fn detach_sr(core: Arc<Core>, sr: String) -> Result<(), StorageError> {
    core.registry.tidy_leaked(&sr).await?;
    core.srs.detach(&sr).await
}

pub(super) async fn destroy_sr(core: Arc<Core>, sr: String) -> Result<(), StorageError> {
    core.registry.tidy_leaked(&sr).await?;
    core.srs.destroy(&sr).await
}

pub(super) async fn edit_sr(core: Arc<Core>, sr: String, edit: SrEdit) -> Result<(), StorageError> {
    let lock = core.srs.lock(&sr);
    let _alone = lock.write().await;
    tracing::info!(sr, ?edit, "SR's record changes");
    core.srs.get(&sr)?.run(move |file| file.edit(edit)).await
}

/// What a snapshot shall be, from what VDI.snapshot was given: the source's description, with the
/// snapshot's names, and its time and source where the caller told them.
pub(super) fn as_snapshot(source: VdiInfo, now: &str) -> VdiInfo {
    let untold = source.snapshot_time == VdiInfo::new("", 0).snapshot_time;
    VdiInfo {
        is_a_snapshot: true,
        // As XenAPI writes it: 20261231T23:59:59Z.
        snapshot_time: if untold { now.replace('-', "") } else { source.snapshot_time },
        snapshot_of: if source.snapshot_of.is_empty() {
            source.vdi.clone()
        } else {
            source.snapshot_of
        },
        ..source
    }
}

/// What a clone shall be: writable, and no snapshot, whatever its source is.
pub(super) fn as_clone(source: VdiInfo) -> VdiInfo {
    let fresh = VdiInfo::new("", 0);
    VdiInfo {
        is_a_snapshot: false,
        snapshot_time: fresh.snapshot_time,
        snapshot_of: String::new(),
        read_only: false,
        ..source
    }
}

fn volumes(table: &mut Table) {
    table.add_for_peer::<table::VdiCreate, _, _>(|core, peer, params| async move {
        let VdiCreateParams { sr, mut vdi_info, .. } = params;
        vdi_info.uuid = vdi_info.uuid.or(peer.names.map(|uuid| uuid.to_string()));
        core.registry.create(&sr, vdi_info).await
    });
    table.add::<table::VdiDestroy, _, _>(|core, params| async move {
        core.registry.destroy(&VdiId::new(params.sr, params.vdi)).await
    });
    table.add::<table::VdiStat, _, _>(|core, params| async move {
        core.srs.get(&params.sr)?.run(move |file| file.volume_info(&params.vdi)).await
    });
    table.add_for_peer::<table::VdiSnapshot, _, _>(|core, peer, params| async move {
        let VdiCopyParams { sr, vdi_info, .. } = params;
        let source = VdiId::new(sr, vdi_info.vdi.clone());
        core.registry.copy(&source, as_snapshot(vdi_info, &now()), peer.names).await
    });
    table.add_for_peer::<table::VdiClone, _, _>(|core, peer, params| async move {
        let VdiCopyParams { sr, vdi_info, .. } = params;
        let source = VdiId::new(sr, vdi_info.vdi.clone());
        core.registry.copy(&source, as_clone(vdi_info), peer.names).await
    });
    table.add::<table::VdiRevert, _, _>(|core, params| async move {
        let VdiRevertParams { sr, snapshot_info, .. } = params;
        let (snapshot, mut of) = (snapshot_info.vdi, snapshot_info.snapshot_of);
        if of.is_empty() {
            let key = snapshot.clone();
            of = core.srs.get(&sr)?.run(move |file| file.volume(&key)).await?.snapshot_of;
        }
        if of.is_empty() {
            let text = format!("cannot revert to VDI {snapshot}: it is a snapshot of no VDI");
            return Err(StorageError::backend(number::BAD_REQUEST, text));
        }
        core.registry.revert(&VdiId::new(sr, of), snapshot).await
    });
    table.add::<table::VdiResize, _, _>(|core, params| async move {
        core.registry.resize(&VdiId::new(params.sr, params.vdi), params.new_size).await
    });
    table.add::<table::VdiSetNameLabel, _, _>(|core, params| {
        edit_vdi(core, params.sr, params.vdi, Edit::NameLabel(params.new_name_label))
    });
    table.add::<table::VdiSetNameDescription, _, _>(|core, params| {
        edit_vdi(core, params.sr, params.vdi, Edit::NameDescription(params.new_name_description))
    });
    table.add::<table::VdiSetContentId, _, _>(|core, params| {
        edit_vdi(core, params.sr, params.vdi, Edit::ContentId(params.content_id))
    });
    table.add::<table::VdiAddToSmConfig, _, _>(|core, params| {
        let edit = Edit::SetSmConfig { key: params.key, value: params.value };
        edit_vdi(core, params.sr, params.vdi, edit)
    });
    table.add::<table::VdiRemoveFromSmConfig, _, _>(|core, params| {
        edit_vdi(core, params.sr, params.vdi, Edit::RemoveSmConfig { key: params.key })
    });
}

pub(super) async fn edit_vdi(
    core: Arc<Core>,
    sr: String,
    vdi: String,
    edit: Edit,
) -> Result<(), StorageError> {
    core.registry.edit(&VdiId::new(sr, vdi), edit).await
}

fn datapaths(table: &mut Table) {
    table.add::<table::VdiAttach, _, _>(|core, params| async move {
        let VdiAttachParams { dp, sr, vdi, vm, read_write, .. } = params;
        let mode = if read_write { Mode::ReadWrite } else { Mode::ReadOnly };
        core.registry.attach(&VdiId::new(sr, vdi), dp, vm, mode).await
    });
    table.add::<table::VdiActivate, _, _>(|core, params| async move {
        core.registry.activate(&VdiId::new(params.sr, params.vdi), params.dp, false).await
    });
    table.add::<table::VdiActivateReadonly, _, _>(|core, params| async move {
        core.registry.activate(&VdiId::new(params.sr, params.vdi), params.dp, true).await
    });
    table.add::<table::VdiDeactivate, _, _>(|core, params| async move {
        core.registry.deactivate(&VdiId::new(params.sr, params.vdi), params.dp).await
    });
    table.add::<table::VdiDetach, _, _>(|core, params| async move {
        core.registry.detach(&VdiId::new(params.sr, params.vdi), params.dp).await
    });
    table.add::<table::DpDestroy, _, _>(|core, params| async move {
        let vdi = VdiId::new(params.sr, params.vdi);
        core.registry.destroy_datapath(&vdi, params.dp, params.allow_leak).await
    });
    table.add::<table::DpAttachInfo, _, _>(|core, params| async move {
        core.registry.attach_info(&VdiId::new(params.sr, params.vdi), &params.dp).await
    });
    table.add::<table::DpStatVdi, _, _>(|core, params| async move {
        core.registry.stat(&VdiId::new(params.sr, params.vdi)).await
    });
}
