//! Which messages of the queue are done, and what was answered.
//!
//! Bounded: the newest [`ROWS_MAX`] are kept, far more than a switch redelivers. Called by the
//! queue's server alone.

use crate::state::State;
use anyhow::Result;

/// The most messages that are remembered.
const ROWS_MAX: i64 = 4096;

/// A message that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// The switch's id of it.
    pub message: i64,
    /// Of the boot, its reply queue and payload: ids begin anew when the switch is started.
    pub digest: String,
    /// The envelope that was answered; none where it is too large to keep, which only answers of
    /// calls that change nothing are.
    pub answer: Option<String>,
}

impl State {
    /// A message that was done before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn handled(&self, message: i64, digest: &str) -> Result<Option<Handled>> {
        let row = sqlx::query!(
            "SELECT answer FROM handled WHERE message = ? AND digest = ?",
            message,
            digest
        );
        let row = row.fetch_optional(&self.readers).await?;
        Ok(row.map(|row| Handled { message, digest: digest.into(), answer: row.answer }))
    }

    /// Remembers messages as done. Nobody waits for it, so it goes with the next commit.
    ///
    /// # Errors
    /// The database failed.
    pub async fn put_handled(&self, done: Vec<Handled>) -> Result<()> {
        let write = self.writer.write(true, move |connection| {
            Box::pin(async move {
                for Handled { message, digest, answer } in done {
                    sqlx::query!(
                        "INSERT INTO handled (message, digest, answer) VALUES (?, ?, ?)
                         ON CONFLICT DO NOTHING",
                        message,
                        digest,
                        answer
                    )
                    .execute(&mut *connection)
                    .await?;
                }
                sqlx::query!(
                    "DELETE FROM handled WHERE number <= (SELECT MAX(number) FROM handled) - ?",
                    ROWS_MAX
                )
                .execute(&mut *connection)
                .await?;
                Ok(())
            })
        });
        write.await
    }
}
