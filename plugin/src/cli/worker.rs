//! `zerotap worker`: the processes that serve VDIs.

use super::context::{Context, DBG};
use super::failure::Failure;
use super::locate::{self, Which};
use super::{duration, size, table};
use clap::ArgGroup;
use jiff::Timestamp;
use zerotap_rpc_schema::admin::Worker;
use zerotap_rpc_schema::smapi2::VdiParams;
use zerotap_rpc_schema::table::{WorkerList, WorkerUpgrade};

const UPGRADE_EXAMPLES: &str = "\
Examples:
  zerotap worker upgrade $VDI
  zerotap worker upgrade --all

A worker of the program that is installed now takes the disk over from the one that serves it.
Guests see a short pause and no error; NBD clients are cut off and connect anew. One disk after the
other; the first that fails ends it.";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the workers: process, memory, what they serve
    Ls,
    /// Have workers of the installed program take disks over, under their guests' I/O
    #[command(after_help = UPGRADE_EXAMPLES)]
    Upgrade(Upgrade),
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("disks").required(true).args(["vdi", "all"]))]
pub(crate) struct Upgrade {
    /// The VDI's uuid
    #[arg(value_name = "VDI")]
    vdi: Option<String>,
    /// Its SR's uuid; without it all attached SRs are searched
    #[arg(long, value_name = "SR", conflicts_with = "all")]
    sr: Option<String>,
    /// All disks that are served
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(verb: &Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => {
            let workers = context.ask::<WorkerList>().await?;
            context.show(&workers, |workers| render(workers, Timestamp::now()))
        }
        Verb::Upgrade(upgrade) => {
            let mut workers = Vec::new();
            for vdi in disks(upgrade, context).await? {
                workers.push(context.call::<WorkerUpgrade>(&vdi).await?);
            }
            context.show(&workers, |workers| render(workers, Timestamp::now()))
        }
    }
}

async fn disks(upgrade: &Upgrade, context: &Context) -> Result<Vec<VdiParams>, Failure> {
    if let Some(vdi) = &upgrade.vdi {
        let which = Which { vdi: vdi.clone(), sr: upgrade.sr.clone() };
        return Ok(vec![locate::vdi(context, &which).await?]);
    }
    let workers = context.ask::<WorkerList>().await?;
    let serving = workers.into_iter().filter(|worker| worker.state == "serving");
    let params = |Worker { sr, vdi, .. }| VdiParams { dbg: DBG.into(), sr, vdi };
    Ok(serving.map(params).collect())
}

fn render(workers: &[Worker], now: Timestamp) -> String {
    let row = |worker: &Worker| {
        vec![
            worker.id.clone(),
            worker.pid.to_string(),
            worker.state.clone(),
            duration::age_of(&worker.since, now),
            size::human(worker.rss_kib << 10),
            worker.version.clone(),
            worker.vbds.join(" "),
            worker.engine.as_ref().map_or("-".into(), |engine| engine.kind.to_string()),
            worker.nbd.as_ref().map_or(0, |nbd| nbd.clients).to_string(),
            worker.vdi.clone(),
        ]
    };
    let rows: Vec<_> = workers.iter().map(row).collect();
    let header =
        ["WORKER", "PID", "STATE", "AGE", "MEMORY", "VERSION", "VBDS", "ENGINE", "NBD", "VDI"];
    table::columns(&header, &[1, 4], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::engine::{EngineChoice, EngineKind};

    #[test]
    fn a_worker_is_a_line() {
        let worker = Worker {
            id: "w1".into(),
            sr: "s".into(),
            vdi: "v".into(),
            pid: 42,
            state: "serving".into(),
            version: "0.1.0".into(),
            since: "2026-01-01T00:00:00Z".into(),
            rss_kib: 4096,
            vbds: vec!["5/51712".into()],
            nbd: None,
            engine: Some(EngineChoice { kind: EngineKind::Aio, why: "because".into() }),
        };
        let text = render(&[worker], "2026-01-01T00:00:05Z".parse().expect("a time"));
        let line = "w1       42  serving  5s    4 MiB  0.1.0    5/51712  aio     0    v";
        assert!(text.ends_with(&format!("{line}\n")), "{text}");
    }
}
