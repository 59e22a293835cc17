//! What this host remembers over a restart of the daemon: the SQLite database, and the only SQL.
//!
//! Never decides anything: it stores rows and settles several at once in one transaction. Called by
//! the registry and its actors, and at start by the daemon. WAL with synchronous=FULL: a call that
//! has returned is on the disk. SQLite has one writer: `state/writer.rs`, which lets callers share
//! a commit; readers have connections of their own and wait for nobody.
//!
//! Every query is checked by the compiler against `.sqlx/`, and a test checks `.sqlx/` against
//! `migrations/`. WHEN CHANGING A QUERY, renew `.sqlx/` as CONTRIBUTING.md says.

mod boot;
mod handled;
mod owed;
mod seen;
mod writer;

pub use boot::Voided;
pub use handled::Handled;
pub use seen::Use;
pub use writer::Commits;

use crate::vdi::VdiId;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlitePool};
use std::path::Path;
use std::time::Duration;
use writer::Writer;
use zerotap_rpc_schema::smapi2::{Mode, Pairs, VdiState};

/// How long SQLite waits for a lock that a foreign tool (a backup, a curious operator) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read.
const READERS_MAX: u32 = 2;

/// What is begun, to be finished or undone by whoever finds it after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// Data file, then record. Undone unless the record is there.
    CreateVdi,
    /// Record, then data file. Finished.
    DestroyVdi,
    /// Data file, then record. Finished when the data has grown.
    ResizeVdi {
        /// Bytes.
        size: i64,
    },
    /// New data beside the old, then in its place, then the record. Finished when it is in place.
    RevertVdi {
        /// Of the content that it reverts to, bytes.
        size: i64,
    },
    /// A worker is started. Undone: nobody was told that it serves.
    Activate {
        /// The worker's id, which is also the name of its socket.
        worker: String,
    },
    /// A worker is stopped. Finished: guests were told.
    Deactivate {
        /// The datapath that asked.
        dp: String,
    },
    /// The SR's record is removed. Finished.
    DestroySr,
    /// A volume's record still says that this host has it active. Finished, now or in the
    /// background, unless the VDI is active again.
    Disown,
}

/// An unsettled intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Its number.
    pub id: i64,
    /// The VDI; its key is empty when the whole SR is meant.
    pub vdi: VdiId,
    /// What was begun.
    pub operation: Operation,
}

/// An attached SR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrRow {
    /// The SR's uuid.
    pub uuid: String,
    /// As given to SR.attach.
    pub device_config: Pairs,
}

/// One use of a VDI.
#[derive(Debug, Clone, PartialEq)]
pub struct Datapath {
    /// The caller's name for it.
    pub dp: String,
    /// The domain it is for, as the caller told it.
    pub domain: String,
    /// Attached or activated; a detached one has no row.
    pub state: VdiState,
    /// Since when, RFC 3339.
    pub since: String,
    /// Its clean-up failed and is tried again before each operation on the VDI.
    pub leaked: bool,
}

/// A worker as it was when it became ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRow {
    /// Its id: the name of its socket.
    pub id: String,
    /// What it serves.
    pub vdi: VdiId,
    /// Its process.
    pub pid: u32,
    /// That process's start, in clock ticks since boot: tells a reused pid.
    pub start_time: u64,
    /// Its control socket.
    pub socket: String,
    /// Its program's version.
    pub version: String,
    /// The image is open read-only.
    pub read_only: bool,
    /// Since when it serves, RFC 3339.
    pub since: String,
}

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    readers: SqlitePool,
    writer: Writer,
    boot_id: String,
}

/// Now, as all rows and answers write it: RFC 3339, UTC, whole seconds.
#[must_use]
pub fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

