//! `cargo xtask asan`: the tests, and every program that they start, under the address sanitizer.
//!
//! It sees what our own code reads and writes of the heap, the stack and statics. It does not see
//! what the kernel writes on our behalf (io_uring, into memory that was freed too early), nor what
//! happens inside a mapping of a guest's pages or from one to the next, nor SQLite's C code and the
//! standard library's own, which are built without it, nor data races.

use anyhow::Result;

use crate::fuzz::{SANITIZER, TARGET};
use crate::{process, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What `cargo nextest run` is given, for example `-p zerotap-datapath`; all tests without it.
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Builds all programs, then builds and runs the tests.
pub(crate) fn run(options: &Options) -> Result<bool> {
    process::run(&mut sanitized(&["build", "--workspace", "--bins", "--exclude", "xtask"]))?;
    let mut tests = sanitized(&["nextest", "run", "--no-fail-fast"]);
    if options.nextest.is_empty() {
        tests.args(["--workspace", "--exclude", "xtask"]);
    }
    process::run(tests.args(&options.nextest)).map(|()| true)
}

/// Cargo with the sanitizer, in a build directory of its own.
fn sanitized(arguments: &[&str]) -> std::process::Command {
    let mut cargo = workspace::cargo(arguments);
    cargo
        .args(["--target", TARGET])
        .env("CARGO_TARGET_DIR", workspace::target_dir().join("asan"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", SANITIZER)
        // A report ends the program as a panic would: a scenario notices. Leaks are not looked for:
        // a worker's sandbox lets nobody stop its threads, which that takes, and a siege counts.
        .env("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=0");
    cargo
}
