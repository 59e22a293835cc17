//! Where the programs under test are: beside the test's own target directory.

use anyhow::{Context as _, bail};
use std::path::PathBuf;

/// By which I/O engine workers shall serve in tests: what `ZEROTAP_TEST_ENGINE` names, or what they
/// choose themselves.
#[must_use]
pub fn engine() -> String {
    std::env::var("ZEROTAP_TEST_ENGINE").unwrap_or_else(|_| "auto".into())
}

/// The path of a program of this workspace, built in the same profile as the test itself.
///
/// # Errors
/// When it is not built; the text names the command that builds it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where is this test?")?;
    // target/<profile>/deps/<test>, or target/<profile>/<program>.
    let near = own.ancestors().skip(1).take(2);
    for dir in near {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let release = own.components().any(|part| part.as_os_str() == "release");
    let flag = if release { " --release" } else { "" };
    bail!("{name} is not built: run `cargo build{flag} --workspace --bins` first")
}
