//! Disks that forget: from VDI.epoch_begin with `persistent=false` to VDI.epoch_end a VDI's uses
//! are those of a copy of it, which then goes with all that was written to it.
//!
//! The copy is a volume of the same SR whose key tells what it is ([`boot_key`]); that its record
//! is there is the whole state, so a crash leaves an epoch or none, and other hosts see it too (a
//! guest that migrates goes on with its copy). Scans do not list it. Extents are shared where the
//! file system can. Called through the registry's own calls; the VDIs' actors do the work.

use crate::sr::attached::internal;
use crate::sr::record::{Record, boot_key};
use crate::state::Datapath;
use crate::vdi::VdiId;
use crate::vdi::actor::Command;
use crate::vdi::registry::Registry;
use std::sync::Arc;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiInfo;

impl VdiId {
    /// The copy that a guest uses instead, in an epoch that shall be forgotten.
    fn boot(&self) -> VdiId {
        VdiId::new(self.sr.clone(), boot_key(&self.vdi))
    }
}

impl Registry {
    /// VDI.epoch_begin: a guest starts. What a guest wrote that died without an end is forgotten.
    ///
    /// # Errors
    /// No such VDI; an earlier epoch's copy is in use; no space.
    pub async fn epoch_begin(
        self: &Arc<Self>,
        vdi: &VdiId,
        persistent: bool,
    ) -> Result<(), StorageError> {
        let (place, key) = (self.srs.get(&vdi.sr)?, vdi.vdi.clone());
        let source = place.run(move |file| file.volume_info(&key)).await?;
        self.epoch_end(vdi).await?;
        if persistent || source.read_only {
            return Ok(());
        }
        let (key, boot) = (vdi.vdi.clone(), boot_key(&vdi.vdi));
        let wanted = VdiInfo { is_a_snapshot: false, ..source };
        let record = place.run(move |file| file.plan_copy_as(boot, &key, wanted)).await?;
        self.ask(vdi, |reply| Command::Copy { record: Box::new(record), reply }).await?;
        tracing::info!(%vdi, "what its guest writes will be forgotten");
        Ok(())
    }

    /// VDI.epoch_end: a guest has ended. Succeeds when there is nothing to forget.
    ///
    /// # Errors
    /// The copy is in use; no such SR.
    pub async fn epoch_end(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        if !self.forgets(vdi).await? {
            return Ok(());
        }
        self.ask(&vdi.boot(), |reply| Command::Destroy { reply }).await
    }

    /// Whether the VDI is in an epoch that shall be forgotten.
    async fn forgets(&self, vdi: &VdiId) -> Result<bool, StorageError> {
        let boot = boot_key(&vdi.vdi);
        match self.srs.get(&vdi.sr)?.run(move |file| file.volume(&boot)).await {
            Ok(Record { .. }) => Ok(true),
            Err(StorageError::VdiDoesNotExist(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whose use a datapath of `vdi` is to be: of the copy while there is one. A use from before
    /// stays where it is.
    pub(super) async fn to_attach(&self, vdi: &VdiId, dp: &str) -> Result<VdiId, StorageError> {
        let held = self.state.datapaths(vdi).await.map_err(internal)?;
        let here = held.iter().any(|held| held.dp == dp);
        let there = !here && self.forgets(vdi).await?;
        Ok(if there { vdi.boot() } else { vdi.clone() })
    }

    /// Whose use a datapath of `vdi` is.
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
