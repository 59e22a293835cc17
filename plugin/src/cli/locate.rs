//! Finds the SR of a VDI, so that a person names the VDI alone: SR.list, then SR.scan2 of each.

use super::context::{Context, DBG};
use super::failure::Failure;
use zerotap_rpc_schema::smapi2::{SrParams, VdiInfo, VdiParams};
use zerotap_rpc_schema::table::{SrList, SrScan2};

/// Which VDI a command is about.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Which {
    /// The VDI's uuid
    #[arg(value_name = "VDI")]
    pub(crate) vdi: String,
    /// Its SR's uuid; without it all attached SRs are searched
    #[arg(long, value_name = "SR")]
    pub(crate) sr: Option<String>,
}

/// The SR and the key of the VDI: as given with `--sr`, else by searching.
pub(crate) async fn vdi(context: &Context, which: &Which) -> Result<VdiParams, Failure> {
    match &which.sr {
        Some(sr) => Ok(VdiParams { dbg: DBG.into(), sr: sr.clone(), vdi: which.vdi.clone() }),
        None => search(context, &which.vdi).await,
    }
}

async fn search(context: &Context, wanted: &str) -> Result<VdiParams, Failure> {
    let srs = context.ask::<SrList>().await?;
    let mut unread = Vec::new();
    for sr in srs {
        let params = SrParams { dbg: DBG.into(), sr: sr.clone() };
        match context.call::<SrScan2>(&params).await {
            Ok((vdis, _)) => {
                if let Some(vdi) = vdis.into_iter().find(|vdi| is(vdi, wanted)) {
                    return Ok(VdiParams { dbg: DBG.into(), sr, vdi: vdi.vdi });
                }
            }
            // The VDI may be in another SR; this one only matters when it is in none.
            Err(error) => unread.push(error.to_string()),
        }
    }
    Err(missing(wanted, &unread))
}

fn is(vdi: &VdiInfo, wanted: &str) -> bool {
    vdi.vdi == wanted || vdi.uuid.as_deref() == Some(wanted)
}

fn missing(wanted: &str, unread: &[String]) -> Failure {
    let problem = format!("no attached SR has a VDI {wanted}");
    if unread.is_empty() {
        return Failure::new(
            problem,
            "`zerotap vdi ls` lists the VDIs of attached SRs, `zerotap sr attach` attaches an SR",
        );
    }
    let problem = format!("{problem}, but not all could be read: {}", unread.join("; "));
    Failure::new(problem, "mend that SR, or name the VDI's own with --sr")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vdi_is_known_by_key_and_by_uuid() {
        let mut vdi = VdiInfo::new("root", 1);
        vdi.vdi = "key".into();
        vdi.uuid = Some("uuid".into());
        assert!(is(&vdi, "key") && is(&vdi, "uuid") && !is(&vdi, "root"));
    }

    #[test]
    fn an_unreadable_sr_is_not_hidden() {
        let text = missing("v", &["SR.scan2: broken".into()]).to_string();
        assert!(text.contains("not all could be read: SR.scan2: broken"), "{text}");
    }
}
