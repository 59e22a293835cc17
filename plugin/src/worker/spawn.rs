//! How a worker is started: its listener made, its descriptors handed over, its first answer
//! awaited.
//!
//! A worker gets descriptors, never paths. It is in a process group of its own and outlives us;
//! what becomes of it afterwards is the handle's business. Called by a VDI's actor.

use crate::fault;
use crate::host::Host;
use crate::sr::image::Image;
use crate::state::{WorkerRow, now};
use crate::vdi::VdiId;
use crate::worker::client::Client;
use crate::worker::journals::Journals;
use crate::worker::process::Process;
use crate::worker::{Hello, WorkerHandle};
use command_fds::{CommandFdExt, FdMapping};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use zerotap_rpc_schema::engine::{EngineChoice, EngineSetting};
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{Discard, TransferRule};

/// Where a worker finds its descriptors.
const LISTENER_FD: i32 = 3;
const IMAGE_FD: i32 = 4;
const GRANTS_FD: i32 = 5;
const NBD_FD: i32 = 6;
const BUDGET_FD: i32 = 7;
const STAT_FD: i32 = 8;
/// What tells a worker how idle the host is.
const STAT: &str = "/proc/stat";
/// The first of 65 536 numbers for workers' users, beyond those that distributions, directories and
/// containers hand out (systemd's UIDS-GIDS lists them).
const WORKER_USERS_FIRST: u32 = 0x7a70_0000;

/// Pages that a byte of the budget stands for (`datapath/src/xen/budget.rs`).
const LEASE_PAGES: u64 = 64;
/// How long a worker's program may take to tell of its engine.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// What all workers of this daemon have in common.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The worker's program.
    pub program: PathBuf,
    /// By what they do their I/O.
    pub engine: EngineSetting,
    /// The directory of the workers' sockets.
    pub dir: PathBuf,
    /// The directory of the NBD sockets.
    pub nbd_dir: PathBuf,
    /// The journals of the rings.
    pub journals: Journals,
    /// What they map grants from.
    pub host: Host,
    /// The file that stands for what all of them may map, and how many pages that is.
    pub budget: PathBuf,
    /// See `budget`.
    pub mapped_pages_max: u64,
    /// How they reach guests' pages, where neither VDI nor SR says.
    pub transfer: TransferRule,
    /// What becomes of guests' writes that find no space, where the SR does not say.
    pub no_space: NoSpace,
    /// Whether their queues look for work before they sleep.
    pub polling: bool,
}

