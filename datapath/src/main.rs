//! `zerotap-datapath`: one per active VDI, started by the daemon with the descriptors that it
//! needs.
//!
//! Not for people: everything it may use is inherited, nothing is opened by name.

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;
use zerotap_datapath::engine::choice::choose;
use zerotap_datapath::image::Image;
use zerotap_datapath::inherit::inherited;
use zerotap_datapath::sandbox::confine;
use zerotap_datapath::worker::{Given, Worker};
use zerotap_datapath::xen::Host;
use zerotap_datapath::xen::budget::Budget;
use zerotap_rpc_schema::engine::EngineSetting;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{Discard, TransferRule};

const USAGE: &str = "zerotap-datapath is started by zerotap, with descriptors it inherits:
  zerotap-datapath --id ID --host xen|sim [--user UID] [--engine auto|io_uring|aio] [--read-only] \
  [--network] [--transfer auto|map|copy] [--no-space pause|error] [--discard UNIT:START] \
  --listener-fd N --image-fd N --gntdev-fd N [--budget-fd N] [--stat-fd N] \
  [--nbd-fd N --nbd-name NAME]
  zerotap-datapath --probe-engine auto|io_uring|aio";

/// How long a guest's page stays mapped that no request uses: as blkback's.
const UNUSED_MAX: Duration = Duration::from_secs(60);

/// The command line, as the daemon writes it.
#[derive(Default)]
struct Arguments {
    id: Option<String>,
    host: Option<Host>,
    user: Option<u32>,
    engine: EngineSetting,
    read_only: bool,
    network: bool,
    transfer: Option<TransferRule>,
    no_space: Option<NoSpace>,
    discard: Option<Discard>,
    listener: Option<OwnedFd>,
    image: Option<OwnedFd>,
    gntdev: Option<OwnedFd>,
    budget: Option<OwnedFd>,
    stat: Option<OwnedFd>,
    nbd: Option<OwnedFd>,
    nbd_name: String,
}

