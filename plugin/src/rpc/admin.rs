//! What operators ask beside SMAPIv2: VBDs, workers, the host, the interface itself.

use crate::metrics::look::{Look, VbdLook};
use crate::rpc::methods::Table;
use crate::rpc::{Core, diagnostics};
use crate::vbd::address::Address;
use crate::vdi::VdiId;
use crate::worker::process::rss_kib;
use crate::worker::set::Entry;
use futures_util::future::join_all;
use std::time::Duration;
use zerotap_rpc_schema::admin::{HostStatus, Task, Vbd, VbdStat, VdiUnlockParams, Worker};
use zerotap_rpc_schema::smapi2::{Pairs, VdiParams};
use zerotap_rpc_schema::worker::VbdCounters;
use zerotap_rpc_schema::{StorageError, openrpc, table};

pub(super) fn add_to(table: &mut Table) {
    table.add::<table::WorkerList, _, _>(|core, _| async move {
        Ok(join_all(core.registry.all_workers().into_iter().map(tell)).await)
    });
    table.add::<table::TaskList, _, _>(|core, _| async move {
        Ok(core.registry.tasks().iter().map(|task| at_work(task)).collect())
    });
    table.add::<table::VdiUnlock, _, _>(|core, params| async move {
        let VdiUnlockParams { sr, vdi, force_from, reason, .. } = params;
        core.registry.unlock(&VdiId::new(sr, vdi), force_from, reason).await
    });
    table.add::<table::WorkerUpgrade, _, _>(|core, VdiParams { sr, vdi, .. }| async move {
        let vdi = VdiId::new(sr, vdi);
        core.registry.upgrade(&vdi).await?;
        match core.registry.entry(&vdi) {
            Some(entry) => Ok(tell(entry).await),
            None => Err(StorageError::Internal(format!("VDI {vdi} was deactivated meanwhile"))),
        }
    });
    table.add::<table::HostStatusMethod, _, _>(|core, _| async move { status(&core).await });
    table.add::<table::RpcDiscover, _, _>(|_, _| async { Ok(openrpc::document()) });
    table.add::<table::VbdList, _, _>(|core, _| async move { core.vbds.list().await });
    table.add::<table::VbdStatMethod, _, _>(
        |core, params| async move { core.vbds.stat(params).await },
    );
    table.add::<table::VbdStatAll, _, _>(|core, _| async move { stat_all(&core).await });
    table.add_for_peer::<table::VbdPlug, _, _>(|core, peer, params| async move {
        core.vbds.plug(params, peer.to_string()).await
    });
    table.add_for_peer::<table::VbdUnplug, _, _>(|core, peer, params| async move {
        core.vbds.unplug(params, peer.to_string()).await
    });
}

fn at_work(task: &crate::vdi::Task) -> Task {
    let (done_bytes, of_bytes) = task.progress.bytes();
    Task {
        operation: task.operation.into(),
        sr: task.vdi.sr.clone(),
        vdi: task.vdi.vdi.clone(),
        since: task.since.clone(),
        done_bytes,
        of_bytes,
    }
}

async fn tell(entry: Entry) -> Worker {
    let row = entry.row().clone();
    let vbds = match &entry {
        Entry::Known(worker) if worker.end().is_none() => worker.connected().await,
        _ => Ok(vec![]),
    };
    let nbd = match &entry {
        Entry::Known(worker) if worker.end().is_none() => worker.nbd().await.ok(),
        _ => None,
    };
    let state = if entry.trouble().is_none() { "serving" } else { "dead" };
    Worker {
        rss_kib: rss_kib(row.pid),
        id: row.id,
        sr: row.vdi.sr,
        vdi: row.vdi.vdi,
        pid: row.pid,
        state: state.into(),
        version: row.version,
        since: row.since,
        vbds: vbds.unwrap_or_default().iter().map(|ring| ring.vbd.to_string()).collect(),
        nbd,
        engine: match &entry {
            Entry::Known(worker) => Some(worker.engine().clone()),
            Entry::Dead { .. } => None,
        },
    }
}

async fn stat_all(core: &Core) -> Result<Vec<VbdStat>, StorageError> {
    let listed = core.vbds.list().await?;
    let look = Look::take(core).await;
    let stat = |vbd: Vbd| {
        let mine = |look: &&VbdLook| {
            let Address { id, kind, .. } = &look.status.address;
            (id.domid, id.devid, kind) == (vbd.domid, vbd.devid, &vbd.kind)
        };
        let look = look.vbds.iter().find(mine)?;
        let id = look.status.address.id;
        let (counters, age) = match &look.counters {
            Some(told) if told.fresh => (told.value.clone(), Duration::ZERO),
            Some(told) => (told.value.clone(), told.age),
            None => (VbdCounters::new(id), Duration::ZERO),
        };
        let image = core.registry.worker(&look.status.identity.vdi).map(|worker| worker.image());
        Some(VbdStat {
            vbd,
            ring: look.status.ring.clone(),
            image,
            counters: counters.counters,
            read_latency: counters.read_latency,
            write_latency: counters.write_latency,
            flush_latency: counters.flush_latency,
            discard_latency: counters.discard_latency,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        })
    };
    Ok(listed.into_iter().filter_map(stat).collect())
}

async fn status(core: &Core) -> Result<HostStatus, StorageError> {
    let datapaths = core.registry.all_datapaths().await?;
    let workers = diagnostics::ask_workers(core).await;
    let trouble = diagnostics::trouble(core, &workers).await?;
    let counted = workers.iter().filter_map(|(_, counted)| counted.as_ref().ok());
    let nbd_clients = counted.map(|counted| counted.nbd.clients).sum();
    let mut vdis: Vec<_> = datapaths.into_iter().map(|(vdi, _)| vdi).collect();
    vdis.dedup();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(HostStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        host: core.host.clone(),
        pid: std::process::id(),
        since: core.since.clone(),
        boot_id: core.boot_id.clone(),
        host_uuid: core.srs.us().host.clone(),
        xenstore: core.vbds.xenstore_alive(),
        engine: engine(core),
        srs: count(core.srs.list().len()),
        vdis: count(vdis.len()),
        workers: count(workers.len()),
        vbds: count(core.vbds.connected().len()),
        nbd_clients,
        trouble,
    })
}

fn engine(core: &Core) -> Pairs {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (engine, why) = match &core.engine {
        Ok(choice) => (choice.kind.to_string(), choice.why.clone()),
        Err(problem) => ("none".into(), problem.clone()),
    };
    let pairs = [("kernel", kernel.trim_end().to_owned()), ("engine", engine), ("why", why)];
    pairs.into_iter().map(|(key, value)| (key.into(), value)).collect()
}
