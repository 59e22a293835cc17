//! What the daemon is told: command line over TOML file over defaults, as one checked value.
//!
//! Never touches anything but the file it reads. Called by `daemon::serve` once.

mod tcp;

pub use tcp::Tcp;

use crate::host::Host;
use crate::vbd::offer::Offer;
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zerotap_rpc_schema::engine::EngineSetting;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::TransferRule;

/// Read when it is there and no other is named.
pub const DEFAULT_FILE: &str = "/etc/zerotap.toml";
const DEFAULT_RUN_DIR: &str = "/run/zerotap";
const DEFAULT_STATE: &str = "/var/lib/zerotap/state.db";
const DEFAULT_BACKEND_KIND: &str = "qdisk";
/// Half of what Xen has records for (`gnttab_max_maptrack_frames`, 1024 of 256 each) where dom0 is
/// a PV domain, which needs two for each page.
const DEFAULT_MAPPED_PAGES_MAX: u64 = 65_536;
/// Longer than a toolstack takes to tidy up after a domain.
const DEFAULT_ABANDONED_AFTER_SECONDS: u64 = 60;
/// xenstore-rs warns of every event of a watch that was just dropped, which guests can cause at
/// will.
const DEFAULT_LOG: &str = "info,xenstore_rs=error";
const DEFAULT_BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";
/// XAPI's, which knows the host's uuid.
const DEFAULT_INVENTORY_FILE: &str = "/etc/xensource-inventory";
/// Where tapdisk's are.
const DEFAULT_STATISTICS_DIR: &str = "/dev/shm";
/// message-switch's, as XAPI's packages have it.
const DEFAULT_SWITCH_SOCKET: &str = "/var/run/message-switch/sock";
/// Where xapi-storage-script looks for executables.
const DEFAULT_STORAGE_SCRIPTS: &str = "/usr/libexec/xapi-storage-script";
/// The worker's program, looked for beside the daemon's own.
const WORKER_PROGRAM: &str = "zerotap-datapath";

/// `zerotap serve`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeArgs {
    /// Configuration file (TOML) [default: /etc/zerotap.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the socket rpc.sock and of the workers' sockets [default: /run/zerotap]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// State database (SQLite); made when missing [default: /var/lib/zerotap/state.db]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Which host to serve: `auto` takes Xen where it is there [default: auto]
    #[arg(long, value_enum)]
    pub host: Option<HostKind>,
    /// The simulated host's directory, with `--host sim`
    #[arg(long, value_name = "DIR", env = "ZEROTAP_SIM_DIR")]
    pub sim_dir: Option<PathBuf>,
}

/// Which host to serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// Xen where /dev/xen/gntdev is there, else refuse to start.
    #[default]
    Auto,
    /// Xen.
    Xen,
    /// A simulated host, for tests and for having a look.
    Sim,
}

/// The TOML file. Every key may be left out; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    run_dir: Option<PathBuf>,
    state: Option<PathBuf>,
    host: Option<HostKind>,
    sim_dir: Option<PathBuf>,
    socket_user: Option<u32>,
    socket_group: Option<u32>,
    worker_program: Option<PathBuf>,
    engine: Option<EngineSetting>,
    backend_kind: Option<String>,
    boot_id_file: Option<PathBuf>,
    inventory_file: Option<PathBuf>,
    legacy_statistics_dir: Option<PathBuf>,
    overcommit: Option<bool>,
    transfer: Option<TransferRule>,
    no_space: Option<NoSpace>,
    polling: Option<bool>,
    mapped_pages_max: Option<u64>,
    reattach_srs_at_boot: Option<bool>,
    abandoned_after_seconds: Option<u64>,
    log: Option<String>,
    log_json: Option<bool>,
    #[serde(default)]
    vbd: Offer,
    #[serde(default)]
    message_switch: SwitchTable,
    #[serde(default)]
    tcp: tcp::TcpTable,
}

/// `[message_switch]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchTable {
    #[serde(default)]
    enabled: bool,
    socket: Option<PathBuf>,
    storage_scripts: Option<PathBuf>,
}

