//! Reads a VBD's two directories from xenstore into what the machine understands.
//!
//! It decides nothing and writes nothing. What the guest wrote is parsed here and goes no further
//! as text. Called by `actor` and `watcher`.

use super::address::{Address, OWN_DOMID};
use super::backend::{Backend, BackendSight, Medium, Sight};
use super::frontend::{self, Fault, Offered};
use super::offer::Offer;
use super::publish::{Identity, OWN_KIND};
use crate::vdi::VdiId;
use crate::xenstore::{Store, StoreError, read_if_there};
use std::collections::BTreeMap;
use zerotap_rpc_schema::worker::RingParameters;

/// The backend's key that says how the guest's pages are reached; xenopsd writes below `sm-data`
/// what a datapath's answer has for the backend.
pub const TRANSFER: &str = "sm-data/transfer";

/// What a backend directory turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A VBD of one of our VDIs.
    Ours(Identity),
    /// Somebody else's, or not there.
    Foreign,
    /// One of our VDIs, but the directory is not complete or not right; and why.
    Wrong(String),
}

/// Reads who a backend directory is; `offer` is what its guest gets at the most.
///
/// # Errors
/// When xenstored does not answer.
pub async fn identity(
    store: &dyn Store,
    address: &Address,
    offer: &Offer,
) -> Result<Found, StoreError> {
    let Params { vdi: Some(vdi), .. } = params(store, address).await? else {
        return Ok(Found::Foreign);
    };
    let key = async |name: &str| text(store, &address.key(name)).await;
    let (frontend, wanted) = (key("frontend").await?, address.frontend());
    if frontend.as_deref() != Some(&wanted) {
        // Whoever could make us watch another domain's keys could make us map its pages.
        return Ok(Found::Wrong(format!("its frontend is not {wanted}")));
    }
    let frontend_id = key("frontend-id").await?;
    if frontend_id.is_some_and(|id| id != address.id.domid.to_string()) {
        return Ok(Found::Wrong(format!("its frontend-id is not {}", address.id.domid)));
    }
    let read_only = match key("mode").await?.as_deref() {
        Some("w") => false,
        Some("r") => true,
        _ => return Ok(Found::Wrong("its mode is neither r nor w".to_owned())),
    };
    // xenopsd writes it into the frontend's directory alone. A guest that changes it there can only
    // make its own disk read-only.
    let theirs = format!("{}/device-type", address.frontend());
    let device_type = match key("device-type").await? {
        Some(device_type) => Some(device_type),
        None => text(store, &theirs).await?,
    };
    let cdrom = device_type.as_deref() == Some("cdrom");
    let removable = key("removable").await?.as_deref() == Some("1");
    let transfer = match key(TRANSFER).await?.map(|rule| rule.parse()) {
        Some(Err(why)) => return Ok(Found::Wrong(format!("its {TRANSFER}: {why}"))),
        rule => rule.and_then(Result::ok),
    };
    let mut offer = offer.clone();
    offer.discard &= key("discard-enable").await?.as_deref() != Some("0");
    let read_only = read_only || cdrom;
    Ok(Found::Ours(Identity { vdi, read_only, cdrom, removable, transfer, offer }))
}

/// What `params` says.
struct Params {
    /// The VDI that the directory means; that of a drive whose medium was ejected, if it tells.
    vdi: Option<VdiId>,
    /// It is empty: what xenopsd writes to eject a CD.
    empty: bool,
}

/// Reads `params`, or what xenopsd makes of a datapath's answer.
async fn params(store: &dyn Store, address: &Address) -> Result<Params, StoreError> {
    let params = text(store, &address.key("params")).await?;
    if let Some(vdi) = params.as_deref().and_then(VdiId::from_params) {
        return Ok(Params { vdi: Some(vdi), empty: false });
    }
    let first = text(store, &address.key("qemu-params")).await?;
    let vdi = first.as_deref().and_then(VdiId::from_params);
    Ok(Params { vdi, empty: params.is_some_and(|params| params.is_empty()) })
}

