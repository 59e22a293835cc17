//! Block devices that have grown under VDIs in use: an extended logical volume, a larger LUN.
//! Nobody need say so: blkback looks at its device's size, too (`xen_vbd_resize`).
//!
//! It decides when; the VDI's actor resizes, as it does for VDI.resize. Run by the daemon, in one
//! task.

use crate::vdi::{Registry, VdiId};
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use zerotap_rpc_schema::StorageError;

/// How often devices are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks for ever.
pub async fn run(registry: Arc<Registry>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let workers = registry.workers();
        let writers = workers.iter().filter(|worker| !worker.read_only() && worker.resizes());
        join_all(writers.map(|worker| look(&registry, worker.vdi()))).await;
    }
}

async fn look(registry: &Arc<Registry>, vdi: &VdiId) {
    if let Err(error) = follow(registry, vdi).await {
        tracing::warn!(%vdi, "its block device is not followed: {error}");
    }
}

async fn follow(registry: &Arc<Registry>, vdi: &VdiId) -> Result<(), StorageError> {
    let sr = registry.srs.get(&vdi.sr)?;
    let key = vdi.vdi.clone();
    match sr.run(move |file| file.outgrown(&key)).await? {
        Some(bytes) => registry.resize(vdi, bytes).await.map(drop),
        None => Ok(()),
    }
}
