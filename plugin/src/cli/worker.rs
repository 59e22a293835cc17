//! `zerotap worker`: the processes that serve VDIs.

use super::context::Context;
use super::failure::Failure;
use super::{duration, size, table};
use jiff::Timestamp;
use zerotap_rpc_schema::admin::Worker;
use zerotap_rpc_schema::table::WorkerList;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the workers: process, memory, what they serve
    Ls,
}

pub(crate) async fn run(verb: &Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => {
            let workers = context.ask::<WorkerList>().await?;
            context.show(&workers, |workers| render(workers, Timestamp::now()))
        }
    }
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
