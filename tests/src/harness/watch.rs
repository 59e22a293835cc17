//! `zerotap watch`, and what it tells.
//!
//! Its functions panic: they are what scenarios assert.

use super::Host;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};
use zerotap_rpc_schema::event::{Change, Event};

/// `zerotap watch --json`, and what it has said.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    /// Starts it; returns once it hears of changes.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(host: &Host) -> Watch {
        let mut command = host.zerotap(&["watch", "--json"]).unwrap();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut watch = Watch { child, lines };
        // It says nothing by itself: changes are made until it tells of one.
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| watch.next());
            while !heard.is_finished() {
                host.create_sr().unwrap();
            }
            assert!(matches!(heard.join().unwrap(), Change::Sr { .. }));
        });
        watch
    }

    fn next(&mut self) -> Change {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "it has ended");
        let event: Event = serde_json::from_str(&line).unwrap_or_else(|it| panic!("{line}: {it}"));
        event.change
    }

    /// What comes up to and with the first change that `wanted` knows.
    ///
    /// # Panics
    /// When it ends before that.
    pub fn until(&mut self, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.next());
            if heard.last().is_some_and(&wanted) {
                return heard;
            }
        }
    }

    /// Waits for its end, which is to be a failure: the daemon has gone.
    ///
    /// # Panics
    /// When it ends well.
    pub fn fails(mut self) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert!(!self.child.wait().unwrap().success(), "it says that the daemon has gone");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