impl State {
    /// Opens the database, makes it where there is none, and brings it to this version's schema.
    ///
    /// # Errors
    /// The file can't be opened or written, or was written by a newer version.
    pub async fn open(path: &Path, boot_id: &str) -> Result<State> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let cannot_open = || format!("cannot open the state database {}", path.display());
        let mut connection = options.clone().connect().await.with_context(cannot_open)?;
        sqlx::migrate!("../migrations").run(&mut connection).await.with_context(|| {
            format!(
                "cannot bring the state database {} to this version's schema. If another version \
                 wrote it, move it away once no guest runs: it holds what is in use, no volume",
                path.display()
            )
        })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .with_context(cannot_open)?;
        Ok(State { readers, writer: Writer::start(connection, options), boot_id: boot_id.into() })
    }

    /// What was committed since the start.
    #[must_use]
    pub fn commits(&self) -> Commits {
        self.writer.commits()
    }

    /// Writes all back into the main file and closes it.
    pub async fn close(self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// The attached SRs.
    ///
    /// # Errors
    /// The database failed. So with every call below.
    pub async fn srs(&self) -> Result<Vec<SrRow>> {
        let rows = sqlx::query!("SELECT uuid, device_config FROM sr ORDER BY attached_at, uuid");
        let rows = rows.fetch_all(&self.readers).await?;
        rows.into_iter()
            .map(|row| {
                let device_config = serde_json::from_str(&row.device_config)?;
                Ok(SrRow { uuid: row.uuid, device_config })
            })
            .collect()
    }

    /// Remembers an SR as attached.
    pub async fn attach_sr(&self, sr: &SrRow) -> Result<()> {
        let (config, now) = (serde_json::to_string(&sr.device_config)?, now());
        let (uuid, boot) = (sr.uuid.clone(), self.boot_id.clone());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!(
                    "INSERT INTO sr (uuid, type, device_config, attached_at, boot_id)
                     VALUES (?, 'file', ?, ?, ?)
                     ON CONFLICT (uuid) DO UPDATE SET device_config = excluded.device_config",
                    uuid,
                    config,
                    now,
                    boot
                )
                .execute(tx)
                .await?;
                Ok(())
            })
        });
        write.await
    }

    /// Forgets an SR with its datapaths and intents. Fails while it has a worker.
    pub async fn detach_sr(&self, sr: &str) -> Result<()> {
        let sr = sr.to_string();
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!("DELETE FROM sr WHERE uuid = ?", sr).execute(tx).await?;
                Ok(())
            })
        });
        write.await
    }

    /// The uses of a VDI.
    pub async fn datapaths(&self, vdi: &VdiId) -> Result<Vec<Datapath>> {
        let rows = sqlx::query!(
            "SELECT dp, domain, state, mode, since, leaked FROM datapath
             WHERE sr = ? AND vdi = ? ORDER BY since, dp",
            vdi.sr,
            vdi.vdi
        )
        .fetch_all(&self.readers)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Datapath {
                dp: row.dp,
                domain: row.domain,
                state: read_state(&row.state, &row.mode),
                since: row.since,
                leaked: row.leaked != 0,
            })
            .collect())
    }

    /// The uses of all VDIs, in the order of SR, VDI and datapath.
    pub async fn all_datapaths(&self) -> Result<Vec<(VdiId, Datapath)>> {
        let rows = sqlx::query!(
            "SELECT sr, vdi, dp, domain, state, mode, since, leaked FROM datapath
             ORDER BY sr, vdi, dp"
        )
        .fetch_all(&self.readers)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let datapath = Datapath {
                    dp: row.dp,
                    domain: row.domain,
                    state: read_state(&row.state, &row.mode),
                    since: row.since,
                    leaked: row.leaked != 0,
                };
                (VdiId::new(row.sr, row.vdi), datapath)
            })
            .collect())
    }

    /// Makes a datapath be as told, or be gone when its state is `Detached`.
    pub async fn put_datapath(&self, vdi: &VdiId, datapath: &Datapath) -> Result<()> {
        self.settle_without_worker(None, vdi, None, Some(datapath)).await
    }

    /// Forgets a worker, settles an intent and changes a datapath, whichever are given, all at
    /// once.
    pub async fn settle_without_worker(
        &self,
        intent: Option<i64>,
        vdi: &VdiId,
        worker: Option<&str>,
        datapath: Option<&Datapath>,
    ) -> Result<()> {
        let (vdi, boot) = (vdi.clone(), self.boot_id.clone());
        let (worker, datapath) = (worker.map(str::to_string), datapath.cloned());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                if let Some(id) = worker {
                    sqlx::query!("DELETE FROM worker WHERE id = ?", id).execute(&mut *tx).await?;
                }
                if let Some(datapath) = datapath {
                    write_datapath(tx, &vdi, &datapath, &boot).await?;
                }
                if let Some(id) = intent {
                    sqlx::query!("DELETE FROM intent WHERE id = ?", id).execute(tx).await?;
                }
                Ok(())
            })
        });
        write.await
    }

    /// Remembers a ready worker with the datapath that wanted it; settles the intent; all at once.
    pub async fn settle_with_worker(
        &self,
        intent: i64,
        worker: &WorkerRow,
        datapath: &Datapath,
    ) -> Result<()> {
        let (worker, datapath) = (worker.clone(), datapath.clone());
        let boot = self.boot_id.clone();
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                write_worker(tx, &worker, &boot).await?;
                write_datapath(tx, &worker.vdi, &datapath, &boot).await?;
                sqlx::query!("DELETE FROM intent WHERE id = ?", intent).execute(tx).await?;
                Ok(())
            })
        });
        write.await
    }

    /// Remembers a ready worker in the place of `former`; settles the intent; all at once.
    pub async fn replace_worker(
        &self,
        intent: i64,
        former: &str,
        worker: &WorkerRow,
    ) -> Result<()> {
        let (former, worker, boot) = (former.to_string(), worker.clone(), self.boot_id.clone());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!("DELETE FROM worker WHERE id = ?", former).execute(&mut *tx).await?;
                write_worker(tx, &worker, &boot).await?;
                sqlx::query!("DELETE FROM intent WHERE id = ?", intent).execute(tx).await?;
                Ok(())
            })
        });
        write.await
    }

    /// Every worker that was ready and has not been forgotten.
    pub async fn workers(&self) -> Result<Vec<WorkerRow>> {
        let rows = sqlx::query!(
            "SELECT id, sr, vdi, pid, start_time, socket, version, read_only, since
             FROM worker ORDER BY since, id"
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(WorkerRow {
                    id: row.id,
                    vdi: VdiId::new(row.sr, row.vdi),
                    pid: u32::try_from(row.pid)?,
                    start_time: u64::try_from(row.start_time)?,
                    socket: row.socket,
                    version: row.version,
                    read_only: row.read_only != 0,
                    since: row.since,
                })
            })
            .collect()
    }

    /// Remembers what is about to be done; the answer is the number to settle it by.
    pub async fn begin(&self, vdi: &VdiId, operation: &Operation) -> Result<i64> {
        let (operation, now) = (serde_json::to_string(operation)?, now());
        let (vdi, boot) = (vdi.clone(), self.boot_id.clone());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                let done = sqlx::query!(
                    "INSERT INTO intent (sr, vdi, operation, since, boot_id)
                     VALUES (?, ?, ?, ?, ?)",
                    vdi.sr,
                    vdi.vdi,
                    operation,
                    now,
                    boot
                )
                .execute(tx)
                .await?;
                Ok(done.last_insert_rowid())
            })
        });
        write.await
    }

    /// Forgets an intent whose outcome needs no row of its own.
    pub async fn settle(&self, intent: i64) -> Result<()> {
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!("DELETE FROM intent WHERE id = ?", intent).execute(tx).await?;
                Ok(())
            })
        });
        write.await
    }

    /// What was begun and not finished, oldest first.
    pub async fn intents(&self) -> Result<Vec<Intent>> {
        let rows = sqlx::query!("SELECT id, sr, vdi, operation FROM intent ORDER BY id");
        let rows = rows.fetch_all(&self.readers).await?;
        rows.into_iter()
            .map(|row| {
                let operation = serde_json::from_str(&row.operation)
                    .with_context(|| format!("intent {} is unreadable", row.id))?;
                Ok(Intent { id: row.id, vdi: VdiId::new(row.sr, row.vdi), operation })
            })
            .collect()
    }
}

