//! What an actor asks of a worker over and over, until there is an answer or no worker any more:
//! what it has of one VBD, and to let go of it. Decides nothing.

use super::backend::Worker;
use super::disk::Disk;
use crate::worker::WorkerError;
use std::time::Duration;
use zerotap_rpc_schema::worker::{RingParameters, VbdId};

/// After a failed call, before the next try.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a worker tells of a VBD, and whether its guest broke the ring; none when it is gone.
pub(super) async fn what_it_serves(disk: &dyn Disk, id: VbdId) -> Option<(Worker, bool)> {
    loop {
        match told(disk, id).await {
            Ok(told) => return Some(told),
            Err(WorkerError::Gone) => return None,
            Err(error) => tracing::warn!(vbd = %id, %error, "the worker does not tell"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn told(disk: &dyn Disk, id: VbdId) -> Result<(Worker, bool), WorkerError> {
    let mine = disk.connected().await?.into_iter().find(|ring| ring.vbd == id);
    // Where a journal is kept, that tells better. It lists what it let go of, too, and nobody else
    // has served the ring since: it lives.
    let answered_all = mine.is_none()
        && !disk.keeps_journals()
        && disk.stat().await?.iter().any(|known| known.vbd == id);
    let broken = mine.as_ref().is_some_and(|ring| ring.broken);
    let worker = Worker {
        pid: disk.pid(),
        image: disk.image(),
        read_only: disk.read_only(),
        indirect_segments_max: disk.indirect_segments_max(),
        ring_page_order_max: disk.ring_page_order_max(),
        queues_max: disk.queues_max(),
        transfer: disk.transfer(),
        draining: mine.as_ref().is_some_and(|ring| ring.draining),
        ring: mine.map(|ring| ring.ring),
        answered_all,
    };
    Ok((worker, broken))
}

/// Has a worker let go, however long its disk takes; with `leave`, of what waits for space, too.
/// True when all that it took was answered: for a worker that is about to end (`conclude`), that
/// is noted for the next one.
pub(super) async fn let_go(
    disk: &dyn Disk,
    id: VbdId,
    leave: bool,
    conclude: Option<&RingParameters>,
) -> bool {
    loop {
        match disk.disconnect(id, leave).await {
            Ok(true) => {
                if let Some(ring) = conclude {
                    disk.conclude(id, ring);
                }
                return true;
            }
            Ok(false) | Err(WorkerError::Gone) => return false,
            Err(error) => tracing::warn!(vbd = %id, %error, "the worker holds on to the guest"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
