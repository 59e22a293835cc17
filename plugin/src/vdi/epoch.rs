//! Disks that forget: from VDI.epoch_begin with `persistent=false` to VDI.epoch_end a VDI's uses
//! are those of a copy of it, which then goes with all that was written to it.
//!
//! The copy is a volume of the same SR whose key tells what it is ([`boot_key`]); that its record
//! is there is the whole state, so a crash leaves an epoch or none, and other hosts see it too (a
//! guest that migrates goes on with its copy). Scans do not list it. Extents are shared where the
//! file system can. Run by the VDI's actor, which is the copy's too.

use crate::sr::attached::internal;
use crate::sr::record::{base_key, boot_key};
use crate::state::Datapath;
use crate::vdi::VdiId;
use crate::vdi::actor::Vdi;
use crate::vdi::registry::Registry;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiInfo;

impl VdiId {
    /// The copy that a guest uses instead, in an epoch that shall be forgotten.
    fn boot(&self) -> VdiId {
        VdiId::new(self.sr.clone(), boot_key(&self.vdi))
    }

    /// The VDI that this is a copy of, or itself.
    #[must_use]
    pub fn base(&self) -> VdiId {
        VdiId::new(self.sr.clone(), base_key(&self.vdi))
    }
}

impl Vdi<'_> {
    /// Another VDI of this actor's.
    pub(super) fn at<'a>(&self, id: &'a VdiId) -> Vdi<'a>
    where
        Self: 'a,
    {
        Vdi { id, registry: self.registry }
    }

    pub(super) async fn epoch_begin(&self, persistent: bool) -> Result<(), StorageError> {
        let (place, key) = (self.registry.srs.get(&self.id.sr)?, self.id.vdi.clone());
        let source = place.run(move |file| file.volume_info(&key)).await?;
        self.epoch_end().await?;
        if persistent || source.read_only {
            return Ok(());
        }
        let (key, boot) = (self.id.vdi.clone(), boot_key(&self.id.vdi));
        let wanted = VdiInfo { is_a_snapshot: false, ..source };
        let record = place.run(move |file| file.plan_copy(boot, &key, wanted)).await?;
        self.copy(record).await?;
        tracing::info!(vdi = %self.id, "what its guest writes will be forgotten");
        Ok(())
    }

    pub(super) async fn epoch_end(&self) -> Result<(), StorageError> {
        if !self.forgets().await? {
            return Ok(());
        }
        self.at(&self.id.boot()).destroy_alone().await
    }

    /// Whether the VDI is in an epoch that shall be forgotten.
    async fn forgets(&self) -> Result<bool, StorageError> {
        let boot = boot_key(&self.id.vdi);
        match self.registry.srs.get(&self.id.sr)?.run(move |file| file.volume(&boot)).await {
            Ok(_) => Ok(true),
            Err(StorageError::VdiDoesNotExist(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whose use a datapath is to be: the copy's while there is one. A use from before stays where
    /// it is.
    pub(super) async fn attached_to(&self, dp: &str) -> Result<VdiId, StorageError> {
        let held = self.registry.state.datapaths(self.id).await.map_err(internal)?;
        let here = held.iter().any(|held| held.dp == dp);
        let there = !here && self.forgets().await?;
        Ok(if there { self.id.boot() } else { self.id.clone() })
    }
}

impl Registry {
    /// Whose use a datapath of `vdi` is: its own or the copy's.
    pub(super) async fn used(&self, vdi: &VdiId, dp: &str) -> Result<VdiId, StorageError> {
        let boot = vdi.boot();
        let held = self.state.datapaths(&boot).await.map_err(internal)?;
        let there = held.iter().any(|held| held.dp == dp);
        Ok(if there { boot } else { vdi.clone() })
    }

    /// The uses of `vdi` and of its copy.
    pub(super) async fn uses(&self, vdi: &VdiId) -> Result<Vec<Datapath>, StorageError> {
        let mut held = self.state.datapaths(vdi).await.map_err(internal)?;
        held.extend(self.state.datapaths(&vdi.boot()).await.map_err(internal)?);
        Ok(held)
    }
}