impl SwitchTable {
    /// The switch's socket, when its queue shall be served.
    fn socket(self) -> Result<Option<PathBuf>> {
        if !self.enabled {
            return Ok(None);
        }
        let scripts = self.storage_scripts.unwrap_or_else(|| DEFAULT_STORAGE_SCRIPTS.into());
        let ours = scripts.join("volume").join(crate::message_switch::QUEUE);
        if ours.exists() {
            bail!(
                "the SMAPIv3 executables are installed ({}) and [message_switch] is enabled: both \
                 would take calls from the same queue. Remove the executables with `zerotap smapi \
                 remove --root {}`, or set enabled = false",
                ours.display(),
                scripts.display()
            );
        }
        Ok(Some(self.socket.unwrap_or_else(|| DEFAULT_SWITCH_SOCKET.into())))
    }
}

/// Where no SMAPIv3 executables may be, by the configuration in `path`: the queue serves the type
/// there. `None` where the queue is off, or no file.
///
/// # Errors
/// A file that can't be understood.
pub fn no_scripts_in(path: &Path) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let SwitchTable { enabled, storage_scripts, .. } = read(path)?.message_switch;
    let scripts = storage_scripts.unwrap_or_else(|| DEFAULT_STORAGE_SCRIPTS.into());
    Ok(enabled.then_some(scripts))
}

/// What the daemon goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `rpc.sock` and `worker/`.
    pub run_dir: PathBuf,
    /// The database.
    pub state: PathBuf,
    /// Xen or the simulated host.
    pub host: Host,
    /// Who owns the socket and may connect: a uid; the daemon's own when absent.
    pub socket_user: Option<u32>,
    /// Which group may connect: a gid; the daemon's own when absent.
    pub socket_group: Option<u32>,
    /// The worker's program.
    pub worker_program: PathBuf,
    /// By what workers do their I/O.
    pub engine: EngineSetting,
    /// The XAPI backend kind in attach answers.
    pub backend_kind: String,
    /// Where the host's boot id is read; tests play a reboot with another.
    pub boot_id_file: PathBuf,
    /// Where XAPI has the host's uuid. Without that file a made-up one is kept in the database.
    pub inventory_file: PathBuf,
    /// Where tapdisk's statistics files are written; nowhere when absent.
    pub legacy_statistics_dir: Option<PathBuf>,
    /// Whether a VDI may be larger than the SR's free space.
    pub overcommit: bool,
    /// How guests' pages are reached, unless an SR, a VDI or a VBD has a rule of its own.
    pub transfer: TransferRule,
    /// What becomes of guests' writes that find no space, unless an SR says otherwise.
    pub no_space: NoSpace,
    /// Whether queues look for work before they sleep.
    pub polling: bool,
    /// Pages of guests that all workers together may have mapped.
    pub mapped_pages_max: u64,
    /// Whether SRs stay attached over a reboot of the host. XAPI wants not: it plugs its PBDs anew.
    pub reattach_srs_at_boot: bool,
    /// How long after its domain has gone a use ends that nobody has ended; never when zero.
    pub abandoned_after: Duration,
    /// tracing's filter, for example `info,zerotap=debug`.
    pub log: String,
    /// Log as JSON, one object a line.
    pub log_json: bool,
    /// What guests are offered at the most.
    pub vbd: Offer,
    /// message-switch's socket, when the queue shall be served.
    pub message_switch: Option<PathBuf>,
    /// Where and for whom to listen on the network.
    pub tcp: Option<Tcp>,
}

