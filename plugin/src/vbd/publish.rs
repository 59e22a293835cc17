//! What the backend writes, as batches: one transaction each, with the state that it leads to.
//!
//! No I/O. Every batch insists on the state that was seen, so that it neither overwrites what the
//! toolstack wrote meanwhile nor brings back a directory that is gone.
//! Source of keys and order: xen/include/public/io/blkif.h; Linux
//! drivers/block/xen-blkback/xenbus.c (`connect`, `xen_blkbk_probe`).

use super::address::Address;
use super::backend::{Publication, Worker};
use super::offer::Offer;
use crate::vdi::VdiId;
use crate::xenstore::{Batch, Guard};
use zerotap_rpc_schema::worker::{Discard, ImageInfo, TransferRule};

/// The backend kind of devices that `VBD.plug` makes.
pub const OWN_KIND: &str = "zerotap";

const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// What toolstack and administrator ordered of a device, and never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The VDI.
    pub vdi: VdiId,
    /// Ordered read-only.
    pub read_only: bool,
    /// A CD drive.
    pub cdrom: bool,
    /// A removable medium.
    pub removable: bool,
    /// How the guest's pages are reached, where that is not as with the worker's others.
    pub transfer: Option<TransferRule>,
    /// What the guest is offered at the most.
    pub offer: Offer,
}

impl Identity {
    /// How the guest may discard on `image`.
    #[must_use]
    pub fn discard(&self, image: &ImageInfo) -> Option<Discard> {
        self.offer.discard(image).filter(|_| !self.read_only)
    }

    /// Whether the guest may keep its grants: a rule says that pages are mapped or copied anew for
    /// each request, and a guest that keeps grants copies itself.
    fn persistent(&self, worker: &Worker) -> bool {
        let rule = worker.transfer.map(|rule| self.transfer.unwrap_or(rule));
        self.offer.persistent_grants && rule.unwrap_or_default() == TransferRule::Auto
    }
}

/// The batch that publishes `what`, provided that the backend's state is `from`.
#[must_use]
pub fn batch(address: &Address, identity: &Identity, from: &str, what: &Publication) -> Batch {
    let mut batch = Batch::default();
    let state = address.key("state");
    batch.insist(Guard::Equals(state.clone(), from.to_owned()));
    match what {
        Publication::Offers(worker) => offers(&mut batch, address, &identity.offer, worker),
        Publication::Properties(worker) => properties(&mut batch, address, identity, worker),
        Publication::NoMedium => drop(batch.write(address.key("sectors"), 0)),
        Publication::State(_) => {}
    }
    batch.write(state, what.state());
    batch
}

/// Before `InitWait`: a frontend reads them when it makes its ring.
fn offers(batch: &mut Batch, address: &Address, offer: &Offer, worker: &Worker) {
    let order = worker.ring_page_order_max.min(offer.ring_page_order_max);
    batch.write(address.key("max-ring-page-order"), order);
    let queues = worker.queues_max.min(offer.queues_max);
    batch.write(address.key("multi-queue-max-queues"), queues);
    let indirect = address.key("feature-max-indirect-segments");
    match worker.indirect_segments_max.min(offer.indirect_segments_max) {
        // Its absence forbids them; an earlier offer may stand there.
        0 => batch.remove(indirect),
        segments => batch.write(indirect, segments),
    };
    if address.kind == OWN_KIND {
        // Nobody's script does it for this kind.
        batch.write(address.key("hotplug-status"), "connected");
    }
    batch.write(address.key("kthread-pid"), worker.pid);
}

