//! Ways to a guest's pages, each by whoever may decide it: configuration, SR, VDI, VBD.

use std::time::Duration;
use zerotap_rpc_schema::admin::VbdPlugParams;
use zerotap_rpc_schema::smapi2::{Pairs, SrCreateParams, VdiCreateParams, VdiInfo, VdiParams};
use zerotap_rpc_schema::table;
use zerotap_rpc_schema::worker::{Counters, TransferRule};
use zerotap_tests::blkfront::Options;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::{Host, Vdi, uuid};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(30);

/// A volume in an SR of its own, each with a rule if there is one.
fn volume(host: &Host, of_sr: Option<&str>, of_vdi: Option<&str>) -> anyhow::Result<Vdi> {
    let rule = |rule: Option<&str>| rule.map(|rule| ("transfer".to_owned(), rule.to_owned()));
    let sr = uuid()?;
    let sr_dir = host.data().join(format!("sr-{sr}"));
    std::fs::create_dir(&sr_dir)?;
    let mut device_config = Pairs::from([("path".to_owned(), sr_dir.display().to_string())]);
    device_config.extend(rule(of_sr));
    let params = SrCreateParams {
        dbg: String::new(),
        sr: sr.clone(),
        name_label: "transfer".into(),
        name_description: String::new(),
        device_config,
        physical_size: 0,
    };
    host.rpc().call::<table::SrCreate>(&params)?;
    let mut vdi_info = VdiInfo::new("a disk", 16 * MIB);
    vdi_info.sm_config.extend(rule(of_vdi));
    let params = VdiCreateParams { dbg: String::new(), sr: sr.clone(), vdi_info };
    let vdi = host.rpc().call::<table::VdiCreate>(&params)?.vdi;
    Ok(Vdi { sr, vdi, sr_dir })
}

/// A guest that would keep its grants checks every byte of a served disk; what its worker counted.
fn exercise(host: &Host, vdi: &Vdi, of_vbd: Option<TransferRule>) -> anyhow::Result<Counters> {
    let rpc = host.rpc();
    let disk = vdi.serve(&rpc, DOMID, false)?;
    // So small that all its pages may stand.
    let plan = Plan { requests_max: 600, bytes_max: 64 << 10, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh)?;
    let VdiParams { dbg, sr, vdi } = disk.vdi.params();
    let (device, read_only) = ("xvda".to_owned(), false);
    let plug = VbdPlugParams { dbg, domid: DOMID, device, sr, vdi, read_only, transfer: of_vbd };
    rpc.call::<table::VbdPlug>(&plug)?;
    running.progresses(10, SOON)?;
    let mut ended = running.join()?;
    let counters = disk.stat(&rpc)?.counters;
    let image = disk.vdi.image()?;
    disk.unplug(&rpc, false)?;
    destroy(host.sim().dir(), DOMID)?;
    disk.deactivate(&rpc)?;
    disk.detach(&rpc)?;
    ended.model.check_image(&image)?;
    assert_eq!((counters.refused, counters.io_errors, counters.in_flight), (0, 0, 0));
    Ok(counters)
}

/// The way that all requests of data went, and all bytes of it.
fn only_way(counters: &Counters) -> &'static str {
    let Counters { standing_requests, mapped_requests, grant_copied_requests, .. } = counters;
    let moved = counters.read_bytes + counters.write_bytes;
    let (mapped, copied) = (counters.mapped_bytes, counters.grant_copied_bytes);
    match (standing_requests, mapped_requests, grant_copied_requests) {
        (1.., 0, 0) if (mapped, copied) == (moved, 0) => "stand",
        (0, 1.., 0) if (mapped, copied) == (moved, 0) => "map",
        (0, 0, 1..) if (mapped, copied) == (0, moved) => "copy",
        _ => panic!("no single way: {counters:?}"),
    }
}

#[test]
fn whoever_is_nearest_to_the_guest_decides() {
    let host = Host::start_with("transfer = \"copy\"").unwrap();
    for (of_sr, of_vdi, of_vbd, way) in [
        (None, None, None, "copy"),
        (Some("map"), None, None, "map"),
        (Some("map"), Some("copy"), None, "copy"),
        (Some("map"), Some("copy"), Some(TransferRule::Auto), "stand"),
        (None, Some("auto"), None, "stand"),
        (None, None, Some(TransferRule::Map), "map"),
    ] {
        let vdi = volume(&host, of_sr, of_vdi).unwrap();
        let counters = exercise(&host, &vdi, of_vbd).unwrap();
        assert_eq!(only_way(&counters), way, "{of_sr:?} {of_vdi:?} {of_vbd:?}");
    }
}

#[test]
fn what_is_cheaper_serves_a_guest_that_keeps_no_grants() {
    let host = Host::start().unwrap();
    let vdi = volume(&host, None, None).unwrap();
    let rpc = host.rpc();
    let disk = vdi.serve(&rpc, DOMID, false).unwrap();
    let plan = Plan { requests_max: 600, bytes_max: 1 << 20, ..Plan::default() };
    let options = Options { persistent: false, ..Options::default() };
    let guest = Guest { plan, options, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&rpc).unwrap();
    let mut ended = running.join().unwrap();
    let counters = disk.stat(&rpc).unwrap().counters;
    // Both ways are tried from the first sweeps on, or nobody would know.
    assert!(counters.mapped_requests > 0 && counters.grant_copied_requests > 0, "{counters:?}");
    let moved = counters.read_bytes + counters.write_bytes;
    assert_eq!(counters.mapped_bytes + counters.grant_copied_bytes, moved);
    assert_eq!((counters.standing_requests, counters.io_errors, counters.refused), (0, 0, 0));
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();
}

#[test]
fn a_rule_that_is_none_is_refused() {
    let host = Host::start().unwrap();
    for (of_sr, of_vdi) in [(Some("fast"), None), (None, Some("Copy"))] {
        let error = volume(&host, of_sr, of_vdi).expect_err("no such rule");
        let error = format!("{error:#}");
        assert!(error.contains("transfer is auto, map or copy"), "{error}");
    }
}
