//! Which uses of VDIs are for domains that were seen alive.
//!
//! Called by the registry, for who looks after domains that go (`vbd/gone.rs`).

use crate::state::State;
use crate::vdi::VdiId;
use anyhow::Result;

/// A use that is not leaked, by its domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// Its VDI.
    pub vdi: VdiId,
    /// Its name.
    pub dp: String,
    /// Its domain, as the caller told it.
    pub domain: String,
    /// That domain was alive while it lasted.
    pub seen: bool,
}

impl State {
    /// All of them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn uses_by_domain(&self) -> Result<Vec<Use>> {
        let rows = sqlx::query!("SELECT sr, vdi, dp, domain, seen FROM datapath WHERE leaked = 0");
        let rows = rows.fetch_all(&self.readers).await?;
        let read = rows.into_iter().map(|row| Use {
            vdi: VdiId::new(row.sr, row.vdi),
            dp: row.dp,
            domain: row.domain,
            seen: row.seen != 0,
        });
        Ok(read.collect())
    }

    /// Remembers that their domains are alive.
    ///
    /// # Errors
    /// The database failed.
    pub async fn see(&self, uses: Vec<Use>) -> Result<()> {
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                for Use { vdi, dp, domain, .. } in uses {
                    sqlx::query!(
                        "UPDATE datapath SET seen = 1
                         WHERE sr = ? AND vdi = ? AND dp = ? AND domain = ?",
                        vdi.sr,
                        vdi.vdi,
                        dp,
                        domain
                    )
                    .execute(&mut *tx)
                    .await?;
                }
                Ok(())
            })
        });
        write.await
    }
}