/// Before `Connected`: a Linux frontend gathers sectors, sector-size and info, or gives up.
fn properties(batch: &mut Batch, address: &Address, identity: &Identity, worker: &Worker) {
    let image = worker.image;
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let info = bit(identity.cdrom, VDISK_CDROM)
        | bit(identity.removable, VDISK_REMOVABLE)
        | bit(identity.read_only, VDISK_READONLY);
    let physical = image.physical_sector_bytes.max(image.sector_bytes);
    // Capacity has to be a multiple of it.
    let fits = (image.sectors * 512).is_multiple_of(u64::from(physical));
    let physical = if fits { physical } else { image.sector_bytes };
    let sector = identity.offer.sector_bytes(&image);
    batch.write(address.key("feature-flush-cache"), 1);
    let discard = identity.discard(&image);
    if let Some(Discard { granularity_bytes, alignment_bytes }) = discard {
        batch
            .write(address.key("discard-granularity"), granularity_bytes)
            .write(address.key("discard-alignment"), alignment_bytes)
            .write(address.key("discard-secure"), 0);
    }
    batch
        .write(address.key("feature-discard"), u32::from(discard.is_some()))
        .write(address.key("feature-barrier"), u32::from(identity.offer.barrier))
        .write(address.key("feature-persistent"), u32::from(identity.persistent(worker)))
        .write(address.key("sectors"), image.sectors)
        .write(address.key("info"), info)
        .write(address.key("sector-size"), sector)
        .write(address.key("physical-sector-size"), physical)
        .write(address.key("kthread-pid"), worker.pid);
}

#[cfg(test)]
mod tests {
    use super::super::address::Own;
    use super::super::xenbus::State;
    use super::*;
    use crate::xenstore::Change;
    use zerotap_rpc_schema::worker::VbdId;

    fn written(kind: &str, what: &Publication) -> Vec<String> {
        written_of(kind, what, true, Offer::default())
    }

    fn written_of(kind: &str, what: &Publication, read_only: bool, offer: Offer) -> Vec<String> {
        let id = VbdId { domid: 5, devid: 51712 };
        let own = Own { domid: 0, named: true };
        let address = Address { id, kind: kind.to_owned(), own };
        let vdi = VdiId::new("s", "v");
        let (cdrom, removable, transfer) = (false, true, None);
        let identity = Identity { vdi, read_only, cdrom, removable, transfer, offer };
        let batch = batch(&address, &identity, "1", what);
        let state = format!("/local/domain/0/backend/{kind}/5/51712/state");
        assert_eq!(batch.guards, [Guard::Equals(state, "1".to_owned())]);
        let write = |change: &Change| match change {
            Change::Write(path, value) => {
                format!("{}={value}", path.rsplit('/').next().unwrap_or_default())
            }
            Change::Remove(path) => format!("-{}", path.rsplit('/').next().unwrap_or_default()),
            other => panic!("{other:?}"),
        };
        batch.changes.iter().map(write).collect()
    }

    fn worker(sectors: u64) -> Worker {
        let image = ImageInfo {
            sectors,
            sector_bytes: 512,
            physical_sector_bytes: 4096,
            emulated_sector_bytes: None,
            memory_align_bytes: 512,
            discard: Some(Discard { granularity_bytes: 65536, alignment_bytes: 4096 }),
        };
        Worker {
            pid: 77,
            image,
            read_only: false,
            indirect_segments_max: 256,
            ring_page_order_max: 9,
            queues_max: 2,
            transfer: Some(TransferRule::Auto),
            ring: None,
            draining: false,
            answered_all: false,
        }
    }

    #[test]
    fn offers_come_before_init_wait() {
        let mut wanted = [
            "max-ring-page-order=4",
            "multi-queue-max-queues=2",
            "feature-max-indirect-segments=256",
            "kthread-pid=77",
            "state=2",
        ];
        assert_eq!(written("qdisk", &Publication::Offers(worker(8))), wanted);
        let ours = written(OWN_KIND, &Publication::Offers(worker(8)));
        wanted[3] = "hotplug-status=connected";
        assert_eq!(ours[..4], wanted[..4]);
    }

