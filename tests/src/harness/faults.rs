//! The daemon's fault points (`plugin/src/fault.rs`): which it passes, and at which it is killed.

use super::Host;
use anyhow::Context as _;
use std::path::PathBuf;

/// A host's fault points.
#[derive(Debug, Clone)]
pub struct Faults {
    dir: PathBuf,
    /// Points that a daemon passes until it serves where nothing was cut short.
    of_a_start: usize,
}

impl Host {
    /// Has the daemon note the fault points that it passes, from now on. It is started anew.
    ///
    /// # Errors
    /// When it does not start.
    pub fn faults(&mut self) -> anyhow::Result<Faults> {
        let dir = self.fault_dir();
        std::fs::create_dir_all(&dir)?;
        let mut faults = Faults { dir, of_a_start: 0 };
        self.kill_daemon()?;
        faults.watch()?;
        self.start_daemon()?;
        faults.of_a_start = faults.disarm()?.len();
        Ok(faults)
    }

    /// Starts the daemon and lets it die at the points that it passes until it serves, beyond those
    /// of any start: at the first, started anew at the second, and so on. How many times it died.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn start_daemon_over_faults(&mut self, faults: &Faults) -> anyhow::Result<usize> {
        self.start_daemon_over_faults_from(faults, faults.of_a_start + 1)
    }

    /// The same from the point of that number on.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn start_daemon_over_faults_from(
        &mut self,
        faults: &Faults,
        first: usize,
    ) -> anyhow::Result<usize> {
        self.kill_daemon()?;
        for deaths in 0.. {
            let number = first + deaths;
            faults.arm(number)?;
            let started = self.start_daemon();
            if faults.disarm()?.len() < number {
                return started.map(|()| deaths);
            }
            self.kill_daemon()?;
        }
        unreachable!("a start passes a finite number of points")
    }
}

impl Faults {
    /// Counts from anew, and has the daemon killed at point `number` (from 1 on).
    ///
    /// # Errors
    /// The file system's.
    pub fn arm(&self, number: usize) -> anyhow::Result<()> {
        self.watch()?;
        std::fs::write(self.dir.join("kill"), number.to_string()).context("arm a fault point")
    }

    /// Counts from anew, and has the daemon wait at point `number` until [`Faults::disarm`].
    ///
    /// # Errors
    /// The file system's.
    pub fn arm_hold(&self, number: usize) -> anyhow::Result<()> {
        self.watch()?;
        std::fs::write(self.dir.join("hold"), number.to_string()).context("arm a fault point")
    }

    /// Whether the daemon waits at point `number`.
    ///
    /// # Errors
    /// The file system's.
    pub fn holds(&self, number: usize) -> anyhow::Result<bool> {
        let held = self.dir.join("hold").try_exists()?;
        Ok(held && self.passed().len() >= number)
    }

    fn passed(&self) -> Vec<String> {
        let passed = std::fs::read_to_string(self.dir.join("passed")).unwrap_or_default();
        passed.lines().map(str::to_owned).collect()
    }

    /// Counts from anew, and kills nobody.
    ///
    /// # Errors
    /// The file system's.
    pub fn watch(&self) -> anyhow::Result<()> {
        self.disarm()?;
        std::fs::write(self.dir.join("passed"), "").context("forget the points passed")
    }

    /// Kills and holds nobody any more; the points passed since it was armed. The last of them is
    /// where the daemon was killed, if it was.
    ///
    /// # Errors
    /// The file system's.
    pub fn disarm(&self) -> anyhow::Result<Vec<String>> {
        for order in ["kill", "hold"] {
            match std::fs::remove_file(self.dir.join(order)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(self.passed())
    }
}
