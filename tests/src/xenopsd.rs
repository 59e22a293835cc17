//! What xenopsd writes into xenstore for a guest's disk (xen-api `ocaml/xenopsd/xc/device.ml`).

use crate::xenstore::Client;

/// Device.Vbd.add: both directories of device `(domid, devid)`, with the back end's `more` keys;
/// answers the back end's path.
///
/// # Errors
/// xenstored's.
pub fn add_vbd(
    dom0: &mut Client,
    (domid, devid): (u16, u32),
    kind: &str,
    mode: &str,
    more: &[(&str, &str)],
) -> anyhow::Result<String> {
    let frontend = format!("/local/domain/{domid}/device/vbd/{devid}");
    let backend = format!("/local/domain/0/backend/{kind}/{domid}/{devid}");
    let domid = domid.to_string();
    let (front_perms, back_perms) = ([format!("n{domid}"), "r0".into()], format!("r{domid}"));
    dom0.transaction(|tx| {
        tx.mkdir(&backend)?;
        tx.set_perms(&backend, &["n0", &back_perms])?;
        tx.mkdir(&frontend)?;
        tx.set_perms(&frontend, &front_perms.each_ref().map(String::as_str))?;
        let fixed = [
            ("frontend", frontend.as_str()),
            ("frontend-id", &domid),
            ("online", "1"),
            ("removable", "0"),
            ("bootable", "1"),
            ("dev", "xvda"),
            ("type", "phy"),
            ("mode", mode),
        ];
        for (key, value) in fixed.iter().chain(more).chain(&[("state", "1")]) {
            tx.write(&format!("{backend}/{key}"), value)?;
        }
        for (key, value) in [
            ("backend", backend.as_str()),
            ("backend-id", "0"),
            ("virtual-device", &devid.to_string()),
            ("device-type", "disk"),
            ("state", "1"),
        ] {
            tx.write(&format!("{frontend}/{key}"), value)?;
        }
        Ok(())
    })?;
    Ok(backend)
}
