//! Where a VBD is in xenstore.
//!
//! The frontend's domain comes from our own directory's path alone, never from what a guest wrote.
//! Source of the paths: docs/misc/xenstore-paths.pandoc in Xen's tree.

use zerotap_rpc_schema::worker::VbdId;

/// Our own domain's number, relative as every xenstored understands it.
pub const OWN_DOMID: &str = "domid";

/// Our own domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Own {
    /// Its number.
    pub domid: u16,
    /// Whether xenstore says so. If it does and then does not, xenstore was emptied.
    pub named: bool,
}

/// A backend directory: `/local/domain/<own>/backend/<kind>/<domid>/<devid>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The frontend's domain and the device's number.
    pub id: VbdId,
    /// The backend kind.
    pub kind: String,
    /// Our own domain.
    pub own: Own,
}

/// The directory above all backends of a kind.
#[must_use]
pub fn root(own: Own, kind: &str) -> String {
    format!("/local/domain/{}/backend/{kind}", own.domid)
}

impl Address {
    /// Ours.
    #[must_use]
    pub fn backend(&self) -> String {
        format!("{}/{}/{}", root(self.own, &self.kind), self.id.domid, self.id.devid)
    }

    /// A key of ours.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.backend())
    }

    /// The guest's. The only one that is believed: a directory that names another is refused.
    #[must_use]
    pub fn frontend(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.id.domid, self.id.devid)
    }

    /// Where errors go that the guest caused (Linux drivers/xen/xenbus/xenbus_client.c).
    #[must_use]
    pub fn error_node(&self) -> String {
        let VbdId { domid, devid } = self.id;
        format!(
            "/local/domain/{}/error/backend/{}/{domid}/{devid}/error",
            self.own.domid, self.kind
        )
    }
}

/// What a watch of [`root`] says that changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Spot {
    /// Something above the devices.
    Tree,
    /// A device's directory, or a key of it that matters.
    Device(VbdId),
    /// Nothing that matters.
    Nothing,
}

/// The keys that the toolstack changes; the others are read once or are our own.
const KEYS: &[&str] = &[
    "state",
    "online",
    "params",
    "qemu-params",
    "mode",
    "frontend",
    "frontend-id",
    "hotplug-status",
];

/// Reads a path that a watch of `root` reported.
#[must_use]
pub fn spot(root: &str, path: &str) -> Spot {
    let Some(rest) = path.strip_prefix(root) else { return Spot::Tree };
    let mut parts = rest.split('/').skip(1);
    let (Some(domid), Some(devid)) = (parts.next(), parts.next()) else { return Spot::Tree };
    let Some(id) = id(domid, devid) else { return Spot::Nothing };
    match (parts.next(), parts.next()) {
        (None, _) => Spot::Device(id),
        (Some(key), None) if KEYS.contains(&key) => Spot::Device(id),
        _ => Spot::Nothing,
    }
}

/// Reads a directory's two numbers: canonical decimals only, so that each device has one name.
#[must_use]
pub fn id(domid: &str, devid: &str) -> Option<VbdId> {
    let id = VbdId { domid: domid.parse().ok()?, devid: devid.parse().ok()? };
    (id.domid.to_string() == domid && id.devid.to_string() == devid).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_looked_at() {
        let root = root(Own { domid: 0, named: true }, "qdisk");
        let device = |domid, devid| Spot::Device(VbdId { domid, devid });
        for (path, wanted) in [
            ("", Spot::Tree),
            ("/5", Spot::Tree),
            ("/5/51712", device(5, 51712)),
            ("/5/51712/state", device(5, 51712)),
            ("/5/51712/hotplug-status", device(5, 51712)),
            ("/5/51712/sectors", Spot::Nothing),
            ("/5/51712/sm-data/vdi-uuid", Spot::Nothing),
            ("/5/51712/state/x", Spot::Nothing),
            ("/05/51712", Spot::Nothing),
            ("/+5/51712", Spot::Nothing),
            ("/65536/51712", Spot::Nothing),
            ("/5/4294967296", Spot::Nothing),
            ("/x/y", Spot::Nothing),
        ] {
            assert_eq!(spot(&root, &format!("{root}{path}")), wanted, "{path}");
        }
        assert_eq!(spot(&root, "/local"), Spot::Tree);
    }
}
