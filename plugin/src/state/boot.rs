//! Which host and which boot of it this is, and what another boot left.
//!
//! Called once, at the daemon's start.

use crate::sr::owner::Identity;
use crate::state::{Operation, State, now};
use anyhow::Result;

/// How many rows of an earlier boot were thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voided {
    /// Attached SRs (none when they are kept).
    pub srs: u64,
    /// Uses of VDIs.
    pub datapaths: u64,
    /// Workers.
    pub workers: u64,
    /// Unsettled intents.
    pub intents: u64,
}

impl State {
    /// Who we are on SRs that other hosts see too. `uuid` is what the host says of itself: it is
    /// remembered. Without it the host is who it was; a
    /// uuid is made up for one that never was anybody.
    ///
    /// # Errors
    /// The database failed.
    pub async fn identity(&self, uuid: Option<&str>) -> Result<Identity> {
        let (told, fresh) = (uuid.map(str::to_string), uuid::Uuid::new_v4().to_string());
        let boot_id = self.boot_id.clone();
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                let known = sqlx::query_scalar!("SELECT uuid FROM host");
                let known = known.fetch_optional(&mut *tx).await?;
                let host = told.or_else(|| known.clone()).unwrap_or(fresh);
                match known {
                    Some(known) if known == host => return Ok(Identity { host, boot_id }),
                    Some(known) => tracing::warn!(
                        "this host was {known} and is {host} now: what it had active as {known} \
                         is another host's, see `zerotap vdi unlock --help`"
                    ),
                    None => tracing::info!(host, "this host's uuid"),
                }
                sqlx::query!(
                    "INSERT INTO host (only, uuid) VALUES (1, ?)
                     ON CONFLICT (only) DO UPDATE SET uuid = excluded.uuid",
                    host
                )
                .execute(tx)
                .await?;
                Ok(Identity { host, boot_id })
            })
        });
        write.await
    }

    /// Throws away what another boot of the host left: its processes are gone. With `keep_srs`
    /// SRs stay attached (a host without XAPI has nobody who attaches them anew), what was begun on
    /// them is finished or undone by this daemon, and what was active on them is owed to the other
    /// hosts that see them; SR.attach does both otherwise.
    ///
    /// # Errors
    /// The database failed; nothing is thrown away then.
    pub async fn void_other_boots(&self, keep_srs: bool) -> Result<Voided> {
        let (boot, now) = (self.boot_id.clone(), now());
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                if keep_srs {
                    sqlx::query!(
                        r#"INSERT INTO intent (sr, vdi, operation, since, boot_id)
                           SELECT sr, vdi, '{"op":"disown"}', ?2, ?1 FROM (
                               SELECT sr, vdi FROM datapath
                               WHERE boot_id <> ?1 AND state = 'activated'
                               UNION SELECT sr, vdi FROM worker WHERE boot_id <> ?1
                               UNION SELECT sr, vdi FROM intent WHERE boot_id <> ?1 AND vdi <> ''
                           )"#,
                        boot,
                        now
                    )
                    .execute(&mut *tx)
                    .await?;
                    // What stands half done on an SR outlives a boot. A destruction that nobody was
                    // told of goes no further: another host may have used the VDI since.
                    sqlx::query!(
                        r#"UPDATE intent SET boot_id = ?1, operation =
                             replace(operation, 'destroy_vdi', 'create_vdi')
                           WHERE boot_id <> ?1 AND operation ->> 'op' IN
                             ('create_vdi', 'destroy_vdi', 'resize_vdi', 'revert_vdi')"#,
                        boot
                    )
                    .execute(&mut *tx)
                    .await?;
                } else {
                    sqlx::query!(
                        r#"INSERT OR IGNORE INTO unfinished (sr, vdi, operation)
                           SELECT sr, vdi, replace(operation, 'destroy_vdi', 'create_vdi')
                           FROM intent WHERE boot_id <> ?1 AND operation ->> 'op' IN
                             ('create_vdi', 'destroy_vdi', 'resize_vdi', 'revert_vdi')"#,
                        boot
                    )
                    .execute(&mut *tx)
                    .await?;
                }
                let intents = sqlx::query!("DELETE FROM intent WHERE boot_id <> ?", boot);
                let intents = intents.execute(&mut *tx).await?.rows_affected();
                let workers = sqlx::query!("DELETE FROM worker WHERE boot_id <> ?", boot);
                let workers = workers.execute(&mut *tx).await?.rows_affected();
                let datapaths = sqlx::query!("DELETE FROM datapath WHERE boot_id <> ?", boot);
                let datapaths = datapaths.execute(&mut *tx).await?.rows_affected();
                let srs = if keep_srs {
                    sqlx::query!("UPDATE sr SET boot_id = ?", boot).execute(&mut *tx).await?;
                    0
                } else {
                    let srs = sqlx::query!("DELETE FROM sr WHERE boot_id <> ?", boot);
                    srs.execute(&mut *tx).await?.rows_affected()
                };
                Ok(Voided { srs, datapaths, workers, intents })
            })
        });
        write.await
    }

    /// The host's boot that it was opened in.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What calls of earlier boots left half done on an SR that was not kept: keys and operations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn unfinished(&self, sr: &str) -> Result<Vec<(String, Operation)>> {
        let rows = sqlx::query!("SELECT vdi, operation FROM unfinished WHERE sr = ?", sr);
        let rows = rows.fetch_all(&self.readers).await?.into_iter();
        rows.map(|row| Ok((row.vdi, serde_json::from_str(&row.operation)?))).collect()
    }

    /// All of that is done.
    ///
    /// # Errors
    /// The database failed.
    pub async fn finished(&self, sr: &str) -> Result<()> {
        let sr = sr.to_owned();
        let write = self.writer.write(false, move |tx| {
            Box::pin(async move {
                sqlx::query!("DELETE FROM unfinished WHERE sr = ?", sr).execute(tx).await?;
                Ok(())
            })
        });
        write.await
    }
}
