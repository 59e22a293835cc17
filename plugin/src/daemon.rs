//! The daemon: wiring, signals, the order in which things start and stop.
//!
//! Start: lock, socket, database, what an earlier daemon left, VBDs, calls. Stop: calls, VBDs,
//! database. Workers are left alone by both. Called by the command line's `serve`.

use crate::config::Config;
pub use crate::config::ServeArgs;
use crate::events::Events;
use crate::host::{Host, installation_uuid};
use crate::message_switch::MessageSwitch;
use crate::metrics::calls::CallCounts;
use crate::metrics::legacy;
use crate::metrics::look::Watched;
use crate::rpc::listen::Door;
use crate::rpc::tcp::TcpDoor;
use crate::rpc::{Core, methods};
use crate::sr::Srs;
use crate::state::{State, now};
use crate::vbd::{VbdConfig, Vbds, gone, space};
use crate::vdi::{Registry, chores, outgrown, recover, supervise};
use crate::worker::journals::Journals;
use crate::worker::set::NEWS_QUEUED_MAX;
use crate::worker::{Launcher, Workers};
use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::IsTerminal;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

/// What xenstore-rs reads to find xenstored.
const XENSTORED_PATH: &str = "XENSTORED_PATH";
/// How long calls that have begun may take to finish when the daemon stops.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// The longest path of a unix socket, bytes (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, as a text for people.
pub async fn serve(args: ServeArgs) -> Result<()> {
    let config = Config::load(args)?;
    find_simulated_xenstored(&config.host)?;
    log_to_stderr(&config)?;
    make_directories(&config)?;
    let _alone_here = lock(&config.run_dir.join("lock"))?;
    let _alone_there = lock(&config.state.with_added_extension("lock"))?;
    let door = Door::open(&config).await?;
    let network = match config.tcp.clone() {
        Some(tcp) => Some(TcpDoor::open(tcp).await?),
        None => None,
    };
    let boot_id = std::fs::read_to_string(&config.boot_id_file)
        .with_context(|| format!("cannot read {}", config.boot_id_file.display()))?;
    let boot_id = boot_id.trim().to_string();
    let state = State::open(&config.state, &boot_id).await?;
    let inventory = installation_uuid(&config.inventory_file);
    let us = state.identity(inventory.as_deref()).await?;
    let void = state.void_other_boots(config.reattach_srs_at_boot).await?;
    if void.srs + void.datapaths + void.workers + void.intents > 0 {
        tracing::warn!(?void, "the host has booted since: what was in use then is void");
    }
    let events = Events::default();
    let srs = Arc::new(Srs::restore(state.clone(), config.overcommit, events.clone()).await?);
    let (news, received) = mpsc::channel(NEWS_QUEUED_MAX);
    let launcher = Launcher {
        program: config.worker_program.clone(),
        dir: config.worker_dir(),
        nbd_dir: config.nbd_dir(),
        engine: config.engine,
        journals: Journals { dir: config.journal_dir() },
        host: config.host.clone(),
        budget: config.run_dir.join("budget"),
        mapped_pages_max: config.mapped_pages_max,
        transfer: config.transfer,
        no_space: config.no_space,
        polling: config.polling,
    };
    let engine = launcher.engine().await;
    match &engine {
        Ok(choice) => tracing::info!(engine = %choice.kind, why = choice.why, "I/O engine"),
        Err(problem) => tracing::error!("no worker can start: {problem}"),
    }
    let registry = Registry::new(
        state.clone(),
        Arc::clone(&srs),
        Workers::new(news, events.clone()),
        launcher,
        config.backend_kind.clone(),
    );
    recover::recover(&registry).await?;
    let chores = tokio::spawn(chores::run(Arc::clone(&registry)));
    let supervisor = tokio::spawn(supervise::run(Arc::clone(&registry)));
    let outgrown = tokio::spawn(outgrown::run(Arc::clone(&registry)));
    let kinds = vec![config.backend_kind.clone()];
    let vbds = Vbds::start(
        VbdConfig { kinds, offer: config.vbd.clone(), events: events.clone() },
        Arc::clone(&registry),
        received,
    );
    let space = tokio::spawn(space::run(Arc::clone(&vbds)));
    let gone = gone::run(Arc::clone(&vbds), Arc::clone(&registry), config.abandoned_after);
    let gone = tokio::spawn(gone);
    let core = Arc::new(Core {
        srs,
        registry: Arc::clone(&registry),
        vbds: Arc::clone(&vbds),
        host: config.host.to_string(),
        boot_id,
        engine,
        since: now(),
        calls: CallCounts::default(),
        watched: Watched::default(),
        events,
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, calls) = jsonrpsee::server::stop_channel();
    let switch = config.message_switch.clone();
    let switch = switch.map(|socket| {
        MessageSwitch::start(socket, methods::calls(Arc::clone(&core)), state.clone())
    });
    let legacy = config.legacy_statistics_dir.clone();
    let legacy = legacy.map(|dir| tokio::spawn(legacy::run(Arc::clone(&core), dir)));
    let remote = match network {
        Some(door) => tokio::spawn(door.serve(Arc::clone(&core), stop.clone())),
        None => tokio::spawn(async {}),
    };
    let serving = tokio::spawn(door.serve(core, stop));
    let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    let socket = config.rpc_socket();
    let (host, uuid, at) = (&config.host, &us.host, socket.display());
    tracing::info!(version, pid, %host, uuid, socket = %at, "zerotap serves");
    let served = switch.as_ref().map(MessageSwitch::served);
    tokio::spawn(async move {
        if let Some(served) = served {
            served.await;
        }
        tell_service_manager();
    });

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping; workers go on"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping; workers go on"),
    }
    if let Some(switch) = switch {
        switch.stop();
    }
    chores.abort();
    supervisor.abort();
    legacy.iter().for_each(tokio::task::JoinHandle::abort);
    outgrown.abort();
    space.abort();
    gone.abort();
    // It fails when nobody serves any more, which is what it is for.
    let _ = calls.stop();
    let finished = async {
        let _ = serving.await;
        let _ = remote.await;
        calls.stopped().await;
        registry.idle().await;
    };
    if tokio::time::timeout(STOP_DEADLINE, finished).await.is_err() {
        tracing::warn!("some calls have not finished; the next start of the daemon settles them");
    }
    vbds.stop().await;
    state.close().await;
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::warn!("cannot remove {}: {error}", socket.display());
    }
    tracing::info!("zerotap has stopped");
    Ok(())
}