fn main() -> ExitCode {
    if let [option, setting] = &*std::env::args().skip(1).collect::<Vec<_>>()
        && option == "--probe-engine"
    {
        return probe(setting);
    }
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    log.with_target(false).with_ansi(false).init();
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("zerotap-datapath: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let id = arguments.id.clone().unwrap_or_default();
    let _span = tracing::info_span!("worker", id).entered();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Tells which engine a worker would take here: a line of JSON, or what is wrong.
fn probe(setting: &str) -> ExitCode {
    let try_both = || {
        let file = memfd_create("probe", MemfdFlags::CLOEXEC);
        let file = file.map_err(|errno| format!("make a file to try: {errno}"))?;
        let choice = choose(setting.parse()?, file.as_fd());
        let choice = choice.map_err(|problem| problem.to_string())?;
        serde_json::to_string(&choice).map_err(|error| error.to_string())
    };
    match try_both() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> Result<(), String> {
    let missing = |name: &str| format!("{name} is missing\n{USAGE}");
    let host = arguments.host.ok_or_else(|| missing("--host"))?;
    let gntdev = arguments.gntdev.ok_or_else(|| missing("--gntdev-fd"))?;
    // From here on nothing but what was given: what follows reads what others wrote.
    let confined =
        confine(host, arguments.user, gntdev.as_fd()).map_err(|error| error.to_string())?;
    let image = Image::new(arguments.image.ok_or_else(|| missing("--image-fd"))?)
        .map_err(|error| error.to_string())?;
    let engine = choose(arguments.engine, image.file()).map_err(|problem| problem.to_string())?;
    let image = match arguments.discard {
        Some(units) if !arguments.read_only => image.allow_discard(units),
        _ => image,
    };
    let given = Given {
        host,
        read_only: arguments.read_only,
        network: arguments.network,
        // An older daemon knows of none that wait.
        no_space: arguments.no_space.unwrap_or(NoSpace::Error),
        budget: match arguments.budget {
            Some(file) => Budget::new(file).map_err(|errno| format!("--budget-fd: {errno}"))?,
            None => Budget::unlimited(),
        },
        unused_max: UNUSED_MAX,
        stat: arguments.stat,
        transfer: arguments.transfer.unwrap_or_default(),
        engine,
        image,
        listener: arguments.listener.ok_or_else(|| missing("--listener-fd"))?,
        gntdev,
        nbd: arguments.nbd.map(|listener| (listener, arguments.nbd_name)),
    };
    let (image, engine, polling) = (given.image.info(), given.engine.clone(), given.stat.is_some());
    let worker = Worker::new(given).map_err(|problem| problem.to_string())?;
    let (own_user, landlock) = (confined.own_user, confined.landlock);
    let (sectors, sector_bytes) = (image.sectors, image.sector_bytes);
    let (engine, why) = (engine.kind, engine.why);
    tracing::info!(sectors, sector_bytes, %engine, why, own_user, landlock, polling, "ready");
    worker.run().map_err(|error| format!("the worker stopped: {error}"))?;
    tracing::info!("shut down");
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let flag = match word.as_str() {
            "--read-only" => Some(&mut arguments.read_only),
            "--network" => Some(&mut arguments.network),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--id" => arguments.id = Some(value),
            "--user" => arguments.user = Some(parse_user(&value)?),
            "--engine" => arguments.engine = value.parse()?,
            "--host" => arguments.host = Some(parse_host(&value)?),
            "--transfer" => {
                let rule: Result<TransferRule, _> = value.parse();
                arguments.transfer =
                    Some(rule.map_err(|why| format!("--transfer {value}: {why}"))?);
            }
            "--no-space" => {
                let way: Result<NoSpace, _> = value.parse();
                arguments.no_space = Some(way.map_err(|why| format!("--no-space {value}: {why}"))?);
            }
            "--discard" => arguments.discard = Some(parse_units(&value)?),
            "--listener-fd" => arguments.listener = Some(descriptor(&word, &value)?),
            "--image-fd" => arguments.image = Some(descriptor(&word, &value)?),
            "--gntdev-fd" => arguments.gntdev = Some(descriptor(&word, &value)?),
            "--budget-fd" => arguments.budget = Some(descriptor(&word, &value)?),
            "--stat-fd" => arguments.stat = Some(descriptor(&word, &value)?),
            "--nbd-fd" => arguments.nbd = Some(descriptor(&word, &value)?),
            "--nbd-name" => arguments.nbd_name = value,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(arguments)
}

fn parse_host(value: &str) -> Result<Host, String> {
    match value {
        "xen" => Ok(Host::Xen),
        "sim" => Ok(Host::Sim),
        _ => Err(format!("--host is xen or sim, not {value}")),
    }
}

fn parse_user(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(user @ 1..) => Ok(user),
        _ => Err(format!("--user takes a user's number above 0, not {value}")),
    }
}

fn parse_units(value: &str) -> Result<Discard, String> {
    let numbers = value.split_once(':');
    let numbers = numbers.and_then(|(unit, start)| Some((unit.parse().ok()?, start.parse().ok()?)));
    let wrong = || format!("--discard takes a unit and where the first begins, not {value}");
    let (granularity_bytes, alignment_bytes) = numbers.ok_or_else(wrong)?;
    Ok(Discard { granularity_bytes, alignment_bytes })
}

fn descriptor(word: &str, value: &str) -> Result<OwnedFd, String> {
    let number: i32 =
        value.parse().map_err(|_| format!("{word} takes a descriptor's number, not {value}"))?;
    let owned = inherited(number).map_err(|errno| format!("{word} {value}: {errno}"))?;
    let flags = fcntl_getfd(&owned).map_err(|errno| format!("{word} {value}: {errno}"))?;
    fcntl_setfd(&owned, flags | FdFlags::CLOEXEC)
        .map_err(|errno| format!("{word} {value}: {errno}"))?;
    Ok(owned)
}
