//! Where things are: the workspace, its build output, the download cache.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The triple that dom0's binaries are built for. Naming it keeps their flags away from build
/// scripts.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    // Cargo sets the variable at run time too; the compiled-in value is for a binary started by
    // hand.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().map_or_else(|| manifest_dir.clone(), Path::to_path_buf)
}

/// Cargo's build directory.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where `build_static` leaves its programs.
pub(crate) fn static_dir() -> PathBuf {
    target_dir().join(STATIC_TARGET).join("release")
}

/// Downloads that outlive a build directory: `ZEROTAP_XEN_CACHE`, else below the user's cache.
pub(crate) fn xen_cache_dir() -> PathBuf {
    if let Some(dir) = env::var_os("ZEROTAP_XEN_CACHE") {
        return dir.into();
    }
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
        PathBuf::from,
    );
    cache.join("zerotap-xen")
}

/// Cargo, in the workspace, as the one that started us; without what that one told us of ourselves,
/// or build scripts that look at it run again whenever cargo is called without us in between.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(root()).args(arguments);
    command
}

/// The release build of the daemon and the worker that dom0 runs: static, because dom0's file
/// system holds no libraries of this machine, and stripped, because it is all in memory.
pub(crate) fn build_static() -> Command {
    let mut command = cargo(&["build", "--release", "-p", "zerotap", "-p", "zerotap-datapath"]);
    command
        .args(["--target", STATIC_TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    command
}
