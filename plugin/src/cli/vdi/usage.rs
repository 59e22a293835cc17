//! The four steps of a VDI's use: attach, activate, deactivate, detach.

use super::super::context::{Context, DBG};
use super::super::failure::Failure;
use super::super::locate::{self, Which};
use super::super::table;
use clap::Args;
use zerotap_rpc_schema::smapi2::{Backend, DpParams, Implementation, VdiAttachParams};
use zerotap_rpc_schema::table::{
    VdiActivate, VdiActivateReadonly, VdiAttach, VdiDeactivate, VdiDetach,
};

/// One use of a VDI.
#[derive(Debug, Args)]
pub(crate) struct Use {
    #[command(flatten)]
    which: Which,
    /// The datapath: a name for this use [default: vbd/<domid>/<device>, or cli]
    #[arg(long, value_name = "NAME")]
    dp: Option<String>,
    /// The domain that uses the VDI
    #[arg(long, value_name = "N", requires = "device")]
    domid: Option<u16>,
    /// The device's name in that domain, for example xvda
    #[arg(long, requires = "domid")]
    device: Option<String>,
    /// For attach and activate: this use does not write
    #[arg(long)]
    read_only: bool,
}

impl Use {
    fn datapath(&self) -> String {
        match (&self.dp, self.domid, &self.device) {
            (Some(dp), ..) => dp.clone(),
            (None, Some(domid), Some(device)) => format!("vbd/{domid}/{device}"),
            _ => "cli".into(),
        }
    }

    /// SMAPIv2's `vm`: the domain's id as text, dom0's when none is named.
    fn vm(&self) -> String {
        self.domid.unwrap_or(0).to_string()
    }

    async fn params(&self, context: &Context) -> Result<DpParams, Failure> {
        let vdi = locate::vdi(context, &self.which).await?;
        let (dp, vm) = (self.datapath(), self.vm());
        Ok(DpParams { dbg: DBG.into(), dp, sr: vdi.sr, vdi: vdi.vdi, vm })
    }
}

pub(crate) async fn attach(args: &Use, context: &Context) -> Result<(), Failure> {
    let DpParams { dbg, dp, sr, vdi, vm } = args.params(context).await?;
    let params = VdiAttachParams { dbg, dp, sr, vdi, vm, read_write: !args.read_only };
    let backend = context.call::<VdiAttach>(&params).await?;
    context.show(&backend, render)
}

pub(crate) async fn activate(args: &Use, context: &Context) -> Result<(), Failure> {
    let params = args.params(context).await?;
    if args.read_only {
        context.call::<VdiActivateReadonly>(&params).await?;
    } else {
        context.call::<VdiActivate>(&params).await?;
    }
    context.done()
}

pub(crate) async fn deactivate(args: &Use, context: &Context) -> Result<(), Failure> {
    let params = args.params(context).await?;
    context.call::<VdiDeactivate>(&params).await?;
    context.done()
}

pub(crate) async fn detach(args: &Use, context: &Context) -> Result<(), Failure> {
    let params = args.params(context).await?;
    context.call::<VdiDetach>(&params).await?;
    context.done()
}

fn render(backend: &Backend) -> String {
    let row = |way: &Implementation| match way {
        Implementation::XenDisk(disk) => {
            vec!["XenDisk".into(), format!("{} {}", disk.backend_type, disk.params)]
        }
        Implementation::BlockDevice(at) => vec!["BlockDevice".into(), at.path.clone()],
        Implementation::File(at) => vec!["File".into(), at.path.clone()],
        Implementation::Nbd(nbd) => vec!["Nbd".into(), nbd.uri.clone()],
    };
    let rows: Vec<_> = backend.implementations.iter().map(row).collect();
    table::columns(&["USE AS", "WHERE"], &[], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Use {
        use clap::FromArgMatches;
        let command = Use::augment_args(clap::Command::new("attach"));
        let matches = command.try_get_matches_from(line.split(' ')).expect("a command line");
        Use::from_arg_matches(&matches).expect("a use")
    }

    #[test]
    fn a_datapath_is_named_or_derived() {
        assert_eq!(parse("attach v").datapath(), "cli");
        assert_eq!(parse("attach v --domid 5 --device xvda").datapath(), "vbd/5/xvda");
        assert_eq!(parse("attach v --domid 5 --device xvda --dp mine").datapath(), "mine");
        assert_eq!(parse("attach v --dp mine").vm(), "0");
    }
}
