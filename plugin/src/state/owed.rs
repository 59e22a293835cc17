//! Which VDIs are to be given back to other hosts: intents of their own, one a VDI at most, however
//! often a crash has it remembered.
//!
//! Called by VDI actors and, at start, for what an earlier daemon left.

use crate::state::{Operation, State, now};
use crate::vdi::VdiId;
use anyhow::Result;

impl State {
    /// Remembers that a VDI is to be given back.
    ///
    /// # Errors
    /// The database failed.
    pub async fn owe(&self, vdi: &VdiId) -> Result<()> {
        let (operation, now) = (serde_json::to_string(&Operation::Disown)?, now());
        let (vdi, boot) = (vdi.clone(), self.boot_id.clone());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!(
                    "INSERT INTO intent (sr, vdi, operation, since, boot_id)
                     SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS
                     (SELECT 1 FROM intent WHERE sr = ?1 AND vdi = ?2 AND operation = ?3)",
                    vdi.sr,
                    vdi.vdi,
                    operation,
                    now,
                    boot
                )
                .execute(tx)
                .await?;
                Ok(())
            })
        });
        write.await
    }

    /// Turns an intent into one to give its VDI back.
    ///
    /// # Errors
    /// The database failed.
    pub async fn undo_by_giving_back(&self, intent: i64) -> Result<()> {
        let operation = serde_json::to_string(&Operation::Disown)?;
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!("UPDATE intent SET operation = ? WHERE id = ?", operation, intent)
                    .execute(tx)
                    .await?;
                Ok(())
            })
        });
        write.await
    }
}
