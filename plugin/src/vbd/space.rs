//! VBDs whose writes wait for space: workers know, and are asked every few seconds.
//!
//! Only tells the VBDs' actors, which tell everybody else. Run by the daemon, in one task.

use super::Vbds;
use super::actor::Message;
use super::backend::SHORT;
use super::status::Status;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use zerotap_rpc_schema::worker::VbdId;

/// How often workers are asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks for ever.
pub async fn run(vbds: Arc<Vbds>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let statuses = vbds.statuses();
        let waiting = join_all(statuses.iter().map(|status| waits(&vbds, status))).await;
        let waiting: BTreeSet<VbdId> = waiting.into_iter().flatten().collect();
        for status in &statuses {
            let (id, told) = (status.address.id, status.trouble.as_deref() == Some(SHORT));
            if told != waiting.contains(&id) {
                vbds.tell(id, Message::Short(!told)).await;
            }
        }
    }
}

/// The VBD, if its writes wait. Of a worker that does not answer nothing is known; others tell.
async fn waits(vbds: &Vbds, status: &Status) -> Option<VbdId> {
    let disk = status.ring.as_ref().and_then(|_| vbds.disks.worker(&status.identity.vdi))?;
    let id = status.address.id;
    let counted = if disk.read_only() { None } else { disk.stat().await.ok() };
    let own = counted?.into_iter().find(|counted| counted.vbd == id)?;
    (own.counters.waiting_for_space > 0).then_some(id)
}