impl Config {
    /// Reads the file and lets the command line win.
    ///
    /// # Errors
    /// A named file that is missing, a file that can't be understood, no host to serve.
    pub fn load(args: ServeArgs) -> Result<Config> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        file.vbd.check().map_err(|problem| anyhow!("in the configuration: {problem}"))?;
        let sim_dir = args.sim_dir.or(file.sim_dir);
        let inventory_file = file.inventory_file.unwrap_or_else(|| DEFAULT_INVENTORY_FILE.into());
        // Only XAPI's tools read them.
        let xapi = inventory_file.exists().then(|| DEFAULT_STATISTICS_DIR.into());
        let host = host(args.host.or(file.host).unwrap_or_default(), sim_dir)?;
        Ok(Config {
            run_dir: absolute(args.run_dir.or(file.run_dir), DEFAULT_RUN_DIR)?,
            state: absolute(args.state.or(file.state), DEFAULT_STATE)?,
            host,
            socket_user: file.socket_user,
            socket_group: file.socket_group,
            worker_program: match file.worker_program {
                Some(program) => program,
                None => beside_ourselves()?,
            },
            engine: file.engine.unwrap_or_default(),
            backend_kind: file.backend_kind.unwrap_or_else(|| DEFAULT_BACKEND_KIND.into()),
            boot_id_file: file.boot_id_file.unwrap_or_else(|| DEFAULT_BOOT_ID_FILE.into()),
            inventory_file,
            legacy_statistics_dir: file.legacy_statistics_dir.or(xapi),
            overcommit: file.overcommit.unwrap_or(false),
            transfer: file.transfer.unwrap_or_default(),
            no_space: file.no_space.unwrap_or_default(),
            polling: file.polling.unwrap_or(true),
            mapped_pages_max: file.mapped_pages_max.unwrap_or(DEFAULT_MAPPED_PAGES_MAX),
            reattach_srs_at_boot: file.reattach_srs_at_boot.unwrap_or(false),
            abandoned_after: Duration::from_secs(
                file.abandoned_after_seconds.unwrap_or(DEFAULT_ABANDONED_AFTER_SECONDS),
            ),
            log: file.log.unwrap_or_else(|| DEFAULT_LOG.into()),
            log_json: file.log_json.unwrap_or(false),
            vbd: file.vbd,
            message_switch: file.message_switch.socket()?,
            tcp: file.tcp.checked()?,
        })
    }

    /// The JSON-RPC socket.
    #[must_use]
    pub fn rpc_socket(&self) -> PathBuf {
        self.run_dir.join("rpc.sock")
    }

    /// The directory of the workers' sockets.
    #[must_use]
    pub fn worker_dir(&self) -> PathBuf {
        self.run_dir.join("worker")
    }

    /// Where the workers listen for NBD clients.
    #[must_use]
    pub fn nbd_dir(&self) -> PathBuf {
        self.run_dir.join("nbd")
    }

    /// The directory of the rings' journals.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.run_dir.join("journal")
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))
}

fn absolute(path: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    Ok(std::path::absolute(path.unwrap_or_else(|| default.into()))?)
}

fn host(kind: HostKind, sim_dir: Option<PathBuf>) -> Result<Host> {
    match (kind, sim_dir) {
        (HostKind::Xen, _) => Ok(Host::Xen),
        (HostKind::Auto, _) if Host::xen_is_here() => Ok(Host::Xen),
        (HostKind::Auto, _) => bail!(
            "this is no Xen host: there is no /dev/xen/gntdev. In dom0 load the module xen-gntdev; \
             elsewhere serve a simulated host with --host sim --sim-dir DIR"
        ),
        (HostKind::Sim, Some(dir)) if dir.is_dir() => {
            Ok(Host::Sim { dir: std::path::absolute(dir)? })
        }
        (HostKind::Sim, Some(dir)) => bail!(
            "{} is not a directory: start the simulated host there first (zerotap-simhost --dir)",
            dir.display()
        ),
        (HostKind::Sim, None) => {
            bail!("--host sim needs --sim-dir DIR (or ZEROTAP_SIM_DIR)")
        }
    }
}