/// Reads both directories. A directory that has become another device's counts as gone.
///
/// # Errors
/// When xenstored does not answer.
pub async fn sight(
    store: &dyn Store,
    address: &Address,
    identity: &Identity,
    machine: &Backend,
) -> Result<Sight, StoreError> {
    let backend = backend(store, address, identity).await?;
    let directory = address.frontend();
    let alive = store.introduced(address.id.domid).await?;
    let state = text(store, &format!("{directory}/state")).await?;
    if backend.is_none() || !machine.wants_ring(state.as_deref()) {
        return Ok(Sight { backend, alive, frontend_state: state, ring: None });
    }
    let (frontend_state, mut ring) = ring(store, address).await?;
    if let Ok(ring) = &mut ring {
        // Both ends must have offered it; a guest that is connected goes by what it read then.
        let connected = backend.as_ref().is_some_and(|it| it.state.as_deref() == Some("4"));
        let told = text(store, &address.key("feature-persistent")).await?;
        ring.persistent &= identity.offer.persistent_grants;
        ring.persistent &= !connected || told.as_deref() == Some("1");
    }
    let ring = machine.wants_ring(frontend_state.as_deref()).then_some(ring);
    Ok(Sight { backend, alive, frontend_state, ring })
}

async fn backend(
    store: &dyn Store,
    address: &Address,
    identity: &Identity,
) -> Result<Option<BackendSight>, StoreError> {
    let params = params(store, address).await?;
    let medium = match &params.vdi {
        _ if identity.cdrom && params.empty => Medium::Ejected,
        Some(vdi) if *vdi == identity.vdi => Medium::Here,
        Some(_) if identity.cdrom => Medium::Another,
        _ => return if is_itself(store, address).await? { Ok(None) } else { Err(lost()) },
    };
    let key = async |name: &str| text(store, &address.key(name)).await;
    let online = key("online").await?.as_deref() != Some("0");
    let ready =
        address.kind == OWN_KIND || key("hotplug-status").await?.as_deref() == Some("connected");
    let sectors = key("sectors").await?.and_then(|text| text.parse().ok());
    Ok(Some(BackendSight { state: key("state").await?, online, ready, sectors, medium }))
}

/// Whether this is the xenstore that the device was found in: a xenstored that was started again
/// knows nothing, and that is no reason to take a disk from a guest.
async fn is_itself(store: &dyn Store, address: &Address) -> Result<bool, StoreError> {
    let own = text(store, OWN_DOMID).await?;
    Ok(own.is_some() || !address.own.named)
}

fn lost() -> StoreError {
    StoreError::Away(
        "it was started again and has lost all devices: guests keep their disks, but \
                      the host has to be restarted"
            .to_owned(),
    )
}

/// What a frontend has published: its state, and its ring.
type Published = (Option<String>, Result<RingParameters, Fault>);

/// Reads the state and what was published with it as of one moment: keys that the guest was writing
/// anew meanwhile belong to no ring.
async fn ring(store: &dyn Store, address: &Address) -> Result<Published, StoreError> {
    let offered = offered(store, address).await?;
    let directory = &address.frontend();
    let mut names: Vec<String> = vec!["state".to_owned()];
    names.extend(frontend::KEYS.iter().map(|&name| name.to_owned()));
    let mut keys = read_all(store, directory, &names).await?;
    let further = frontend::further_keys(|name| keys.get(name).map(String::as_str));
    if !further.is_empty() {
        names.extend(further);
        keys = read_all(store, directory, &names).await?;
    }
    let ring = frontend::parse(|name| keys.get(name).map(String::as_str), offered);
    Ok((keys.remove("state"), ring))
}

/// What this guest was offered: what stands in our own directory, whatever would be offered now.
async fn offered(store: &dyn Store, address: &Address) -> Result<Offered, StoreError> {
    let number = async |name: &str, most: u32| {
        let told = text(store, &address.key(name)).await?;
        Ok(told.and_then(|told| frontend::number(&told, most)).unwrap_or(most))
    };
    let most = Offered::default();
    Ok(Offered {
        queues: number("multi-queue-max-queues", most.queues).await?,
        ring_page_order: number("max-ring-page-order", most.ring_page_order).await?,
    })
}

async fn read_all(
    store: &dyn Store,
    directory: &str,
    names: &[String],
) -> Result<BTreeMap<String, String>, StoreError> {
    let paths: Vec<_> = names.iter().map(|name| format!("{directory}/{name}")).collect();
    let values = store.snapshot(&paths).await?;
    let there = |(name, value): (&String, Option<String>)| Some((name.clone(), value?));
    Ok(names.iter().zip(values).filter_map(there).collect())
}

/// A value; what is no text, or may not be read, is as good as garbage.
async fn text(store: &dyn Store, path: &str) -> Result<Option<String>, StoreError> {
    match read_if_there(store, path).await {
        Err(StoreError::NotText(_)) => Ok(Some("\u{fffd}".to_owned())),
        other => other,
    }
}
