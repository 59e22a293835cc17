//! A host with a real daemon on it: `zerotap serve` over the simulated host, in directories of its
//! own. Everything that a scenario starts ends with it.

pub mod busy;
pub mod disk;
pub mod failing;
pub mod faults;
pub mod http;
pub mod loop_device;
pub mod nbd;
pub mod openmetrics;
mod processes;
pub mod proxy;
pub mod rpc;
pub mod small;
pub mod watch;

pub use disk::{DEVICE, Disk, Vdi, kill_worker};
pub use rpc::{Rpc, RpcError};

use crate::programs::{engine, program};
use crate::simhost::SimHost;
use anyhow::{Context as _, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the daemon may take to serve after its start.
const START_SECONDS_MAX: u64 = 20;
/// How long it may take to end after SIGTERM.
const STOP_SECONDS_MAX: u64 = 20;
/// How long [`eventually`] waits.
pub const EVENTUALLY_SECONDS_MAX: u64 = 30;

/// A host, its daemon, its directories.
#[derive(Debug)]
pub struct Host {
    daemon: Option<Child>,
    sim: SimHost,
    config: PathBuf,
    state: PathBuf,
    /// On a disk, for images.
    data: TempDir,
    /// In memory, for guests and the daemon's run directory.
    memory: TempDir,
}

impl Host {
    /// A host whose daemon is up.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start() -> anyhow::Result<Host> {
        Host::start_with("")
    }

    /// The same, with further lines in the daemon's configuration.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_with(lines: &str) -> anyhow::Result<Host> {
        Host::start_in(lines, None)
    }

    /// The same with its state database elsewhere.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_with_state(state: &Path) -> anyhow::Result<Host> {
        Host::start_in("", Some(state))
    }

    /// The same with both.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_in(lines: &str, state: Option<&Path>) -> anyhow::Result<Host> {
        let (data, memory) = (tempfile::tempdir()?, tempfile::tempdir_in("/dev/shm")?);
        require_direct_io(data.path())?;
        let sim = SimHost::start(memory.path())?;
        let config = data.path().join("zerotap.toml");
        let state = state.map_or_else(|| data.path().join("state.db"), Path::to_owned);
        let mut host = Host { daemon: None, sim, config, state, data, memory };
        host.write_boot_id("first")?;
        let boot_id = host.data.path().join("boot_id");
        let mut text = String::new();
        if !lines.starts_with("engine = ") {
            writeln!(text, "engine = {:?}", engine())?;
        }
        writeln!(
            text,
            "boot_id_file = {:?}\nlog = \"debug\"\n{lines}",
            boot_id.display().to_string()
        )?;
        std::fs::write(&host.config, text)?;
        host.start_daemon()?;
        Ok(host)
    }

    /// The simulated host under it.
    #[must_use]
    pub fn sim(&self) -> &SimHost {
        &self.sim
    }

    /// A directory on a disk.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The daemon's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.memory.path().join("run")
    }

    /// The daemon's state database.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where the daemon looks for orders to die; it is made by who has some.
    fn fault_dir(&self) -> PathBuf {
        self.data.path().join("faults")
    }

    /// The daemon's RPC.
    #[must_use]
    pub fn rpc(&self) -> Rpc {
        Rpc::new(&self.run_dir().join("rpc.sock"))
    }

    /// The daemon's process.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Plays a reboot: the daemon finds another boot id when it starts next.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_boot_id(&self, name: &str) -> anyhow::Result<()> {
        std::fs::write(self.data.path().join("boot_id"), format!("{name}\n")).map_err(Into::into)
    }

    /// `zerotap` with the arguments that make it talk to this daemon.
    ///
    /// # Errors
    /// When it is not built.
    pub fn zerotap(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("zerotap")?);
        command.env("ZEROTAP_SOCKET", self.rpc().socket()).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_daemon(&mut self) -> anyhow::Result<()> {
        self.spawn_daemon()?;
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while !self.serves()? {
            ensure!(Instant::now() < deadline, "zerotap serve does not answer:\n{}", self.log());
        }
        Ok(())
    }

    /// Whether the daemon that was spawned answers; looks again a little later when it does not.
    ///
    /// # Errors
    /// When it has ended.
    pub fn serves(&mut self) -> anyhow::Result<bool> {
        if self.rpc().raw("SR.list", &serde_json::json!({})).is_ok() {
            return Ok(true);
        }
        let daemon = self.daemon.as_mut().context("the daemon does not run")?;
        if let Some(status) = daemon.try_wait()? {
            anyhow::bail!("zerotap serve ended with {status}:\n{}", self.log());
        }
        std::thread::sleep(Duration::from_millis(2));
        Ok(false)
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn spawn_daemon(&mut self) -> anyhow::Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.serve_command()?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn();
        self.daemon = Some(child.context("start zerotap serve")?);
        Ok(())
    }

    /// Runs a second daemon on the same directories to its end, which should come at once.
    ///
    /// # Errors
    /// When it does not end.
    pub fn second_daemon(&self) -> anyhow::Result<Output> {
        let mut command = self.serve_command()?;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let ended = eventually("the second daemon ends", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        ended.map(|_| output)
    }

    fn serve_command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(program("zerotap")?);
        command.arg("serve").args(["--host", "sim", "--sim-dir"]).arg(self.sim.dir());
        command.arg("--config").arg(&self.config).arg("--run-dir").arg(self.run_dir());
        command.arg("--state").arg(self.state()).stdin(Stdio::null());
        command.env("ZEROTAP_FAULT_DIR", self.fault_dir());
        Ok(command)
    }

    /// kill -9.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// The host goes with all that runs on it and all that it has in memory; the daemon that is
    /// started next finds another boot id.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn crash(&mut self, boot_id: &str) -> anyhow::Result<()> {
        self.kill_daemon()?;
        processes::end_workers(&self.run_dir());
        std::fs::remove_dir_all(self.run_dir())?;
        self.write_boot_id(boot_id)
    }

    /// Whether the daemon has ended though nobody here told it to.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn daemon_has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(daemon) = &mut self.daemon else { return Ok(false) };
        Ok(daemon.try_wait()?.is_some())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_daemon(&mut self) -> anyhow::Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        processes::terminate(&daemon)?;
        let deadline = Instant::now() + Duration::from_secs(STOP_SECONDS_MAX);
        loop {
            if let Some(status) = daemon.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                daemon.kill()?;
                daemon.wait()?;
                anyhow::bail!("zerotap serve does not end after SIGTERM:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What any other program reads in the daemon's database.
    ///
    /// # Errors
    /// When `sqlite3` is not installed, or makes nothing of the query.
    pub fn sqlite(&self, query: &str) -> anyhow::Result<String> {
        let mut sqlite = Command::new("sqlite3");
        sqlite.args(["-readonly", "-cmd", ".timeout 5000"]).arg(self.state()).arg(query);
        let said = sqlite.output().context("sqlite3")?;
        ensure!(said.status.success(), "sqlite3: {}", String::from_utf8_lossy(&said.stderr));
        Ok(String::from_utf8(said.stdout)?.trim().to_owned())
    }

    fn log_path(&self) -> PathBuf {
        self.data.path().join("daemon.log")
    }

    /// What daemon and workers have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever fails here, the rest must still be ended.
        let _ = self.kill_daemon();
        processes::end_workers(&self.run_dir());
        if std::thread::panicking() {
            eprintln!("---- log of daemon and workers ----\n{}----", self.log());
        }
    }
}

/// Waits until `look` gives something; names what did not come otherwise.
///
/// # Errors
/// When it did not come in time.
pub fn eventually<T>(
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(EVENTUALLY_SECONDS_MAX);
    loop {
        let seen = look();
        match seen {
            Ok(Some(it)) => return Ok(it),
            Err(error) if Instant::now() >= deadline => {
                return Err(error)
                    .with_context(|| format!("{what}, in {EVENTUALLY_SECONDS_MAX} s"));
            }
            Ok(None) if Instant::now() >= deadline => {
                anyhow::bail!("{what}: not within {EVENTUALLY_SECONDS_MAX} s")
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A fresh uuid.
///
/// # Errors
/// When the kernel gives none.
pub fn uuid() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

fn require_direct_io(dir: &Path) -> anyhow::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let path = dir.join("direct");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    open(&path, flags, Mode::RUSR | Mode::WUSR).with_context(|| {
        format!("{} does not do direct I/O: set TMPDIR to a directory that does", dir.display())
    })?;
    std::fs::remove_file(path).map_err(Into::into)
}
