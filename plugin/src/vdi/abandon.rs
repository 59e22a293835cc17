//! Uses that nobody ends: their domain has gone (`vbd/gone.rs` finds that out), or they leaked and
//! are in the way of their SR. Run by the VDI's actor, as all that becomes of a use.

use crate::sr::attached::internal;
use crate::state::Use;
use crate::vdi::VdiId;
use crate::vdi::actor::{Command, Vdi};
use crate::vdi::registry::Registry;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use zerotap_rpc_schema::StorageError;

impl Registry {
    /// Every use that is not leaked.
    ///
    /// # Errors
    /// The database failed.
    pub async fn uses_by_domain(&self) -> Result<Vec<Use>, StorageError> {
        self.state.uses_by_domain().await.map_err(internal)
    }

    /// Remembers that the domains of these are alive.
    ///
    /// # Errors
    /// The database failed.
    pub async fn see(&self, uses: Vec<Use>) -> Result<(), StorageError> {
        self.state.see(uses).await.map_err(internal)
    }

    /// Ends a use whose domain has gone.
    ///
    /// # Errors
    /// As DP.destroy2: it is leaked then, and tried again in the background.
    pub async fn abandon(self: &Arc<Self>, it: Use) -> Result<(), StorageError> {
        let Use { vdi, dp, domain, .. } = it;
        self.ask(&vdi, |reply| Command::Abandon { dp, domain, reply }).await
    }

    /// Tries once more to end what is leaked of an SR. What stays is in the way, and told of then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tidy_leaked(self: &Arc<Self>, sr: &str) -> Result<(), StorageError> {
        let all = self.all_datapaths().await?.into_iter();
        let leaked = all.filter(|(vdi, held)| vdi.sr == sr && held.leaked);
        let leaked: BTreeSet<VdiId> = leaked.map(|(vdi, _)| vdi).collect();
        join_all(leaked.iter().map(|vdi| self.tidy(vdi))).await;
        Ok(())
    }
}

impl Vdi<'_> {
    pub(super) async fn abandon(&self, dp: &str, domain: &str) -> Result<(), StorageError> {
        let held = self.registry.state.datapaths(self.id).await.map_err(internal)?;
        // It may have ended meanwhile, and begun again for another domain.
        if !held.iter().any(|held| held.dp == dp && held.domain == domain) {
            return Ok(());
        }
        tracing::warn!(vdi = %self.id, dp, domain, "its domain has gone, nobody has ended it");
        self.destroy_datapath(dp, false).await
    }
}
