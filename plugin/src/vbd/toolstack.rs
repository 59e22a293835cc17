//! What a toolstack writes to make and to take away a VBD of our own kind.
//!
//! Order and permissions matter to guests (see [`make`]). It never waits for anyone: `plug` does.
//! Source: tools/libs/light/libxl_device.c in Xen's tree (`libxl__device_generic_add`).

use super::address::{Address, Own, root};
use super::reading::TRANSFER;
use super::xenbus::State;
use crate::vdi::VdiId;
use crate::xenstore::{Batch, Guard, Permissions, Store, StoreError, read_if_there};
use zerotap_rpc_schema::worker::TransferRule;

/// A device to make.
pub(super) struct Plan {
    pub(super) address: Address,
    /// Its name in the guest.
    pub(super) device: String,
    pub(super) vdi: VdiId,
    pub(super) read_only: bool,
    pub(super) transfer: Option<TransferRule>,
}

/// What is there already under a device's name.
pub(super) enum Taken {
    /// Nothing; or leftovers of a frontend whose backend, named here, is gone.
    Free(Option<String>),
    /// The very device, being served or about to be.
    Same,
    /// Something else, or the same on its way out; for people.
    By(String),
}

impl Plan {
    fn mode(&self) -> &'static str {
        if self.read_only { "r" } else { "w" }
    }

    /// Looks whether the name is free.
    pub(super) async fn taken(&self, store: &dyn Store) -> Result<Taken, StoreError> {
        let own = async |name: &str| read_if_there(store, &self.address.key(name)).await;
        if let Some(state) = own("state").await? {
            let leaving = own("online").await?.as_deref() == Some("0")
                || matches!(State::parse(&state), Some(State::Closing | State::Closed) | None);
            let params = own("params").await?;
            return Ok(match params.as_deref() {
                _ if leaving => Taken::By("a disk that is being unplugged".to_owned()),
                Some(params) if params != self.vdi.to_params() => Taken::By(params.to_owned()),
                _ if own("mode").await?.as_deref() == Some(self.mode()) => Taken::Same,
                _ => Taken::By("the same VDI in another mode".to_owned()),
            });
        }
        let frontend = format!("{}/backend", self.address.frontend());
        let Some(other) = read_if_there(store, &frontend).await? else {
            return Ok(Taken::Free(None));
        };
        let serves = read_if_there(store, &format!("{other}/state")).await?.is_some();
        Ok(if serves { Taken::By(other) } else { Taken::Free(Some(other)) })
    }

    /// Makes both directories, in one transaction: with permissions before keys, so that no
    /// frontend finds offers that it may not read (it would do without them and say nothing); the
    /// frontend's keys before the backend's, since a backend takes a missing frontend for one that
    /// has gone.
    ///
    /// # Errors
    /// `Changed` when the name is not free any more.
    pub(super) async fn make(
        &self,
        store: &dyn Store,
        leftover: Option<String>,
    ) -> Result<(), StoreError> {
        let Address { own: Own { domid: own, .. }, id, .. } = self.address;
        let (backend, frontend) = (self.address.backend(), self.address.frontend());
        let mut batch = Batch::default();
        batch.insist(Guard::Absent(format!("{backend}/state")));
        match leftover {
            Some(other) => batch
                .insist(Guard::Equals(format!("{frontend}/backend"), other.clone()))
                .insist(Guard::Absent(format!("{other}/state"))),
            None => batch.insist(Guard::Absent(format!("{frontend}/backend"))),
        };
        batch.remove(&frontend).remove(&backend);
        let readable = Permissions { owner: own, reader: id.domid };
        let home = format!("/local/domain/{}", id.domid);
        let kind = root(self.address.own, &self.address.kind);
        for parent in [
            format!("{home}/device"),
            format!("{home}/device/vbd"),
            kind.clone(),
            format!("{kind}/{}", id.domid),
        ] {
            // Where they are, they are as the toolstack wants them.
            if read_if_there(store, &parent).await?.is_none() {
                let reader = if parent == kind { own } else { id.domid };
                batch.mkdir(&parent, Permissions { owner: own, reader });
            }
        }
        batch.mkdir(&frontend, Permissions { owner: id.domid, reader: own });
        batch.mkdir(&backend, readable);
        self.keys(&mut batch, &frontend, &backend);
        store.transact(&batch).await
    }

    fn keys(&self, batch: &mut Batch, frontend: &str, backend: &str) {
        let Address { own: Own { domid: own, .. }, id, .. } = self.address;
        let fe = |key: &str| format!("{frontend}/{key}");
        let be = |key: &str| format!("{backend}/{key}");
        batch
            .write(fe("backend"), backend)
            .write(fe("backend-id"), own)
            .write(fe("virtual-device"), id.devid)
            .write(fe("device-type"), "disk")
            .write(fe("state"), State::Initialising)
            .write(be("frontend"), frontend)
            .write(be("frontend-id"), id.domid)
            .write(be("online"), 1)
            .write(be("removable"), 0)
            .write(be("bootable"), 1)
            .write(be("dev"), &self.device)
            .write(be("type"), &self.address.kind)
            .write(be("mode"), self.mode())
            .write(be("device-type"), "disk")
            .write(be("params"), self.vdi.to_params())
            .write(be("state"), State::Initialising);
        if let Some(rule) = self.transfer {
            batch.write(be(TRANSFER), rule);
        }
    }
}

/// Asks the guest to let go: it sees the backend closing. `now` is the backend's state.
pub(super) fn withdraw(address: &Address, now: &str) -> Batch {
    let state = address.key("state");
    let mut batch = Batch::default();
    batch.insist(Guard::Equals(state.clone(), now.to_owned())).write(address.key("online"), 0);
    if !matches!(State::parse(now), Some(State::Closing | State::Closed)) {
        batch.write(state, State::Closing);
    }
    batch
}

/// Removes what is left of a device.
pub(super) fn remove(address: &Address) -> Batch {
    let mut batch = Batch::default();
    batch.remove(address.frontend()).remove(address.backend()).remove(address.error_node());
    batch
}
