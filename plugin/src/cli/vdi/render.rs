//! VDIs as tables.

use super::super::{pair, size, table};
use zerotap_rpc_schema::admin::{Unlocked, Worker};
use zerotap_rpc_schema::smapi2::{DpStat, VdiInfo};

/// The VDI's uuid; its key where it has none.
pub(super) fn uuid(vdi: &VdiInfo) -> &str {
    vdi.uuid.as_deref().unwrap_or(&vdi.vdi)
}

/// VDIs with their SRs' uuids, and which worker serves each.
pub(super) fn list(vdis: &[(&str, &VdiInfo)], workers: &[Worker]) -> String {
    let row = |(sr, vdi): &(&str, &VdiInfo)| {
        let serves = |worker: &&Worker| worker.sr == *sr && worker.vdi == vdi.vdi;
        let worker = workers.iter().find(serves).map(|worker| worker.id.clone());
        vec![
            uuid(vdi).to_owned(),
            vdi.name_label.clone(),
            size::human_signed(vdi.virtual_size),
            size::human_signed(vdi.physical_utilisation),
            worker.unwrap_or_default(),
            (*sr).to_owned(),
        ]
    };
    let rows: Vec<_> = vdis.iter().map(row).collect();
    table::columns(&["UUID", "NAME", "SIZE", "USED", "WORKER", "SR"], &[2, 3], &rows)
}

/// From whom a VDI was taken.
pub(super) fn unlocked(seen: &Unlocked) -> String {
    let Unlocked { host, boot_id, epoch, since, data } = seen;
    format!("taken from host {host} (boot {boot_id}, activation {epoch} of {since}); {data}\n")
}

/// One VDI and its datapaths.
pub(super) fn one(sr: &str, vdi: &VdiInfo, datapaths: &DpStat) -> String {
    let mut text = table::properties(&[
        ("UUID", uuid(vdi).to_owned()),
        ("Key", vdi.vdi.clone()),
        ("SR", sr.to_owned()),
        ("Name", vdi.name_label.clone()),
        ("Description", vdi.name_description.clone()),
        ("Size", size::human_signed(vdi.virtual_size)),
        ("Space used", size::human_signed(vdi.physical_utilisation)),
        ("Content id", vdi.content_id.clone()),
        ("sm-config", pair::join(&vdi.sm_config)),
        ("State", datapaths.superstate.to_string()),
    ]);
    if !datapaths.dps.is_empty() {
        let row = |(dp, state): (&String, _)| vec![dp.clone(), format!("{state}")];
        let rows: Vec<_> = datapaths.dps.iter().map(row).collect();
        text.push('\n');
        text += &table::columns(&["DATAPATH", "STATE"], &[], &rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::{Mode, VdiState};

    fn vdi() -> VdiInfo {
        let mut vdi = VdiInfo::new("root", 10 << 30);
        vdi.vdi = "v".into();
        vdi.physical_utilisation = 4096;
        vdi
    }

    #[test]
    fn a_vdi_is_a_line() {
        let text = list(&[("s", &vdi())], &[]);
        assert!(text.ends_with("v     root  10 GiB  4 KiB  -       s\n"), "{text}");
    }

    #[test]
    fn datapaths_follow_the_vdi() {
        let state = VdiState::Activated(Mode::ReadWrite);
        let dps = [("vbd/5/xvda".to_owned(), state)].into();
        let text = one("s", &vdi(), &DpStat { superstate: state, dps });
        assert!(text.contains("State        activated RW\n"), "{text}");
        assert!(text.ends_with("\nDATAPATH    STATE\nvbd/5/xvda  activated RW\n"), "{text}");
    }
}
