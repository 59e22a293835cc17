//! The processes of a host under test, each ended by its own pid.

use crate::bare_worker::Control;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Child;
use zerotap_rpc_schema::worker::{Answer, Ask, PROTOCOL, PROTOCOL_OLDEST};

/// SIGTERM.
pub(super) fn terminate(child: &Child) -> rustix::io::Result<()> {
    kill_process(Pid::from_child(child), Signal::TERM)
}

/// Ends every worker that listens below `run_dir`: they outlive the daemon on purpose.
pub(super) fn end_workers(run_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(run_dir.join("worker")) else { return };
    for entry in entries.flatten() {
        // A socket without a worker behind it answers nothing.
        let Ok(mut control) = Control::connect(&entry.path()) else { continue };
        for protocol in [PROTOCOL, PROTOCOL_OLDEST] {
            if let Ok(Answer::Hello { pid, .. }) = control.ask(Ask::Hello { protocol }) {
                kill(pid);
            }
        }
    }
}

/// kill -9 of a process that answered on a socket of ours.
pub(super) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone by now.
        let _ = kill_process(pid, Signal::KILL);
    }
}
