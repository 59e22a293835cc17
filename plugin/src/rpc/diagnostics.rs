//! What is wrong and what to do about it, and the report of Query.diagnostics. Changes nothing.

use crate::rpc::Core;
use crate::sr::catalog::Contents;
use crate::vdi::VdiId;
use crate::worker::set::Entry;
use crate::worker::{Counted, WorkerError, WorkerHandle};
use futures_util::future::join_all;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::{Trouble, Vbd};
use zerotap_rpc_schema::smapi2::{SrInfo, VdiState};

/// How long an SR may take to say that it is well.
const SR_DEADLINE: Duration = Duration::from_secs(2);
/// An SR is told of when less than one such part of it is free: two percent.
const FREE_PARTS_MIN: i64 = 50;
/// Names of each kind that a report lists of one SR.
const NAMES_MAX: usize = 100;

/// A worker, and what it has counted, or why it does not tell.
pub type Asked = (WorkerHandle, Result<Counted, WorkerError>);

/// All workers, asked together: those that are silent are waited for once.
pub async fn ask_workers(core: &Core) -> Vec<Asked> {
    let ask = async |worker: WorkerHandle| {
        let counted = worker.counted().await;
        (worker, counted)
    };
    join_all(core.registry.workers().into_iter().map(ask)).await
}

