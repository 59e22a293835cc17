//! The simulated host: a directory with a xenstored in it, where guests put their memory.

use crate::xenstore::Client;
use crate::xenstored::{DOM0, Xenstored, socket_path};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// A running simulated host; it ends with this handle, the directory stays.
#[derive(Debug)]
pub struct SimHost {
    dir: PathBuf,
    xenstored: Xenstored,
}

impl SimHost {
    /// Starts a host in `dir`, which is made if need be.
    ///
    /// # Errors
    /// When directory or socket cannot be made.
    pub fn start(dir: &Path) -> anyhow::Result<SimHost> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let xenstored = Xenstored::start(dir)?;
        let host = SimHost { dir: dir.to_owned(), xenstored };
        let mut dom0 = host.toolstack()?;
        dom0.write("/local/domain/0/domid", DOM0)?;
        dom0.write("/local/domain/0/name", "Domain-0")?;
        Ok(host)
    }

    /// The host's directory, for `--sim-dir`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its xenstored.
    #[must_use]
    pub fn xenstored(&self) -> &Xenstored {
        &self.xenstored
    }

    /// A xenstore connection with dom0's rights.
    ///
    /// # Errors
    /// When xenstored is paused.
    pub fn toolstack(&self) -> anyhow::Result<Client> {
        Client::connect(&socket_path(&self.dir, DOM0))
    }
}
