//! A simulated host with our daemon on it, in directories of its own: what `demo` and `bench` play
//! on. Everything that was started is ended, by its process id, when this is dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{process, workspace};

/// How long a program may take until it serves.
const START_SECONDS_MAX: u64 = 20;

/// The running host.
pub(crate) struct SimHost {
    programs: PathBuf,
    directory: PathBuf,
    sim_dir: PathBuf,
    daemon: Child,
    simhost: Child,
    keep: bool,
}

impl SimHost {
    /// Builds what is missing and starts it. `storage` is where disks lie: a file system that knows
    /// direct I/O, so not the temporary directory.
    pub(crate) fn start(profile: &str) -> Result<Self> {
        let target = workspace::target_dir();
        let programs = target.join(if profile == "dev" { "debug" } else { profile });
        Self::start_from(profile, &programs, None)
    }

    /// The same with the daemon that lies in `daemon_dir`.
    pub(crate) fn start_from(
        profile: &str,
        daemon_dir: &Path,
        config: Option<&Path>,
    ) -> Result<Self> {
        let mut build = workspace::cargo(&["build", "--profile", profile]);
        build.args(["-p", "zerotap", "-p", "zerotap-datapath", "-p", "zerotap-tests", "--bins"]);
        process::run(&mut build)?;
        let target = workspace::target_dir();
        let guests = target.join(if profile == "dev" { "debug" } else { profile });
        let programs = daemon_dir.to_path_buf();
        let directory = target.join(format!("sim-host/{}", std::process::id()));
        let sim_dir = PathBuf::from(format!("/dev/shm/zerotap-sim-{}", std::process::id()));
        for needed in [&directory.join("sr"), &sim_dir] {
            fs::create_dir_all(needed).with_context(|| format!("create {}", needed.display()))?;
        }
        let mut simhost = Command::new(guests.join("zerotap-simhost"))
            .arg("--dir")
            .arg(&sim_dir)
            .stdout(Stdio::piped())
            .spawn()
            .context("start zerotap-simhost")?;
        let mut ready = String::new();
        let stdout = simhost.stdout.take().context("zerotap-simhost has no output")?;
        BufReader::new(stdout).read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "zerotap-simhost said {ready:?} instead of ready");
        let log = fs::File::create(directory.join("daemon.log"))?;
        let mut daemon = Command::new(programs.join("zerotap"));
        daemon
            .args(["serve", "--host", "sim", "--sim-dir"])
            .arg(&sim_dir)
            .arg("--run-dir")
            .arg(directory.join("run"))
            .arg("--state")
            .arg(directory.join("state.db"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(config) = config {
            daemon.arg("--config").arg(config);
        }
        let daemon = daemon.spawn().context("start zerotap serve")?;
        let mut host = SimHost { programs, directory, sim_dir, daemon, simhost, keep: false };
        host.wait_ready()?;
        Ok(host)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("the daemon ended with {status}:\n{}", self.log());
            }
            ensure!(Instant::now() < limit, "the daemon does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// What the daemon and its workers have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/rpc.sock")
    }

    /// The daemon's database.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state.db")
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// An empty directory for a file SR.
    pub(crate) fn storage(&self) -> PathBuf {
        self.directory.join("sr")
    }

    pub(crate) fn sim_dir(&self) -> &Path {
        &self.sim_dir
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of our programs.
    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    /// The command line, talking to this daemon.
    pub(crate) fn zerotap(&self, words: &[&str]) -> Command {
        let mut command = self.program("zerotap");
        command.arg("--socket").arg(self.socket()).args(words);
        command
    }

    /// Calls a method; answers its result.
    pub(crate) fn call(&self, method: &str, params: &Value) -> Result<Value> {
        let answer = process::output(&mut self.zerotap(&["call", method, &params.to_string()]))?;
        serde_json::from_str(&answer).with_context(|| format!("{method} answered {answer:?}"))
    }

    /// The command that ends what `keep` leaves: the workers after the daemon, which they outlive
    /// and which would replace them.
    pub(crate) fn how_to_end(&self) -> Result<String> {
        let workers = self.call("Worker.list", &serde_json::json!({}))?;
        let pids = workers.as_array().into_iter().flatten();
        let pids: Vec<String> = pids.map(|worker| worker["pid"].to_string()).collect();
        let (daemon, simhost) = (self.daemon.id(), self.simhost.id());
        Ok(format!("kill {daemon} {simhost}; sleep 1; kill {}", pids.join(" ")))
    }

    /// Leaves everything running.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for SimHost {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Workers outlive the daemon on purpose: end those that still serve.
        let workers = self.call("Worker.list", &serde_json::json!({})).unwrap_or_default();
        for child in [&mut self.daemon, &mut self.simhost] {
            let _ = child.kill();
            let _ = child.wait();
        }
        for worker in workers.as_array().into_iter().flatten() {
            let _ = Command::new("kill").arg(worker["pid"].to_string()).status();
        }
        let _ = fs::remove_dir_all(&self.sim_dir);
        let _ = fs::remove_dir_all(&self.directory);
    }
}
