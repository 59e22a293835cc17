//! `zerotap status` and `zerotap diagnostics`: how the daemon and its host are.

use super::context::Context;
use super::failure::Failure;
use super::{duration, pair, table};
use jiff::Timestamp;
use zerotap_rpc_schema::admin::HostStatus;
use zerotap_rpc_schema::table::{HostStatusMethod, QueryDiagnostics};

pub(crate) async fn status(context: &Context) -> Result<(), Failure> {
    let status = context.ask::<HostStatusMethod>().await?;
    context.show(&status, |status| render(status, Timestamp::now()))
}

pub(crate) async fn diagnostics(context: &Context) -> Result<(), Failure> {
    let report = context.ask::<QueryDiagnostics>().await?;
    context.show(&report, |report| table::plain(report.trim_end()) + "\n")
}

fn render(status: &HostStatus, now: Timestamp) -> String {
    let trouble = match status.trouble.len() {
        0 => "none".to_owned(),
        count => format!("{count}, below"),
    };
    let xenstore = if status.xenstore { "answers" } else { "does not answer" };
    let mut text = table::properties(&[
        ("Version", status.version.clone()),
        ("Host", status.host.clone()),
        ("Process", status.pid.to_string()),
        ("Running since", duration::since(&status.since, now)),
        ("Host uuid", status.host_uuid.clone()),
        ("Boot id", status.boot_id.clone()),
        ("xenstored", xenstore.into()),
        ("Engine", pair::join(&status.engine)),
        ("SRs attached", status.srs.to_string()),
        ("VDIs in use", status.vdis.to_string()),
        ("Workers", status.workers.to_string()),
        ("VBDs connected", status.vbds.to_string()),
        ("NBD clients", status.nbd_clients.to_string()),
        ("Trouble", trouble),
    ]);
    for trouble in &status.trouble {
        let line = format!("{}: {}\n  remedy: {}\n", trouble.what, trouble.problem, trouble.remedy);
        text += &table::plain(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::admin::Trouble;

    fn status() -> HostStatus {
        HostStatus {
            version: "0.1.0".into(),
            host: "sim".into(),
            pid: 7,
            since: "2026-01-01T00:00:00Z".into(),
            boot_id: "b".into(),
            host_uuid: "h".into(),
            xenstore: true,
            engine: [("engine".to_owned(), "io_uring".to_owned())].into(),
            srs: 1,
            vdis: 0,
            workers: 0,
            vbds: 0,
            nbd_clients: 0,
            trouble: vec![],
        }
    }

    #[test]
    fn a_healthy_host_has_no_trouble() {
        let text = render(&status(), "2026-01-01T00:01:01Z".parse().expect("a time"));
        assert!(text.contains("Running since   2026-01-01T00:00:00Z (1m 1s ago)\n"), "{text}");
        assert!(text.contains("Engine          engine=io_uring\n"), "{text}");
        assert!(text.ends_with("Trouble         none\n"), "{text}");
    }

    #[test]
    fn trouble_comes_with_its_remedy() {
        let trouble = Trouble { what: "xenstore".into(), problem: "p".into(), remedy: "r".into() };
        let text =
            render(&HostStatus { trouble: vec![trouble], ..status() }, Timestamp::UNIX_EPOCH);
        assert!(text.contains("Trouble         1, below\n"), "{text}");
        assert!(text.ends_with("xenstore: p\n  remedy: r\n"), "{text}");
    }
}
