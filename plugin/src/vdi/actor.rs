//! One VDI's actor: a task that takes commands from a queue, one after the other.
//!
//! It holds nothing of its own: what is true stands in the database, on the SR and in the set of
//! workers, so a daemon that was killed, or an actor that panicked, loses nothing. It lives while
//! there are commands. What each command does: `datapath.rs`, `volume.rs`, `service.rs`,
//! `replace.rs`, `abandon.rs`.

use crate::fault;
use crate::sr::record::Record;
use crate::vdi::VdiId;
use crate::vdi::registry::Registry;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::Unlocked;
use zerotap_rpc_schema::smapi2::{Backend, Implementation, Mode, Nbd, Pairs, VdiInfo, XenDisk};

/// Where an answer goes. Its reader may have gone: the client hung up.
pub type Reply<T> = oneshot::Sender<Result<T, StorageError>>;

/// What may be changed of a volume's record.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub enum Edit {
    NameLabel(String),
    Persistent(bool),
    AddTag(String),
    RemoveTag(String),
    NameDescription(String),
    ContentId(String),
    SetSmConfig { key: String, value: String },
    RemoveSmConfig { key: String },
    SetKey { key: String, value: String },
    UnsetKey { key: String },
}

/// One command for one VDI.
#[derive(Debug)]
#[expect(missing_docs, reason = "one a call of SMAPIv2, with that call's parameters")]
pub enum Command {
    Create { record: Box<Record>, reply: Reply<VdiInfo> },
    Destroy { reply: Reply<()> },
    EpochBegin { persistent: bool, reply: Reply<()> },
    EpochEnd { reply: Reply<()> },
    Copy { record: Box<Record>, reply: Reply<VdiInfo> },
    Revert { snapshot: String, reply: Reply<()> },
    Unlock { from: String, reason: String, reply: Reply<Unlocked> },
    Resize { size: i64, reply: Reply<i64> },
    Edit { edit: Edit, reply: Reply<()> },
    Attach { dp: String, domain: String, mode: Mode, reply: Reply<Backend> },
    Activate { dp: String, read_only: bool, reply: Reply<()> },
    Deactivate { dp: String, reply: Reply<()> },
    Detach { dp: String, reply: Reply<()> },
    DestroyDatapath { dp: String, allow_leak: bool, reply: Reply<()> },
    Abandon { dp: String, domain: String, reply: Reply<()> },
    Tidy { reply: Reply<()> },
    Revive { reply: Reply<()> },
    Upgrade { reply: Reply<()> },
}

/// A command and the call that it came from.
#[derive(Debug)]
pub struct Job {
    /// The VDI: the actor's, or its copy.
    pub vdi: VdiId,
    /// What to do.
    pub command: Command,
    /// Who asked: its fields (uid, pid, method) are in every log line of the command.
    pub span: tracing::Span,
}

/// A VDI while a command works on it.
#[derive(Debug, Clone, Copy)]
pub struct Vdi<'a> {
    pub(super) id: &'a VdiId,
    pub(super) registry: &'a Registry,
}

/// Obeys until there is nothing to do.
pub async fn run(registry: Arc<Registry>, id: VdiId, mut queue: mpsc::Receiver<Job>) {
    loop {
        while let Ok(job) = queue.try_recv() {
            // No VDI changes while its whole SR does.
            let lock = registry.srs.lock(&id.sr);
            let _shared = lock.read().await;
            let vdi = Vdi { id: &job.vdi, registry: &registry };
            vdi.obey(job.command).instrument(job.span).await;
        }
        if registry.retire(&id, &queue) {
            return;
        }
    }
}

impl Vdi<'_> {
    async fn obey(&self, command: Command) {
        match command {
            Command::Create { record, reply } => answer(reply, self.create(*record).await),
            Command::Destroy { reply } => answer(reply, self.destroy().await),
            Command::EpochBegin { persistent, reply } => {
                answer(reply, self.epoch_begin(persistent).await);
            }
            Command::EpochEnd { reply } => answer(reply, self.epoch_end().await),
            Command::Copy { record, reply } => answer(reply, self.copy(*record).await),
            Command::Revert { snapshot, reply } => answer(reply, self.revert(snapshot).await),
            Command::Unlock { from, reason, reply } => {
                answer(reply, self.unlock(from, reason).await);
            }
            Command::Resize { size, reply } => answer(reply, self.resize(size).await),
            Command::Edit { edit, reply } => answer(reply, self.edit(edit).await),
            Command::Abandon { dp, domain, reply } => {
                answer(reply, self.abandon(&dp, &domain).await);
            }
            Command::Tidy { reply } => answer(reply, self.tidy().await),
            Command::Revive { reply } => answer(reply, self.revive().await),
            Command::Upgrade { reply } => answer(reply, self.upgrade().await),
            other => self.obey_use(other).await,
        }
    }
}

impl Vdi<'_> {
    /// The commands of one use, of the VDI or of the copy that its guest uses instead.
    async fn obey_use(&self, command: Command) {
        match command {
            Command::Attach { dp, domain, mode, reply } => {
                let attached = match self.attached_to(&dp).await {
                    Ok(id) => self.at(&id).attach(&dp, domain, mode).await,
                    Err(error) => Err(error),
                };
                answer(reply, attached);
            }
            Command::Activate { dp, read_only, reply } => {
                let activated = match self.registry.used(self.id, &dp).await {
                    Ok(id) => self.at(&id).activate(&dp, read_only).await,
                    Err(error) => Err(error),
                };
                answer(reply, activated);
            }
            Command::Deactivate { dp, reply } => {
                let deactivated = match self.registry.used(self.id, &dp).await {
                    Ok(id) => self.at(&id).deactivate(&dp).await,
                    Err(error) => Err(error),
                };
                answer(reply, deactivated);
            }
            Command::Detach { dp, reply } => {
                let detached = match self.registry.used(self.id, &dp).await {
                    Ok(id) => self.at(&id).detach(&dp).await,
                    Err(error) => Err(error),
                };
                answer(reply, detached);
            }
            Command::DestroyDatapath { dp, allow_leak, reply } => {
                let destroyed = match self.registry.used(self.id, &dp).await {
                    Ok(id) => self.at(&id).destroy_datapath(&dp, allow_leak).await,
                    Err(error) => Err(error),
                };
                answer(reply, destroyed);
            }
            _ => unreachable!("all else is a command of the whole VDI"),
        }
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, StorageError>) {
    if let Err(error) = &result {
        tracing::warn!("refused or failed: {error}");
    }
    fault::point!("before a VDI's answer");
    // A client that hung up has no use for it; what was done stays done.
    let _ = reply.send(result);
}

/// How to use an attached VDI: final from the attach on, whether a worker runs yet or not.
#[must_use]
pub fn backend(id: &VdiId, kind: &str, nbd_socket: &Path) -> Backend {
    let extra = [("vdi-uuid", id.vdi.as_str()), ("storage-type", "zerotap")];
    let extra = extra.map(|(key, value)| (key.to_string(), value.to_string()));
    let disk = XenDisk {
        params: id.to_params(),
        extra: Pairs::from(extra),
        backend_type: kind.to_string(),
    };
    let uri = format!("nbd:unix:{}:exportname={}", nbd_socket.display(), id.vdi);
    let nbd = Nbd { uri };
    Backend { implementations: vec![Implementation::XenDisk(disk), Implementation::Nbd(nbd)] }
}
