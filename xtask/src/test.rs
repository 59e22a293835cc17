//! `cargo xtask test`: everything that must hold, stage by stage. A stage that cannot run has
//! failed.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::stage::{Count, Stages};
use crate::xen::scenario::{TRIALS, Trial};
use crate::xen::{Backend, Outcome};
use crate::{dist, fuzz, packages, process, queries, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave fuzzing, packages and real Xen out, which take most of the time.
    #[arg(long)]
    quick: bool,
}

/// Runs every stage, the later ones too when an earlier one failed: one run tells all there is to
/// fix.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut stages = Stages::default();
    stages.run("packages", || set_up().map(|()| Count::ONE));
    stages.run("format", || cargo_passes(&["fmt", "--all", "--check"]));
    stages.run("queries", || queries::check().map(|queries| Count { passed: queries, failed: 0 }));
    stages.run("clippy", || {
        cargo_passes(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    stages.run("tests", tests);
    stages.run("tests on AIO", tests_on_aio);
    stages.run("doc tests", || counted(&["test", "--workspace", "--doc", "--no-fail-fast"]));
    stages.run("fuzz targets", || fuzz::check().map(|()| Count::ONE));
    if !options.quick {
        stages.run("fuzz", || fuzz::short().map(|targets| Count { passed: targets, failed: 0 }));
        stages.run("dist", || dist::make_and_try().map(|()| Count::ONE));
        for trial in TRIALS {
            stages.run(trial.name, || on_xen(trial));
        }
    }
    Ok(stages.conclude())
}

/// Programs that tests start or unpack things with; the rest of real Xen's needs are its own
/// affair.
fn set_up() -> Result<()> {
    use packages::{CC, CHROMIUM, CURL, E2FSPROGS, FIO, LIBNBD, OPENSSL};
    use packages::{PROMETHEUS_CLIENT, QEMU_UTILS, SQLITE, XFSPROGS};
    packages::ensure(&[CC, E2FSPROGS, FIO, LIBNBD, PROMETHEUS_CLIENT, QEMU_UTILS, SQLITE])?;
    packages::ensure(&[XFSPROGS, CHROMIUM, CURL, OPENSSL])?;
    packages::ensure_lists()?;
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if process::output(&mut workspace::cargo(&[tool, "--version"])).is_err() {
            process::run(Command::new("rustup").args(["component", "add", component]))
                .with_context(|| format!("cargo {tool} is missing: install {component}"))?;
        }
    }
    Ok(())
}

fn cargo_passes(arguments: &[&str]) -> Result<Count> {
    process::run(&mut workspace::cargo(arguments)).map(|()| Count::ONE)
}

/// Scenarios start the built programs, which a test build alone would not bring up to date.
fn tests() -> Result<Count> {
    process::run(&mut workspace::cargo(&["build", "--workspace", "--bins", "--exclude", "xtask"]))?;
    if process::output(&mut workspace::cargo(&["nextest", "--version"])).is_ok() {
        return counted(&["nextest", "run", "--workspace", "--no-fail-fast"]);
    }
    counted(&["test", "--workspace", "--all-targets", "--no-fail-fast"])
}

/// What does I/O once more, with workers that use the engine of kernels without io_uring.
fn tests_on_aio() -> Result<Count> {
    const TARGETS: [&str; 7] =
        ["worker", "guests", "frontends", "nbd", "nbd_clients", "hostile", "crashes"];
    let nextest = process::output(&mut workspace::cargo(&["nextest", "--version"])).is_ok();
    let runner: &[&str] = if nextest { &["nextest", "run"] } else { &["test"] };
    let mut cargo = workspace::cargo(runner);
    cargo.args(["--no-fail-fast", "-p", "zerotap-datapath", "-p", "zerotap-tests"]);
    TARGETS.iter().for_each(|target| {
        cargo.args(["--test", target]);
    });
    cargo.env("ZEROTAP_TEST_ENGINE", "aio");
    count(cargo)
}

/// Runs tests and counts them by what the runner says of itself.
fn counted(arguments: &[&str]) -> Result<Count> {
    count(workspace::cargo(arguments))
}

fn count(cargo: Command) -> Result<Count> {
    let what = format!("{cargo:?}");
    let (status, said) = process::echoed(cargo)?;
    let count = Count::of_tests(&said);
    if !status.success() && count.failed == 0 {
        bail!("{what} ended with {status}");
    }
    Ok(count)
}

/// Boots until the emulator lets the guest come to its end, three times at most.
fn on_xen(trial: &Trial) -> Result<Count> {
    const BOOTS_MAX: usize = 3;
    for boot in 1..=BOOTS_MAX {
        println!("{}: boot {boot} of at most {BOOTS_MAX}", trial.name);
        match trial.boot(Backend::Zerotap).run()?.outcome {
            Outcome::Passed => return Ok(Count::ONE),
            Outcome::Failed(why) => bail!("{why}"),
            Outcome::EmulatorFault => println!("{}: {}", trial.name, Outcome::EmulatorFault),
        }
    }
    bail!("the emulator broke the guest in each of {BOOTS_MAX} boots: nothing is known")
}
