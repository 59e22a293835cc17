//! `cargo xtask bench`: what we do beside a peer, in one run.
use anyhow::{Result, bail};
use std::path::Path;
pub(crate) fn run(json: Option<&Path>) -> Result<bool> {
    let _ = json;
    bail!("")
}
