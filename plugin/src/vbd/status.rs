//! How a VBD is, as its actor tells others: no I/O is needed to read it.

use super::address::Address;
use super::backend::Backend;
use super::device;
use super::disk::Disk;
use super::publish::Identity;
use super::xenbus::State;
use crate::state::now;
use zerotap_rpc_schema::admin;
use zerotap_rpc_schema::event::Change;
use zerotap_rpc_schema::smapi2::Mode;
use zerotap_rpc_schema::worker::RingParameters;

/// A VBD, at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub address: Address,
    /// Who it is.
    pub identity: Identity,
    /// Both ends' states, raw; `None` when the node is not there or not read yet.
    pub backend_state: Option<String>,
    /// See `backend_state`.
    pub frontend_state: Option<String>,
    /// Since when the backend is in this state, RFC 3339.
    pub since: String,
    /// The worker that serves the VDI.
    pub worker: Option<String>,
    /// The ring that it serves.
    pub ring: Option<RingParameters>,
    /// The worker may hold pages of the guest.
    pub holds_guest: bool,
    /// What is wrong and what to do.
    pub trouble: Option<String>,
    /// The directory was read at least once.
    pub seen: bool,
    /// It is known what there is; see [`Backend::is_settled`].
    pub settled: bool,
    /// The device is gone and so is its actor.
    pub ended: bool,
}

impl Status {
    /// Of a device that nothing is known of yet.
    #[must_use]
    pub fn new(address: Address, identity: Identity) -> Self {
        Status {
            address,
            identity,
            backend_state: None,
            frontend_state: None,
            since: now(),
            worker: None,
            ring: None,
            holds_guest: false,
            trouble: None,
            seen: false,
            settled: false,
            ended: false,
        }
    }

    /// Takes over what the machine knows, and why it knows no better. True when that was news.
    pub fn update(
        &mut self,
        machine: &Backend,
        disk: Option<&dyn Disk>,
        unread: Option<&str>,
    ) -> bool {
        let sight = machine.sight();
        let backend = sight.and_then(|sight| sight.backend.as_ref());
        let mut new = Status {
            backend_state: backend.and_then(|backend| backend.state.clone()),
            frontend_state: sight.and_then(|sight| sight.frontend_state.clone()),
            worker: disk.map(|disk| disk.id().to_owned()),
            ring: machine.connected_ring().cloned(),
            holds_guest: machine.holds_guest(),
            trouble: unread.or(machine.trouble()).map(str::to_owned),
            seen: sight.is_some(),
            settled: machine.is_settled(),
            ..self.clone()
        };
        if new.backend_state != self.backend_state {
            new.since = now();
        }
        let changed = new != *self;
        *self = new;
        changed
    }

    /// The backend's state, when it is one.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.backend_state.as_deref().and_then(State::parse)
    }

    /// The device's name in the guest.
    #[must_use]
    pub fn device(&self) -> String {
        device::name(self.address.id.devid)
    }

    /// As it is told to who listens for changes.
    #[must_use]
    pub fn change(&self) -> Change {
        let gone = || "gone".to_owned();
        let backend = || State::describe(self.backend_state.as_deref());
        Change::Vbd {
            domid: self.address.id.domid,
            device: self.device(),
            sr: self.identity.vdi.sr.clone(),
            vdi: self.identity.vdi.vdi.clone(),
            state: if self.ended { gone() } else { backend() },
            frontend_state: State::describe(self.frontend_state.as_deref()),
            worker: self.worker.clone(),
            trouble: self.trouble.clone(),
        }
    }

    /// For people, with the datapaths that hold the VDI.
    #[must_use]
    pub fn vbd(&self, held_by: Vec<String>) -> admin::Vbd {
        admin::Vbd {
            domid: self.address.id.domid,
            device: self.device(),
            devid: self.address.id.devid,
            kind: self.address.kind.clone(),
            sr: Some(self.identity.vdi.sr.clone()),
            vdi: Some(self.identity.vdi.vdi.clone()),
            mode: if self.identity.read_only { Mode::ReadOnly } else { Mode::ReadWrite },
            state: State::describe(self.backend_state.as_deref()),
            frontend_state: State::describe(self.frontend_state.as_deref()),
            worker: self.worker.clone(),
            since: self.since.clone(),
            held_by,
            trouble: self.trouble.clone(),
        }
    }
}
