//! Tells a person who waits how far a copy is: past two seconds, on standard error, from
//! `Task.list`.
//!
//! Only tells: the call goes on whatever is told of it.

use super::context::{Context, DBG};
use super::size::human;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use zerotap_rpc_schema::admin::Task;
use zerotap_rpc_schema::smapi2::{NoParams, VdiParams};
use zerotap_rpc_schema::table::TaskList;

/// How long nothing is told.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is told from then on.
const INTERVAL: Duration = Duration::from_secs(1);

/// Awaits `call`, which works on the data of `vdi`.
pub(crate) async fn told<T>(
    context: &Context,
    vdi: &VdiParams,
    call: impl Future<Output = T>,
) -> T {
    let mut call = pin!(call);
    let mut ticks = interval_at(Instant::now() + PATIENCE, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut said = String::new();
    loop {
        tokio::select! {
            result = &mut call => {
                if !said.is_empty() && std::io::stderr().is_terminal() {
                    say("\n");
                }
                return result;
            }
            _ = ticks.tick() => {
                let asked = context.call::<TaskList>(&NoParams { dbg: DBG.into() }).await;
                let line = line(&asked.unwrap_or_default(), vdi);
                if let Some(line) = line.filter(|line| *line != said) {
                    let over = std::io::stderr().is_terminal();
                    say(&if over { format!("\r{line}\x1b[K") } else { format!("{line}\n") });
                    said = line;
                }
            }
        }
    }
}

fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Whoever closed it does not want to be told.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn line(tasks: &[Task], vdi: &VdiParams) -> Option<String> {
    let task = tasks.iter().find(|task| task.sr == vdi.sr && task.vdi == vdi.vdi)?;
    let (done, of) = (task.done_bytes, task.of_bytes);
    Some(match (u128::from(done) * 100).checked_div(u128::from(of)) {
        Some(percent) => {
            format!("{}: {} of {} ({percent} %)", task.operation, human(done), human(of))
        }
        None => format!("{}: begun {}", task.operation, task.since),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_about_this_vdi() {
        let task = |vdi: &str, done_bytes, of_bytes| Task {
            operation: "copy".into(),
            sr: "s".into(),
            vdi: vdi.into(),
            since: "2026-01-01T00:00:00Z".into(),
            done_bytes,
            of_bytes,
        };
        let tasks = [task("other", 1, 2), task("v", 3 << 29, 2 << 30), task("fresh", 0, 0)];
        let of = |vdi: &str| {
            line(&tasks, &VdiParams { dbg: String::new(), sr: "s".into(), vdi: vdi.into() })
        };
        assert_eq!(of("v").as_deref(), Some("copy: 1.5 GiB of 2 GiB (75 %)"));
        assert_eq!(of("fresh").as_deref(), Some("copy: begun 2026-01-01T00:00:00Z"));
        assert_eq!(of("none"), None);
    }
}
