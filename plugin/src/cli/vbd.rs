//! `zerotap vbd`: VDIs as domains see them.

mod rates;
mod show;
mod stages;
mod top;

use super::client::ANSWER_DELAY_SECONDS_MAX;
use super::context::{Context, DBG, write};
use super::failure::Failure;
use super::locate::{self, Which};
use super::{duration, size, table};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use rates::Rates;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::admin::{Vbd, VbdParams, VbdPlugParams, VbdUnplugParams};
use zerotap_rpc_schema::table::{VbdList, VbdPlug, VbdStatAll, VbdUnplug};
use zerotap_rpc_schema::worker::TransferRule;

/// What the daemon gives a guest to let go when nothing else is said, seconds.
const UNPLUG_SECONDS: u32 = 30;

/// How long `ls` looks at what each does.
const LS_INTERVAL: Duration = Duration::from_millis(300);

const PLUG_EXAMPLES: &str = "\
Example:
  zerotap vdi attach $VDI --domid 5 --device xvdb
  zerotap vdi activate $VDI --domid 5 --device xvdb
  zerotap vbd plug --domid 5 --device xvdb --vdi $VDI

This is a toolstack's work: it writes the frontend's and the backend's directories in xenstore, with
their permissions. Under XAPI leave it to XAPI. The VDI must be activated, and read-write unless
--read-only is given.";

const SHOW_EXAMPLES: &str = "\
Rates are of one second (--interval); averages are over the life of the VBD's worker. Latencies are
from a request's leaving the ring to its answer, over the worker's life too. Time goes to the ring
(seen and not taken yet), to being held (barriers, buffers), to the guest's pages (mapped, copied),
to the device, to release (pages given back, copied back): of the interval, if there is one. Bytes
mapped went between the guest's pages and the device without a copy; bytes copied took a bounce
buffer.
--json prints one result of VBD.stat and does not wait.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Give a domain a disk, on a host without XAPI
    #[command(after_help = PLUG_EXAMPLES)]
    Plug(Plug),
    /// Take a disk away from a domain. Succeeds when there is none
    Unplug(Unplug),
    /// List the VBDs: state, since when, held by whom, what they do now
    Ls,
    /// The disks that do most, live in the terminal; q quits
    Top(top::Top),
    /// Show a VBD: state, ring, rates, latencies, bytes mapped and copied
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
}

/// A VBD: a domain and the device's name in it.
#[derive(Debug, Args)]
pub(crate) struct Device {
    /// The domain
    #[arg(long, value_name = "N")]
    domid: u16,
    /// The device's name in the guest, for example xvda
    #[arg(long)]
    device: String,
}

#[derive(Debug, Args)]
pub(crate) struct Plug {
    #[command(flatten)]
    vbd: Device,
    /// The VDI's uuid; it must be activated
    #[arg(long)]
    vdi: String,
    /// The VDI's SR; without it all attached SRs are searched
    #[arg(long)]
    sr: Option<String>,
    /// The guest may not write
    #[arg(long)]
    read_only: bool,
    /// How the guest's pages are reached: auto, map or copy; without it as VDI, SR and
    /// configuration say
    #[arg(long, value_name = "RULE")]
    transfer: Option<TransferRule>,
}

#[derive(Debug, Args)]
pub(crate) struct Unplug {
    #[command(flatten)]
    vbd: Device,
    /// Do not wait for the guest
    #[arg(long)]
    force: bool,
    /// How long the guest may take to let go, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = UNPLUG_SECONDS)]
    timeout: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    vbd: Device,
    /// Over how long rates are measured, seconds; 0 shows no current rates
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    interval: u16,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Plug(args) => plug(args, context).await,
        Verb::Unplug(args) => unplug(args, context).await,
        Verb::Ls => {
            if context.json {
                let vbds = context.ask::<VbdList>().await?;
                return context.show(&vbds, |_| String::new());
            }
            let before = context.ask::<VbdStatAll>().await?;
            let began = Instant::now();
            if before.iter().any(|stat| stat.ring.is_some()) {
                tokio::time::sleep(LS_INTERVAL).await;
            }
            let now = context.ask::<VbdStatAll>().await?;
            let rates = rates::between(&before, &now, began.elapsed().as_secs_f64());
            let vbds: Vec<Vbd> = now.into_iter().map(|stat| stat.vbd).collect();
            write(&render(&vbds, &rates, Timestamp::now()))
        }
        Verb::Top(args) => top::run(&args, context).await,
        Verb::Show(Show { vbd, interval }) => show::run(&params(vbd), interval, context).await,
    }
}

