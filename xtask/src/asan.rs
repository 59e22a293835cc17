//! `cargo xtask asan`: the tests, and every program that they start, under the address sanitizer.
//!
//! It sees what our own code reads and writes of the heap, the stack and statics. It does not see
//! what the kernel writes on our behalf (io_uring, into memory that was freed too early), nor what
//! happens inside a mapping of a guest's pages or from one to the next, nor SQLite's C code and the
//! standard library's own, which are built without it, nor data races.

use anyhow::Result;

use crate::fuzz::{SANITIZER, TARGET};
use crate::{process, workspace};

/// A report ends the program as a panic would: a scenario notices. Leaks are not looked for: a
/// worker's sandbox lets nobody stop its threads, which that takes, and a siege counts.
const SETTINGS: &str = "abort_on_error=1:detect_leaks=0";
/// A quarantine of 4 MiB, not 256, and no second stacks.
const LEAN: &str = ":quarantine_size_mb=4:thread_local_quarantine_size_kb=64\
     :detect_stack_use_after_return=0:malloc_context_size=0";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave the sanitizer little memory of its own, for scenarios that count a program's. It sees
    /// less then: neither pointers to a stack that was left nor late uses of what was freed.
    #[arg(long)]
    lean: bool,
    /// What `cargo nextest run` is given, for example `-p zerotap-datapath`; all tests without it.
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Builds all programs, then builds and runs the tests.
pub(crate) fn run(options: &Options) -> Result<bool> {
    process::run(&mut sanitized(&["build", "--workspace", "--bins", "--exclude", "xtask"]))?;
    let mut tests = sanitized(&["nextest", "run", "--no-fail-fast"]);
    tests.env("ASAN_OPTIONS", format!("{SETTINGS}{}", if options.lean { LEAN } else { "" }));
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
        .env("RUSTFLAGS", SANITIZER);
    cargo
}
