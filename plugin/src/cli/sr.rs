//! `zerotap sr`: storage repositories, the places where VDIs live.

use super::context::{Context, DBG};
use super::failure::Failure;
use super::{pair, size, table};
use clap::{ArgGroup, Args, Subcommand};
use zerotap_rpc_schema::smapi2::{
    Pairs, Probe, ProbeResult, SrAttachParams, SrCreateParams, SrInfo, SrNameDescriptionParams,
    SrNameLabelParams, SrParams, SrProbeParams,
};
use zerotap_rpc_schema::table::{
    SrAttach, SrCreate, SrDestroy, SrDetach, SrList, SrProbe, SrSetNameDescription, SrSetNameLabel,
    SrStat,
};

const CREATE_EXAMPLES: &str = "\
Examples:
  zerotap sr create --name local --device-config path=/srv/disks
  SR=$(zerotap sr create --name fast --description 'NVMe, no backup' --device-config path=/nvme/sr)

A file SR is a directory on any file system that does direct I/O; files that are not ours in it are
left alone. The new SR is attached to this host. Its uuid is printed.";

const ATTACH_EXAMPLES: &str = "\
Example:
  zerotap sr attach 3c4f0d0a-8f0e-4f53-9a6e-6a1ab1f7c2d5 --device-config path=/srv/disks

`zerotap sr probe --device-config path=/srv/disks` tells the uuid of an SR that is there.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a new SR, attach it and print its uuid
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Make an existing SR usable on this host
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Attach),
    /// Let go of an SR; its VDIs stay where they are. Refused while one of them is active
    Detach(Which),
    /// Remove an attached SR that has no VDIs
    Destroy(Which),
    /// List the attached SRs
    Ls,
    /// Show an attached SR: name, space, health
    Show(Which),
    /// Rename or describe an attached SR
    Rename(Rename),
    /// Look for an SR at a place, attached or not
    Probe(Place),
}

/// An SR by its uuid.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The SR's uuid
    #[arg(value_name = "SR")]
    sr: String,
}

/// Where an SR is.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Where the SR is; a file SR takes path=DIR, an absolute directory. May be repeated
    #[arg(long, required = true, value_name = "KEY=VALUE", value_parser = pair::parse)]
    device_config: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// A name for people
    #[arg(long)]
    name: String,
    /// A description for people
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// The SR's uuid; a new one when absent
    #[arg(long)]
    uuid: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("names")
    .required(true)
    .multiple(true)
    .args(["name", "description"]))]
pub(crate) struct Rename {
    /// The SR's uuid
    #[arg(value_name = "SR")]
    sr: String,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// The new description
    #[arg(long)]
    description: Option<String>,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Create(args) => create(args, context).await,
        Verb::Attach(Attach { which, place }) => {
            let device_config = pair::collect(place.device_config);
            let params = SrAttachParams { dbg: DBG.into(), sr: which.sr, device_config };
            context.call::<SrAttach>(&params).await?;
            context.done()
        }
        Verb::Detach(which) => {
            context.call::<SrDetach>(&params(which.sr)).await?;
            context.done()
        }
        Verb::Destroy(which) => {
            context.call::<SrDestroy>(&params(which.sr)).await?;
            context.done()
        }
        Verb::Ls => list(context).await,
        Verb::Show(which) => {
            let info = context.call::<SrStat>(&params(which.sr.clone())).await?;
            context.show(&info, |info| render_one(&which.sr, info))
        }
        Verb::Rename(args) => rename(args, context).await,
        Verb::Probe(place) => probe(place, context).await,
    }
}

fn params(sr: String) -> SrParams {
    SrParams { dbg: DBG.into(), sr }
}

async fn create(args: Create, context: &Context) -> Result<(), Failure> {
    let sr = args.uuid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let params = SrCreateParams {
        dbg: DBG.into(),
        sr: sr.clone(),
        name_label: args.name,
        name_description: args.description,
        device_config: pair::collect(args.place.device_config),
        physical_size: 0,
    };
    let device_config: Pairs = context.call::<SrCreate>(&params).await?;
    context.show(&device_config, |_| format!("{sr}\n"))
}

