//! Fault points: named places between two steps of an operation, at which a scenario kills the
//! daemon.
//!
//! A release build has none of this: [`point!`] is nothing there, and `cargo xtask dist` makes
//! sure.
//! A debug build started with `ZEROTAP_FAULT_DIR` notes each point that it passes in `passed`
//! there, a name a line. At the one whose number stands in `kill` it dies without a word; at the
//! one that stands in `hold` it waits until that file is gone. So a scenario finds every point by
//! counting until an operation survives, and none can be forgotten. They stand where something
//! lasting changes: commits, records, data, workers, xenstore, messages.

/// A place that is named by a literal. Costs nothing in a release build.
macro_rules! point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::fault::pass($name)
    };
}
pub(crate) use point;

/// Notes it, and dies if it is its turn. Does nothing where there is no directory.
#[cfg(debug_assertions)]
pub(crate) fn pass(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::io::Write;
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};

    /// Points are passed one after the other, or their numbers would mean nothing.
    static TURN: Mutex<()> = Mutex::new(());

    let Some(dir) = std::env::var_os("ZEROTAP_FAULT_DIR") else { return };
    let (dir, _turn) = (Path::new(&dir), TURN.lock().unwrap_or_else(PoisonError::into_inner));
    let note = std::fs::File::options().create(true).append(true).open(dir.join("passed"));
    if note.and_then(|mut passed| writeln!(passed, "{name}")).is_err() {
        return;
    }
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let number = Ok(read("passed").lines().count());
    while read("hold").parse() == number {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    if read("kill").parse() == number {
        // As the operator does it, and the kernel: nothing is flushed, nobody is told.
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}
