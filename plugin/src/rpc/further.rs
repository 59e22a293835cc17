//! SMAPIv2's calls that XAPI makes seldom, and those that upstream's own tools and tests make: each
//! handler names the core's call for it.

use crate::rpc::methods::Table;
use crate::rpc::{Core, smapi2, to_the_end};
use crate::vdi::VdiId;
use crate::vdi::actor::Edit;
use std::sync::Arc;
use zerotap_rpc_schema::further::{AttachInfo, VdiOldAttachParams};
use zerotap_rpc_schema::smapi2::{Backend, DpParams, Implementation, Mode};
use zerotap_rpc_schema::{StorageError, table};

/// The old calls name no domain: they are dom0's.
const DOM0: &str = "0";

pub(super) fn add_to(table: &mut Table) {
    repositories(table);
    volumes(table);
    datapaths(table);
}

fn repositories(table: &mut Table) {
    table.add::<table::SrScan, _, _>(|core, params| async move {
        Ok(core.srs.get(&params.sr)?.run(crate::sr::file::FileSr::scan).await?.0)
    });
    table
        .add::<table::SrReset, _, _>(|core, params| to_the_end(smapi2::detach_sr(core, params.sr)));
}

fn volumes(table: &mut Table) {
    table.add::<table::VdiGetByName, _, _>(|core, params| async move {
        let sr = core.srs.get(&params.sr)?;
        let (all, _) = sr.run(crate::sr::file::FileSr::scan).await?;
        let found = all.into_iter().find(|vdi| vdi.name_label == params.name);
        found.ok_or(StorageError::VdiDoesNotExist(params.name))
    });
    table.add::<table::VdiIntroduce, _, _>(|core, params| async move {
        let key = params.location;
        core.srs.get(&params.sr)?.run(move |file| file.volume_info(&key)).await
    });
    // Nothing here knows of contents that are alike: no VDI is an answer that XAPI expects.
    table.add::<table::VdiSimilarContent, _, _>(|core, params| async move {
        let sr = core.srs.get(&params.sr)?;
        sr.run(move |file| file.volume(&params.vdi)).await.map(|_| vec![])
    });
    table.add::<table::VdiSetPersistent, _, _>(|core, params| {
        edit(core, params.sr, params.vdi, Edit::Persistent(params.persistent))
    });
    table.add::<table::VdiAddTags, _, _>(|core, params| {
        edit(core, params.sr, params.vdi, Edit::AddTag(params.key))
    });
    table.add::<table::VdiRemoveTags, _, _>(|core, params| {
        edit(core, params.sr, params.vdi, Edit::RemoveTag(params.key))
    });
    table.add::<table::VdiEpochBegin, _, _>(|core, params| async move {
        let vdi = VdiId::new(params.sr, params.vdi);
        core.registry.epoch_begin(&vdi, params.persistent).await
    });
    table.add::<table::VdiEpochEnd, _, _>(|core, params| async move {
        core.registry.epoch_end(&VdiId::new(params.sr, params.vdi)).await
    });
}

async fn edit(core: Arc<Core>, sr: String, vdi: String, edit: Edit) -> Result<(), StorageError> {
    core.registry.edit(&VdiId::new(sr, vdi), edit).await
}

fn datapaths(table: &mut Table) {
    table.add::<table::VdiOldAttach, _, _>(|core, params| async move {
        attach(core, params).await.map(old_answer)
    });
    table.add::<table::VdiAttach2, _, _>(attach);
    table.add::<table::VdiOldActivate, _, _>(|core, params| async move {
        core.registry.activate(&VdiId::new(params.sr, params.vdi), params.dp, false).await
    });
    table.add::<table::DataGetNbdServer, _, _>(nbd_server);
    table.add::<table::DataMirrorGetNbdServer, _, _>(nbd_server);
}

async fn attach(core: Arc<Core>, params: VdiOldAttachParams) -> Result<Backend, StorageError> {
    let VdiOldAttachParams { dp, sr, vdi, read_write, .. } = params;
    let mode = if read_write { Mode::ReadWrite } else { Mode::ReadOnly };
    core.registry.attach(&VdiId::new(sr, vdi), dp, DOM0.into(), mode).await
}

fn old_answer(backend: Backend) -> AttachInfo {
    let disk = backend.implementations.into_iter().find_map(|one| match one {
        Implementation::XenDisk(disk) => Some(disk),
        _ => None,
    });
    let (params, xenstore_data) = disk.map(|disk| (disk.params, disk.extra)).unwrap_or_default();
    AttachInfo { params, o_direct: true, o_direct_reason: String::new(), xenstore_data }
}

/// The socket out of `nbd:unix:<socket>:exportname=<name>`.
async fn nbd_server(core: Arc<Core>, params: DpParams) -> Result<String, StorageError> {
    let DpParams { dp, sr, vdi, .. } = params;
    let backend = core.registry.attach_info(&VdiId::new(sr, vdi), &dp).await?;
    let socket = backend.implementations.iter().find_map(|one| match one {
        Implementation::Nbd(nbd) => nbd.uri.split(':').nth(2).map(ToString::to_string),
        _ => None,
    });
    socket.ok_or(StorageError::Unimplemented("DATA.get_nbd_server".into()))
}