impl Launcher {
    /// Has the worker's program say which engine it would take on this host.
    ///
    /// # Errors
    /// What it says when it would take none, or why it could not be asked.
    pub async fn engine(&self) -> Result<EngineChoice, String> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["--probe-engine", &self.engine.to_string()]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PROBE_DEADLINE, command.output()).await;
        let output = output.map_err(|_| format!("no answer in {} s", PROBE_DEADLINE.as_secs()));
        let program = self.program.display();
        let output = output.and_then(|output| output.map_err(|error| error.to_string()));
        let output = output.map_err(|error| format!("cannot ask {program}: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{program}: {error}"))
    }

    /// A name for a worker that no other has.
    #[must_use]
    pub fn new_id() -> String {
        // Twelve digits: a socket's path has 107 bytes at most.
        uuid::Uuid::new_v4().simple().to_string()[..12].to_string()
    }

    /// The control socket of the worker of this id.
    #[must_use]
    pub fn socket(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.sock"))
    }

    /// Who a worker becomes: a user of its own, so that it cannot touch another's. Only root can
    /// arrange that, and the simulated host's files are their maker's.
    fn worker_user(&self, id: &str) -> Option<u32> {
        let from = (self.host == Host::Xen && rustix::process::geteuid().is_root())
            .then_some(WORKER_USERS_FIRST)?;
        // Ids are random hexadecimal digits.
        Some(from + u32::from_str_radix(id.get(..4)?, 16).ok()?)
    }

    /// The NBD socket of a VDI: always the same, whether a worker listens on it or not, and short
    /// enough for a socket's path. Attach answers name it before there is a worker.
    #[must_use]
    pub fn nbd_socket(&self, vdi: &VdiId) -> PathBuf {
        let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, vdi.to_params().as_bytes());
        self.nbd_dir.join(name.simple().to_string())
    }

    /// Starts a worker on an image and waits until it says Hello. It does no I/O before it is given
    /// a ring or, with [`Launcher::open_nbd`], NBD clients: until then the image need not be
    /// fenced. The fence lasts as long as the worker does, unless a copy of `image` is kept.
    ///
    /// # Errors
    /// What failed, for people; nothing runs and no socket is left then.
    pub async fn start(&self, id: &str, vdi: &VdiId, image: Image) -> Result<WorkerHandle, String> {
        let socket = self.socket(id);
        let started = self.start_at(&socket, id, vdi, image).await;
        if started.is_err() {
            remove_socket(&socket);
            remove_socket(&self.hidden_nbd_socket(id));
        }
        started
    }

    /// Where a worker listens for NBD clients that do not find it yet.
    fn hidden_nbd_socket(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.nbd"))
    }

    /// Lets NBD clients of the VDI find the worker of this id, and no other.
    ///
    /// # Errors
    /// A text for people.
    pub fn open_nbd(&self, id: &str, vdi: &VdiId) -> Result<(), String> {
        let socket = self.nbd_socket(vdi);
        std::fs::rename(self.hidden_nbd_socket(id), &socket)
            .map_err(|error| format!("{}: {error}", socket.display()))
    }

    /// Removes what a worker of this id, which has ended, left of itself.
    pub fn sweep(&self, id: &str) {
        remove_socket(&self.socket(id));
        remove_socket(&self.hidden_nbd_socket(id));
    }

    async fn start_at(
        &self,
        socket: &Path,
        id: &str,
        vdi: &VdiId,
        image: Image,
    ) -> Result<WorkerHandle, String> {
        let read_only = image.read_only();
        let grants = self.host.open_grants()?;
        let listener = listen(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
        fault::point!("a worker's socket is made");
        let nbd = self.hidden_nbd_socket(id);
        let nbd = listen(&nbd).map_err(|e| format!("{}: {e}", nbd.display()))?;
        let budget = open_budget(&self.budget, self.mapped_pages_max / LEASE_PAGES);
        let budget = budget.map_err(|e| format!("{}: {e}", self.budget.display()))?;
        let stat = self.polling.then(|| std::fs::File::open(STAT)).transpose();
        let stat = stat.map_err(|e| format!("{STAT}: {e}"))?;
        let options = self.options(&image);
        fault::point!("a worker's NBD socket is made");
        let pid = self
            .run(id, vdi, &options, [listener, image.into_fd(), grants, nbd, budget], stat)
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        fault::point!("a worker is started");
        let process = Process::open(pid).map_err(|error| format!("pid {pid}: {error}"))?;
        let greeting = async {
            let client = Client::connect(socket).await?;
            let hello = Hello::ask(&client).await?;
            Ok::<_, super::WorkerError>((client, hello))
        };
        let (client, hello) = tokio::select! {
            greeted = greeting => match greeted {
                Ok(greeted) => greeted,
                Err(error) => {
                    process.kill();
                    return Err(format!("{error}; {}", process.exited().await));
                }
            },
            end = process.exited() => return Err(format!("{end} at once; its log lines tell why")),
        };
        fault::point!("a worker has answered");
        let row = WorkerRow {
            id: id.into(),
            vdi: vdi.clone(),
            pid,
            start_time: process.start_time(),
            socket: socket.to_string_lossy().into_owned(),
            version: hello.version.clone(),
            read_only,
            since: now(),
        };
        Ok(WorkerHandle::new(row, hello, client, process, self.clone()))
    }

    /// What a worker is told of its image.
    fn options(&self, image: &Image) -> Vec<String> {
        let rules = image.rules();
        let transfer = rules.transfer.unwrap_or(self.transfer);
        let mut options = vec!["--transfer".to_owned(), transfer.to_string()];
        let no_space = rules.no_space.unwrap_or(self.no_space);
        options.extend(["--no-space".to_owned(), no_space.to_string()]);
        if image.read_only() {
            options.push("--read-only".to_owned());
        }
        if image.is_networked() {
            options.push("--network".to_owned());
        }
        if let Some(Discard { granularity_bytes, alignment_bytes }) = image.discard() {
            options.push("--discard".to_owned());
            options.push(format!("{granularity_bytes}:{alignment_bytes}"));
        }
        options
    }

    fn run(
        &self,
        id: &str,
        vdi: &VdiId,
        options: &[String],
        fds: [OwnedFd; 5],
        stat: Option<std::fs::File>,
    ) -> io::Result<u32> {
        let mut command = Command::new(&self.program);
        command.args(["--id", id, "--host", &self.host.to_string(), "--nbd-name", &vdi.vdi]);
        command.args(options);
        command.args(["--engine", &self.engine.to_string()]);
        let mut mappings = Vec::new();
        let places = [
            ("--listener-fd", LISTENER_FD),
            ("--image-fd", IMAGE_FD),
            ("--gntdev-fd", GRANTS_FD),
            ("--nbd-fd", NBD_FD),
            ("--budget-fd", BUDGET_FD),
            ("--stat-fd", STAT_FD),
        ];
        let fds = fds.into_iter().chain(stat.map(OwnedFd::from));
        for (parent_fd, (option, child_fd)) in fds.zip(places) {
            command.args([option, &child_fd.to_string()]);
            mappings.push(FdMapping { parent_fd, child_fd });
        }
        if let Some(user) = self.worker_user(id) {
            command.args(["--user", &user.to_string()]);
        }
        let log = io::stderr().as_fd().try_clone_to_owned()?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A signal for the daemon's terminal is not for the guests' disks.
            .process_group(0)
            .fd_mappings(mappings)
            .map_err(io::Error::other)?;
        // Dropping Command and Child closes our copies and leaves the process alone.
        Ok(command.spawn()?.id())
    }
}

/// Opens the budget for one worker: its locks belong to this open file, and go with the worker.
fn open_budget(path: &Path, leases: u64) -> io::Result<OwnedFd> {
    let mut options = std::fs::File::options();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // Workers that are there keep what they have when it has become less.
    file.set_len(leases)?;
    Ok(file.into())
}

/// Only we may speak to a worker: the directory is ours alone, and so is the socket.
fn listen(socket: &Path) -> io::Result<OwnedFd> {
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener.into())
}

/// Removes a worker's socket; a leftover is only untidy, the next start of the daemon sweeps it up.
pub fn remove_socket(socket: &Path) {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", socket.display());
        }
        _ => {}
    }
}
