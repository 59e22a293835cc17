//! What calls cost, through XAPI's message switch: `zerotap-callers` measures, here is judged.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{
    ATTACH_ACTIVATE_QUEUE, ATTACH_QUEUE, COMMITS_PER_ATTACH, COMMITS_PER_ATTACH_LIMIT, DAEMON_RSS,
    DAEMON_RSS_LIMIT_MIB, Figure, IDLE_CPU, IDLE_CPU_LIMIT_PERCENT, PARALLEL_ACTIVATE,
    PARALLEL_LIMIT_SECONDS, PAUSE, PAUSE_LIMIT_MS, SCAN, SCAN_LIMIT_MS,
};
use crate::packages::{self, XFSPROGS};
use crate::process;
use crate::sim_host::SimHost;
use crate::workspace;

/// What VDI.attach3 may cost: commits, and milliseconds beside them.
const ATTACH_MAY: (f64, f64) = (1.5, 1.0);
/// What it may cost together with VDI.activate3.
const ATTACH_ACTIVATE_MAY: (f64, f64) = (4.0, 8.0);

pub(crate) fn measure() -> Result<Vec<Figure>> {
    packages::ensure(&[XFSPROGS])?;
    // A socket's path is short.
    let room = std::env::temp_dir().join(format!("zerotap-bench-{}", std::process::id()));
    fs::create_dir_all(&room).with_context(|| format!("create {}", room.display()))?;
    let (switch, config) = (room.join("switch"), room.join("zerotap.toml"));
    let text = format!(
        "[message_switch]\nenabled = true\nsocket = {switch:?}\nstorage_scripts = {room:?}\n"
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let measured = run(&switch, &config);
    // It is only untidy.
    let _ = fs::remove_dir_all(&room);
    figures(&measured?)
}

fn run(switch: &std::path::Path, config: &std::path::Path) -> Result<Value> {
    let programs = workspace::target_dir().join("release");
    let host = SimHost::start_from("release", &programs, Some(config))?;
    let mut callers = host.program("zerotap-callers");
    callers.arg("--switch").arg(switch).arg("--socket").arg(host.socket());
    callers.arg("--state").arg(host.state()).arg("--storage").arg(host.storage());
    callers.arg("--sim-dir").arg(host.sim_dir());
    let said = process::output(callers.args(["--pid", &host.pid().to_string()]))?;
    let last = said.lines().last().context("zerotap-callers says what it measured")?;
    serde_json::from_str(last).with_context(|| format!("zerotap-callers says {last}"))
}

fn figures(measured: &Value) -> Result<Vec<Figure>> {
    let numbers = |value: &Value| -> Result<Vec<f64>> {
        let list = value.as_array().context("a list")?;
        list.iter().map(|number| number.as_f64().context("a number")).collect()
    };
    let mut attach = Vec::new();
    let mut attach_activate = Vec::new();
    for each in measured["one_by_one"].as_array().context("one_by_one")? {
        let [commit, attached, activated] = numbers(each)?[..] else {
            anyhow::bail!("{each}: not three numbers")
        };
        let may = |(commits, ms): (f64, f64)| commits * commit + ms;
        attach.push((attached, may(ATTACH_MAY)));
        attach_activate.push((activated, may(ATTACH_ACTIVATE_MAY)));
    }
    let limited = |name: &str, limit: f64| -> Result<Vec<(f64, f64)>> {
        let value = &measured[name];
        let all = if value.is_array() {
            numbers(value)
        } else {
            numbers(&Value::from(vec![value.clone()]))
        };
        Ok(all.with_context(|| name.to_owned())?.into_iter().map(|ours| (ours, limit)).collect())
    };
    Ok(vec![
        Figure::from_pairs(&ATTACH_QUEUE, &attach),
        Figure::from_pairs(&ATTACH_ACTIVATE_QUEUE, &attach_activate),
        Figure::from_pairs(
            &COMMITS_PER_ATTACH,
            &limited("commits_per_attach", COMMITS_PER_ATTACH_LIMIT)?,
        ),
        Figure::from_pairs(&SCAN, &limited("scan_ms", SCAN_LIMIT_MS)?),
        Figure::from_pairs(&PAUSE, &limited("pause_ms", PAUSE_LIMIT_MS)?),
        Figure::from_pairs(
            &PARALLEL_ACTIVATE,
            &limited("parallel_seconds", PARALLEL_LIMIT_SECONDS)?,
        ),
        Figure::from_pairs(&DAEMON_RSS, &limited("rss_mib", DAEMON_RSS_LIMIT_MIB)?),
        Figure::from_pairs(&IDLE_CPU, &limited("idle_percent", IDLE_CPU_LIMIT_PERCENT)?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_attachment_is_judged_by_the_commit_measured_before_it() {
        let measured = json!({
            "one_by_one": [[2.0, 3.9, 15.0], [0.1, 1.1, 8.5], [4.0, 8.0, 23.0]],
            "commits_per_attach": 0.1, "parallel_seconds": [1.0, 5.0, 2.0],
            "rss_mib": 63.0, "idle_percent": 0.0, "scan_ms": [101.0],
            "pause_ms": [3.0, 30.0, 19.0],
        });
        let met: Vec<bool> = figures(&measured).unwrap().iter().map(Figure::met).collect();
        assert_eq!(met, [true, true, true, false, true, true, true, true]);
        assert!(figures(&json!({})).is_err());
    }
}