    #[test]
    fn properties_come_before_connected() {
        let all = written("qdisk", &Publication::Properties(worker(2048)));
        assert_eq!(
            all,
            [
                "feature-flush-cache=1",
                "feature-discard=0",
                "feature-barrier=1",
                "feature-persistent=1",
                "sectors=2048",
                "info=6",
                "sector-size=512",
                "physical-sector-size=4096",
                "kthread-pid=77",
                "state=4",
            ]
        );
        let odd = written("qdisk", &Publication::Properties(worker(2047)));
        assert_eq!(odd[7], "physical-sector-size=512");
        assert_eq!(written("qdisk", &Publication::State(State::Closed)), ["state=6"]);
        assert_eq!(written("qdisk", &Publication::NoMedium), ["sectors=0", "state=4"]);
    }

    #[test]
    fn large_sectors_are_told_as_small_ones_unless_an_administrator_wants_otherwise() {
        let mut worker = worker(2048);
        worker.image.sector_bytes = 4096;
        let told = |worker: &Worker, large_sectors| {
            let offer = Offer { large_sectors, ..Offer::default() };
            let what = Publication::Properties(worker.clone());
            let mut keys = written_of("qdisk", &what, true, offer);
            keys.retain(|key| key.contains("sector-size"));
            keys
        };
        let native = ["sector-size=4096", "physical-sector-size=4096"];
        assert_eq!(told(&worker, false), native, "an older worker does not emulate");
        worker.image.emulated_sector_bytes = Some(512);
        assert_eq!(told(&worker, true), native);
        assert_eq!(told(&worker, false), ["sector-size=512", "physical-sector-size=4096"]);
    }

    #[test]
    fn discards_are_offered_where_they_may_be_and_never_half() {
        let properties = Publication::Properties(worker(2048));
        let offered = written_of("qdisk", &properties, false, Offer::default());
        let wanted = [
            "feature-flush-cache=1",
            "discard-granularity=65536",
            "discard-alignment=4096",
            "discard-secure=0",
            "feature-discard=1",
            "feature-barrier=1",
        ];
        assert_eq!(offered[..6], wanted);
        let vetoed = Offer { discard: false, ..Offer::default() };
        for (read_only, offer) in [(true, Offer::default()), (false, vetoed)] {
            let keys = written_of("qdisk", &properties, read_only, offer);
            let told: Vec<_> = keys.iter().filter(|key| key.contains("discard")).collect();
            assert_eq!(told, ["feature-discard=0"], "read-only: {read_only}");
        }
    }

    #[test]
    fn vetoes_are_kept() {
        let offer = Offer {
            persistent_grants: false,
            barrier: false,
            discard: true,
            queues_max: 1,
            ring_page_order_max: 2,
            indirect_segments_max: 0,
            large_sectors: true,
        };
        let keys = written_of("qdisk", &Publication::Offers(worker(8)), false, offer.clone());
        let wanted =
            ["max-ring-page-order=2", "multi-queue-max-queues=1", "-feature-max-indirect-segments"];
        assert_eq!(keys[..3], wanted);
        let keys = written_of("qdisk", &Publication::Properties(worker(8)), false, offer);
        for key in ["feature-barrier=0", "feature-persistent=0", "feature-flush-cache=1"] {
            assert!(keys.iter().any(|written| written == key), "{key}: {keys:?}");
        }
    }

    #[test]
    fn grants_are_kept_unless_a_rule_says_otherwise() {
        use TransferRule::{Auto, Copy, Map};
        for (own, of_worker, kept) in [
            (None, Some(Auto), true),
            (None, Some(Copy), false),
            (None, Some(Map), false),
            (Some(Auto), Some(Copy), true),
            (Some(Map), Some(Auto), false),
            (Some(Copy), Some(Auto), false),
            // A worker that knows no rules keeps grants if it is told that the guest does.
            (Some(Copy), None, true),
        ] {
            let identity = Identity {
                vdi: VdiId::new("s", "v"),
                read_only: false,
                cdrom: false,
                removable: false,
                transfer: own,
                offer: Offer::default(),
            };
            let worker = Worker { transfer: of_worker, ..worker(8) };
            assert_eq!(identity.persistent(&worker), kept, "{own:?} {of_worker:?}");
        }
    }
}
