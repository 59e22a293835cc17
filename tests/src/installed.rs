//! The worker's program as a host has it installed, where a scenario can put another in its place.
//!
//! A script that starts the real one under a name of the scenario's, so that the kernel tells
//! (`/proc/<pid>/comm`) which installation a worker is of.

use crate::programs::program;
use anyhow::Context as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use tempfile::TempDir;

/// The program's place.
#[derive(Debug)]
pub struct Installed {
    dir: TempDir,
}

impl Installed {
    /// An installation of that name; at most 15 bytes of it are seen.
    ///
    /// # Errors
    /// The file system's, or that the worker is not built.
    pub fn new(name: &str) -> anyhow::Result<Installed> {
        let installed = Installed { dir: tempfile::tempdir()? };
        installed.install(name, "")?;
        Ok(installed)
    }

    /// The line of the daemon's configuration that names it.
    #[must_use]
    pub fn configuration(&self) -> String {
        format!("worker_program = {:?}", self.program().display().to_string())
    }

    /// The daemon is told of this path.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("zerotap-datapath")
    }

    /// Puts an installation of that name in the place of the former, as a package does: at once.
    /// `before`: words of a shell before the program's.
    ///
    /// # Errors
    /// The file system's.
    pub fn install(&self, name: &str, before: &str) -> anyhow::Result<()> {
        let real = self.dir.path().join(name);
        symlink(program("zerotap-datapath")?, &real)?;
        let pids = self.pids();
        self.install_script(&format!(
            "echo $$ >>{}\n{before} exec {} \"$@\"",
            pids.display(),
            real.display()
        ))
    }

    /// The same with any script.
    ///
    /// # Errors
    /// The file system's.
    pub fn install_script(&self, script: &str) -> anyhow::Result<()> {
        let new = self.dir.path().join("new");
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755))?;
        std::fs::rename(&new, self.program()).context("install a worker's program")
    }

    fn pids(&self) -> PathBuf {
        self.dir.path().join("pids")
    }

    /// Who was started last, whether it has come to serve or not.
    ///
    /// # Errors
    /// Nobody was.
    pub fn last_started(&self) -> anyhow::Result<u32> {
        let pids = std::fs::read_to_string(self.pids())?;
        pids.lines().last().context("nobody was started")?.parse().context("a pid")
    }
}

/// The name of the installation that a worker is of; none when it has ended.
#[must_use]
pub fn installation(pid: u32) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}