fn params(vbd: Device) -> VbdParams {
    VbdParams { dbg: DBG.into(), domid: vbd.domid, device: vbd.device }
}

async fn plug(args: Plug, context: &Context) -> Result<(), Failure> {
    let vdi = locate::vdi(context, &Which { vdi: args.vdi, sr: args.sr }).await?;
    let params = VbdPlugParams {
        dbg: DBG.into(),
        domid: args.vbd.domid,
        device: args.vbd.device,
        sr: vdi.sr,
        vdi: vdi.vdi,
        read_only: args.read_only,
        transfer: args.transfer,
    };
    let vbd = context.call::<VbdPlug>(&params).await?;
    context.show(&vbd, |vbd| render(std::slice::from_ref(vbd), &[], Timestamp::now()))
}

async fn unplug(args: Unplug, context: &Context) -> Result<(), Failure> {
    let params = VbdUnplugParams {
        dbg: DBG.into(),
        domid: args.vbd.domid,
        device: args.vbd.device,
        force: args.force,
        timeout_seconds: Some(args.timeout),
    };
    let seconds = u64::from(args.timeout) + ANSWER_DELAY_SECONDS_MAX;
    context.client.call_within::<VbdUnplug>(&params, seconds).await?;
    context.done()
}

fn render(vbds: &[Vbd], rates: &[Rates], now: Timestamp) -> String {
    let row = |(n, vbd): (usize, &Vbd)| {
        vec![
            vbd.domid.to_string(),
            vbd.device.clone(),
            vbd.state.clone(),
            vbd.frontend_state.clone(),
            vbd.mode.to_string(),
            duration::age_of(&vbd.since, now),
            rates.get(n).map(doing).unwrap_or_default(),
            vbd.held_by.join(" "),
            vbd.worker.clone().unwrap_or_default(),
            vbd.vdi.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = vbds.iter().enumerate().map(row).collect();
    let header = [
        "DOMID", "DEVICE", "BACKEND", "FRONTEND", "MODE", "SINCE", "NOW", "HELD BY", "WORKER",
        "VDI",
    ];
    let mut text = table::columns(&header, &[0], &rows);
    for vbd in vbds {
        if let Some(trouble) = &vbd.trouble {
            text += &table::plain(&format!("{}/{}: {trouble}\n", vbd.domid, vbd.device));
        }
    }
    text
}

/// What a disk does, in few words.
fn doing(rates: &Rates) -> String {
    match (rates.age_ms, rates.in_flight) {
        (1.., _) => format!("worker silent for {}", duration::latency(rates.age_ms * 1000)),
        _ if rates.iops() > 0.0 => {
            format!("{:.0} IOPS {}", rates.iops(), size::rate(rates.bytes()))
        }
        (0, 0) => "idle".to_owned(),
        (0, waiting) => format!("{waiting} wait for the device"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::Mode;

    pub(crate) fn vbd() -> Vbd {
        Vbd {
            domid: 5,
            device: "xvda".into(),
            devid: 51712,
            kind: "zerotap".into(),
            sr: Some("s".into()),
            vdi: Some("v".into()),
            mode: Mode::ReadWrite,
            state: "connected".into(),
            frontend_state: "connected".into(),
            worker: Some("w1".into()),
            since: "2026-01-01T00:00:00Z".into(),
            held_by: vec!["vbd/5/xvda".into()],
            trouble: None,
        }
    }

    #[test]
    fn trouble_follows_the_table() {
        let troubled = Vbd { trouble: Some("no worker: activate the VDI".into()), ..vbd() };
        let now = "2026-01-01T00:00:07Z".parse().expect("a time");
        let stat = show::tests::stat();
        let mut after = stat.clone();
        after.counters.reads += 40;
        let rates = rates::between(&[stat], &[after.clone(), after], 2.0);
        let text = render(&[vbd(), troubled], &rates, now);
        let wanted = "    5  xvda    connected  connected  RW    7s     20 IOPS 0 B/s  vbd/5/xvda  \
                      w1      v\n";
        assert!(text.contains(wanted), "{text}");
        assert!(text.ends_with("\n5/xvda: no worker: activate the VDI\n"), "{text}");
    }
}