fn beside_ourselves() -> Result<PathBuf> {
    let ours = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(ours.with_file_name(WORKER_PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, text: &str) -> ServeArgs {
        let config = dir.join("zerotap.toml");
        std::fs::write(&config, text).expect("a writable directory");
        ServeArgs {
            config: Some(config),
            host: Some(HostKind::Sim),
            sim_dir: Some(dir.into()),
            ..ServeArgs::default()
        }
    }

    #[test]
    fn a_type_is_served_by_the_queue_or_by_the_executables() {
        let dir = tempfile::tempdir().expect("a directory");
        let scripts = dir.path().join("scripts");
        let text = format!("[message_switch]\nenabled = true\nstorage_scripts = {scripts:?}\n");
        let config = Config::load(args(dir.path(), &text)).expect("no executables are there");
        assert_eq!(config.message_switch.as_deref(), Some(Path::new(DEFAULT_SWITCH_SOCKET)));
        let ours = scripts.join("volume/org.xen.xapi.storage.zerotap");
        std::fs::create_dir_all(ours).expect("writable");
        let refused = Config::load(args(dir.path(), &text)).expect_err("both").to_string();
        assert!(refused.contains("zerotap smapi remove"), "{refused}");
        let file = dir.path().join("zerotap.toml");
        assert_eq!(no_scripts_in(&file).expect("readable"), Some(scripts), "nor later");
        let off = Config::load(args(dir.path(), "[message_switch]\n")).expect("off");
        assert_eq!(off.message_switch, None);
        assert_eq!(no_scripts_in(&file).expect("readable"), None);
        assert_eq!(no_scripts_in(Path::new("/nowhere.toml")).expect("no file"), None);
    }

    #[test]
    fn command_line_wins_over_file_over_defaults() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut args = args(dir.path(), "run_dir = '/a'\nstate = '/b'\novercommit = true\n");
        args.run_dir = Some("/c".into());
        let config = Config::load(args).expect("a good configuration");
        assert_eq!(config.rpc_socket(), Path::new("/c/rpc.sock"));
        assert_eq!(config.state, Path::new("/b"));
        assert!(config.overcommit && !config.reattach_srs_at_boot);
        assert_eq!(config.backend_kind, "qdisk");
        assert_eq!(config.engine, EngineSetting::Auto);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Config::load(args(dir.path(), "[vbd]\nqueues_max = 9")).expect_err("too many");
        assert!(error.to_string().contains("vbd.queues_max = 9 is not from 1 to 4"), "{error}");
        let error = Config::load(args(dir.path(), "[vbd]\nflush = false")).expect_err("no veto");
        assert!(format!("{error:#}").contains("flush"), "{error:#}");
        let error = Config::load(args(dir.path(), "rundir = '/a'")).expect_err("a typo");
        assert!(format!("{error:#}").contains("rundir"), "{error:#}");
        let error = Config::load(args(dir.path(), "engine = 'libaio'")).expect_err("no engine");
        assert!(format!("{error:#}").contains("`io_uring`"), "{error:#}");
        let missing = ServeArgs { config: Some("/nowhere.toml".into()), ..args(dir.path(), "") };
        let error = Config::load(missing).expect_err("no such file");
        assert!(format!("{error:#}").contains("/nowhere.toml"), "{error:#}");
        let nowhere = ServeArgs { sim_dir: None, ..args(dir.path(), "") };
        let error = Config::load(nowhere).expect_err("no directory");
        assert!(error.to_string().contains("--sim-dir"), "{error}");
    }

    /// The packaged file's settings, without the signs that make them comments.
    fn packaged() -> Vec<&'static str> {
        let setting = |line: &&str| {
            line.starts_with(|first: char| first.is_ascii_lowercase() || first == '[')
        };
        let text = include_str!("../../packaging/zerotap.toml");
        text.lines().filter_map(|line| line.strip_prefix('#')).filter(setting).collect()
    }

    #[test]
    fn the_packaged_file_has_every_key() {
        let unknown = toml::from_str::<File>("nonsense = 1").expect_err("no such key").to_string();
        let keys = unknown.split('`').skip(1).step_by(2).filter(|name| *name != "nonsense");
        let keys: Vec<&str> = keys.filter(|name| !name.contains(' ')).collect();
        assert!(keys.len() > 10, "{unknown}");
        for key in keys {
            let starts = [format!("{key} = "), format!("[{key}]")];
            let told = |line: &&str| starts.iter().any(|start| line.starts_with(start));
            let found = packaged().iter().any(told);
            assert!(found, "packaging/zerotap.toml does not tell of {key}");
        }
    }

    #[test]
    fn the_packaged_file_shows_the_defaults() {
        let dir = tempfile::tempdir().expect("a directory");
        toml::from_str::<File>(&packaged().join("\n")).expect("the packaged file");
        let examples = [
            "sim_dir",
            "socket_user",
            "socket_group",
            "worker_program",
            "legacy_statistics_dir",
            "listen",
            "certificate",
            "key ",
            "token_file",
            "hosts",
        ];
        let example = |line: &&str| examples.iter().any(|key| line.starts_with(key));
        let settings: Vec<_> = packaged().into_iter().filter(|line| !example(line)).collect();
        let shown = Config::load(args(dir.path(), &settings.join("\n"))).expect("settings");
        let default = Config::load(args(dir.path(), "")).expect("an empty file");
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
    }
}