/// What is degraded, also of the `workers` that were asked; empty when all is well.
///
/// # Errors
/// The database failed.
pub async fn trouble(core: &Core, workers: &[Asked]) -> Result<Vec<Trouble>, StorageError> {
    let mut all = Vec::new();
    if let Err(problem) = &core.engine {
        all.push(Trouble {
            what: "I/O engine".into(),
            problem: format!("no worker can start: {problem}"),
            remedy: "mend that, then restart the daemon".into(),
        });
    }
    for sr in core.srs.list() {
        let Ok(attached) = core.srs.get(&sr) else { continue };
        let health = tokio::time::timeout(SR_DEADLINE, attached.run(|file| file.stat())).await;
        let problem = match health {
            Ok(Ok(info)) => {
                let waiting = waiting(&sr, workers);
                all.extend(shortage(&sr, attached.dir(), &info, waiting));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("its file system has not answered for {} s", SR_DEADLINE.as_secs()),
        };
        let remedy = format!("make {} available again, or SR.detach", attached.dir().display());
        all.push(Trouble { what: format!("SR {sr}"), problem, remedy });
    }
    all.extend(workers.iter().filter_map(silent));
    let datapaths = core.registry.all_datapaths().await?;
    for entry in core.registry.all_workers() {
        let Some(why) = entry.trouble() else { continue };
        let row = entry.row();
        if let Entry::Dead { ended: false, .. } = entry {
            all.push(Trouble {
                what: format!("VDI {}", row.vdi),
                problem: format!("its worker {} (pid {}): {why}", row.id, row.pid),
                remedy: "its guests may be served and are not looked after: see what holds it \
                         (dmesg, /proc/PID/stack). VDI.activate3 kills it and starts another"
                    .into(),
            });
            continue;
        }
        let users = datapaths
            .iter()
            .filter(|(vdi, held)| *vdi == row.vdi && matches!(held.state, VdiState::Activated(_)));
        let users: Vec<&str> = users.map(|(_, held)| held.dp.as_str()).collect();
        all.push(Trouble {
            what: format!("VDI {}", row.vdi),
            problem: format!("its worker {} (pid {}) is gone: {why}", row.id, row.pid),
            remedy: format!(
                "another is started by itself, and its guests go on. If that lasts: the daemon's \
                 log has the worker's last words; VDI.activate3 for datapath {} tries at once, \
                 DP.destroy2 ends the use",
                users.first().unwrap_or(&"-")
            ),
        });
    }
    for (vdi, held) in &datapaths {
        let served = core.registry.all_workers().iter().any(|entry| entry.row().vdi == *vdi);
        if held.leaked {
            all.push(Trouble {
                what: format!("VDI {vdi}"),
                problem: format!("datapath {} is {} and leaked", held.dp, held.state),
                remedy:
                    "each call for the VDI tries to clean it up; DP.destroy2 with allow_leak=true \
                         forgets it"
                        .into(),
            });
        } else if matches!(held.state, VdiState::Activated(_)) && !served {
            all.push(unserved(vdi, &held.dp));
        }
    }
    all.extend(core.vbds.trouble());
    Ok(all)
}

/// An SR whose sparse volumes cannot grow for long.
fn shortage(sr: &str, dir: &Path, info: &SrInfo, waiting: usize) -> Option<Trouble> {
    let SrInfo { name_label, free_space, total_space, .. } = info;
    let short = free_space.saturating_mul(FREE_PARTS_MIN) < *total_space;
    let what_then = match waiting {
        0 => "writes to sparse VDIs wait, or fail (no_space), when there are none".to_owned(),
        1 => "a guest's writes wait for space".to_owned(),
        more => format!("the writes of {more} VBDs wait for space"),
    };
    (short || waiting > 0).then(|| Trouble {
        what: format!("SR {sr}"),
        problem: format!(
            "in {} ({name_label}) {} of {} MiB are free: {what_then}",
            dir.display(),
            free_space >> 20,
            total_space >> 20
        ),
        remedy: "remove VDIs or snapshots, or give its file system more space: what waits goes on \
                 by itself"
            .into(),
    })
}

/// VBDs of an SR whose writes wait for space.
fn waiting(sr: &str, workers: &[Asked]) -> usize {
    let own = workers.iter().filter(|(worker, _)| worker.vdi().sr == sr);
    let vbds = own.filter_map(|(_, counted)| counted.as_ref().ok()).flat_map(|it| &it.vbds);
    vbds.filter(|vbd| vbd.counters.waiting_for_space > 0).count()
}

/// A worker that runs and does not answer.
fn silent((worker, counted): &Asked) -> Option<Trouble> {
    let Err(error @ WorkerError::Deadline { .. }) = counted else { return None };
    let (row, pid) = (worker.row(), worker.pid());
    let kept = if worker.keeps_journals() {
        "another worker takes its place, and its guests go on"
    } else {
        "it is too old for another to go on with its guests' requests: shut them down first"
    };
    Some(Trouble {
        what: format!("VDI {}", row.vdi),
        problem: format!("its worker {} (pid {pid}): {error}", row.id),
        remedy: format!(
            "it is stopped, or the kernel holds it in an I/O: see how the storage below is (dmesg, \
             /proc/{pid}/stack). If it does not come back: kill -9 {pid}; {kept}"
        ),
    })
}

fn unserved(vdi: &VdiId, dp: &str) -> Trouble {
    Trouble {
        what: format!("VDI {vdi}"),
        problem: format!("it is active for datapath {dp} and no worker serves it"),
        remedy: "call VDI.activate3 once more: it starts a worker".into(),
    }
}

/// Query.diagnostics: a text for people.
///
/// # Errors
/// The database failed.
pub async fn report(core: &Core) -> Result<String, StorageError> {
    let mut text = format!(
        "zerotap {} on {}, pid {}, since {}, boot {}\n",
        env!("CARGO_PKG_VERSION"),
        core.host,
        std::process::id(),
        core.since,
        core.boot_id
    );
    // Writing to a String cannot fail.
    let _ = report_srs(core, &mut text).await;
    let _ = writeln!(text, "\ndatapaths:");
    for (vdi, held) in core.registry.all_datapaths().await? {
        let leaked = if held.leaked { ", leaked" } else { "" };
        let _ = writeln!(
            text,
            "  {vdi}  {}  domain {}  {} since {}{leaked}",
            held.dp, held.domain, held.state, held.since
        );
    }
    let _ = writeln!(text, "\nworkers:");
    for entry in core.registry.all_workers() {
        let row = entry.row();
        let state = entry.trouble().unwrap_or_else(|| "serving".into());
        let _ = writeln!(
            text,
            "  {}  {}  pid {}  since {}  {state}",
            row.id, row.vdi, row.pid, row.since
        );
    }
    let _ = writeln!(text, "\nVBDs:");
    match core.vbds.list().await {
        Ok(vbds) => vbds.iter().for_each(|vbd| {
            let Vbd { domid, device, kind, mode, state, since, .. } = vbd;
            let worker = vbd.worker.as_deref().unwrap_or("no worker");
            let _ = writeln!(
                text,
                "  domain {domid}  {device}  {kind}  {mode}  {state} since {since}  {worker}"
            );
        }),
        Err(error) => _ = writeln!(text, "  {error}"),
    }
    let _ = writeln!(text, "\ntrouble:");
    for Trouble { what, problem, remedy } in trouble(core, &ask_workers(core).await).await? {
        let _ = writeln!(text, "  {what}: {problem}\n    {remedy}");
    }
    Ok(text)
}

async fn report_srs(core: &Core, text: &mut String) -> std::fmt::Result {
    for sr in core.srs.list() {
        let Ok(attached) = core.srs.get(&sr) else { continue };
        writeln!(text, "\nSR {sr} in {}:", attached.dir().display())?;
        match attached.run(|file| file.contents()).await {
            Err(error) => writeln!(text, "  {error}")?,
            Ok(Contents { keys, orphans, temporaries, foreign }) => {
                writeln!(text, "  volumes: {}", keys.len())?;
                names(text, "data without a record, left by a crash or put there", &orphans)?;
                names(text, "half-written, removed at the next SR.attach", &temporaries)?;
                names(text, "foreign, left alone", &foreign)?;
            }
        }
    }
    Ok(())
}

fn names(text: &mut String, what: &str, names: &[String]) -> std::fmt::Result {
    if names.is_empty() {
        return Ok(());
    }
    let shown = names[..names.len().min(NAMES_MAX)].join(" ");
    let more = names.len().saturating_sub(NAMES_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    writeln!(text, "  {what}: {shown}{more}")
}