/// Says READY=1 where systemd asked to be told: what is ordered after us can begin.
fn tell_service_manager() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = say_ready(&name) {
        tracing::warn!(%error, ?name, "the service manager was not told that we are ready");
    }
}

/// sd_notify(3): a path, or an abstract name behind an `@`.
fn say_ready(name: &OsStr) -> std::io::Result<()> {
    let address = match name.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

/// xenstore-rs takes its socket from the environment alone, and to change our own would be unsafe:
/// the simulated host's daemon starts itself once more, with the right one.
fn find_simulated_xenstored(host: &Host) -> Result<()> {
    let Host::Sim { dir } = host else { return Ok(()) };
    if std::env::var_os(XENSTORED_PATH).is_some() {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let error = std::process::Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(XENSTORED_PATH, dir.join("xenstored.sock"))
        .exec();
    Err(error).context("cannot start again with XENSTORED_PATH set")
}

fn log_to_stderr(config: &Config) -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).context("in RUST_LOG")?,
        Err(_) => EnvFilter::try_new(&config.log).context("in the configuration's `log`")?,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if config.log_json { log.json().try_init() } else { log.try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}

fn make_directories(config: &Config) -> Result<()> {
    let longest = config.nbd_dir().join("0123456789abcdef0123456789abcdef");
    let run_dir = config.run_dir.display();
    if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        bail!("--run-dir {run_dir} is too long for a socket's path");
    }
    // In `nbd:unix:<socket>:exportname=<name>` a colon ends the socket's path.
    if run_dir.to_string().contains(':') {
        bail!("--run-dir {run_dir} has a colon in it, which no NBD URI can name");
    }
    let make = |path: &Path, mode: u32| {
        let made = DirBuilder::new().recursive(true).mode(mode).create(path);
        made.with_context(|| format!("cannot make the directory {}", path.display()))
    };
    make(&config.run_dir, 0o755)?;
    make(&config.worker_dir(), 0o700)?;
    make(&config.nbd_dir(), 0o700)?;
    make(&config.journal_dir(), 0o700)?;
    match config.state.parent() {
        Some(parent) => make(parent, 0o700),
        None => Ok(()),
    }
}

/// One daemon a directory and a database: the lock goes with the process, however it ends.
fn lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => bail!(
            "another daemon has {} locked. Stop it first, or give this one a --run-dir and a \
             --state of its own",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let abstract_name = format!("zerotap-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
        for (socket, name) in [
            (UnixDatagram::bind(&path), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&address), format!("@{abstract_name}").into()),
        ] {
            let socket = socket.expect("bound");
            say_ready(&name).expect("somebody listens");
            let mut said = [0; 16];
            let length = socket.recv(&mut said).expect("said");
            assert_eq!(&said[..length], b"READY=1");
        }
        assert!(say_ready(OsStr::new("/nowhere/at-all")).is_err());
    }
}