async fn rename(args: Rename, context: &Context) -> Result<(), Failure> {
    if let Some(new_name_label) = args.name {
        let params = SrNameLabelParams { dbg: DBG.into(), sr: args.sr.clone(), new_name_label };
        context.call::<SrSetNameLabel>(&params).await?;
    }
    if let Some(new_name_description) = args.description {
        let params = SrNameDescriptionParams { dbg: DBG.into(), sr: args.sr, new_name_description };
        context.call::<SrSetNameDescription>(&params).await?;
    }
    context.done()
}

/// All SRs that can be read are listed; one that cannot be is told of, and fails the command.
async fn list(context: &Context) -> Result<(), Failure> {
    let (mut infos, mut unread) = (Vec::new(), Vec::new());
    for sr in context.ask::<SrList>().await? {
        match context.call::<SrStat>(&params(sr.clone())).await {
            Ok(info) => infos.push(SrInfo { sr_uuid: Some(sr), ..info }),
            Err(error) => unread.push(error.to_string()),
        }
    }
    context.show(&infos, |infos| render(infos))?;
    match unread.is_empty() {
        true => Ok(()),
        false => Err(Failure::plain(format!("the list is incomplete: {}", unread.join("; ")))),
    }
}

async fn probe(place: Place, context: &Context) -> Result<(), Failure> {
    let params = SrProbeParams {
        dbg: DBG.into(),
        queue: String::new(),
        device_config: pair::collect(place.device_config),
        sm_config: Pairs::new(),
    };
    let found = context.call::<SrProbe>(&params).await?;
    context.show(&found, |found| match found {
        ProbeResult::Probe(places) => render_probe(places),
        ProbeResult::Raw(text) => table::plain(text),
    })
}

fn uuid(info: &SrInfo) -> String {
    info.sr_uuid.clone().unwrap_or_default()
}

fn render(infos: &[SrInfo]) -> String {
    let row = |info: &SrInfo| {
        vec![
            uuid(info),
            info.name_label.clone(),
            size::human_signed(info.total_space),
            size::human_signed(info.free_space),
            format!("{:?}", info.health).to_lowercase(),
        ]
    };
    let rows: Vec<_> = infos.iter().map(row).collect();
    table::columns(&["UUID", "NAME", "TOTAL", "FREE", "HEALTH"], &[2, 3], &rows)
}

fn render_one(sr: &str, info: &SrInfo) -> String {
    table::properties(&[
        ("UUID", sr.to_owned()),
        ("Name", info.name_label.clone()),
        ("Description", info.name_description.clone()),
        ("Total", size::human_signed(info.total_space)),
        ("Free", size::human_signed(info.free_space)),
        ("Health", format!("{:?}", info.health).to_lowercase()),
    ])
}

fn render_probe(places: &[Probe]) -> String {
    let row = |place: &Probe| {
        let sr = place.sr.as_ref();
        vec![
            sr.map(uuid).unwrap_or_default(),
            sr.map(|info| info.name_label.clone()).unwrap_or_default(),
            pair::join(&place.configuration),
            if place.complete { "yes".into() } else { "no".into() },
            pair::join(&place.extra_info),
        ]
    };
    let rows: Vec<_> = places.iter().map(row).collect();
    table::columns(&["SR", "NAME", "DEVICE-CONFIG", "COMPLETE", "MORE"], &[], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::Health;

    fn info() -> SrInfo {
        SrInfo {
            sr_uuid: Some("s".into()),
            name_label: "local".into(),
            name_description: String::new(),
            total_space: 10 << 30,
            free_space: 512 << 20,
            clustered: false,
            health: Health::Healthy,
        }
    }

    #[test]
    fn an_sr_is_a_line_with_human_sizes() {
        let text = render(&[info()]);
        assert!(text.ends_with("s     local  10 GiB  512 MiB  healthy\n"), "{text}");
    }

    #[test]
    fn a_probed_place_shows_the_sr_that_is_there() {
        let place = Probe {
            configuration: [("path".to_owned(), "/srv".to_owned())].into(),
            complete: true,
            sr: Some(info()),
            extra_info: Pairs::new(),
        };
        let text = render_probe(&[place]);
        assert!(text.ends_with("s   local  path=/srv      yes       -\n"), "{text}");
    }
}