async fn write_worker(
    tx: &mut sqlx::SqliteConnection,
    worker: &WorkerRow,
    boot_id: &str,
) -> Result<()> {
    let (pid, start_time) = (i64::from(worker.pid), i64::try_from(worker.start_time)?);
    sqlx::query!(
        "INSERT INTO worker
             (id, sr, vdi, pid, start_time, boot_id, socket, version, read_only, since)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        worker.id,
        worker.vdi.sr,
        worker.vdi.vdi,
        pid,
        start_time,
        boot_id,
        worker.socket,
        worker.version,
        worker.read_only,
        worker.since
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn write_datapath(
    tx: &mut sqlx::SqliteConnection,
    vdi: &VdiId,
    datapath: &Datapath,
    boot_id: &str,
) -> Result<()> {
    let (state, mode) = match datapath.state {
        VdiState::Detached => {
            sqlx::query!(
                "DELETE FROM datapath WHERE sr = ? AND vdi = ? AND dp = ?",
                vdi.sr,
                vdi.vdi,
                datapath.dp
            )
            .execute(&mut *tx)
            .await?;
            return Ok(());
        }
        VdiState::Attached(mode) => ("attached", mode.to_string()),
        VdiState::Activated(mode) => ("activated", mode.to_string()),
    };
    sqlx::query!(
        "INSERT INTO datapath (sr, vdi, dp, domain, state, mode, since, leaked, boot_id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (sr, vdi, dp) DO UPDATE SET domain = excluded.domain, state = excluded.state,
         mode = excluded.mode, since = excluded.since, leaked = excluded.leaked",
        vdi.sr,
        vdi.vdi,
        datapath.dp,
        datapath.domain,
        state,
        mode,
        datapath.since,
        datapath.leaked,
        boot_id
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The columns' CHECKs allow no other words.
fn read_state(state: &str, mode: &str) -> VdiState {
    let mode = if mode == "RW" { Mode::ReadWrite } else { Mode::ReadOnly };
    if state == "activated" { VdiState::Activated(mode) } else { VdiState::Attached(mode) }
}
#[cfg(test)]
mod tests;
