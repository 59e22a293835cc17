//! `cargo xtask fuzz`: runs the targets of `fuzz/`, with the stable toolchain.
//!
//! libFuzzer wants coverage in the code that it drives, and an address sanitizer finds what a wrong
//! pointer does before it does harm; a target that drives safe code alone goes without. Both are
//! LLVM passes of every toolchain; only the sanitizer's option is called unstable, so one variable
//! lets it pass. `cargo fuzz run` works as well.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{packages, process, workspace};

/// Named, so that build scripts and macros, which run on this host, are built without.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The address sanitizer, for whoever builds with `RUSTC_BOOTSTRAP=1`.
pub(crate) const SANITIZER: &str = "-Zsanitizer=address";
/// What `cargo fuzz` gives a compiler.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1";
/// Tells libFuzzer what inputs are compared with, to write that into some.
const COMPARES: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
/// Targets that drive our own safe code alone, with inputs that are a script of single bytes: the
/// sanitizer and the compared values would find nothing, and take five sixths of the time.
const SCRIPTED: &[&str] = &["xenstore"];
/// Runs of each target in a test: seconds in all.
const TEST_RUNS: u64 = 50_000;
/// A single input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
/// The longest input, bytes.
const INPUT_BYTES_MAX: u32 = 2048;
/// The longest script, bytes: some twenty-five happenings.
const SCRIPT_BYTES_MAX: u32 = 64;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this target; all without it.
    target: Option<String>,
    /// How many inputs each target gets.
    #[arg(long, default_value_t = 10_000_000)]
    runs: u64,
    /// Add inputs that reach new code to the corpus in fuzz/corpus, as few as will do.
    #[arg(long)]
    keep: bool,
}

/// Runs targets until one finds something.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let all = targets()?;
    let chosen = match &options.target {
        Some(target) if !all.contains(target) => {
            bail!("there is no target {target}; there are: {}", all.join(", "))
        }
        Some(target) => vec![target.clone()],
        None => all,
    };
    build(&chosen)?;
    for target in &chosen {
        println!("== {target}");
        fuzz(target, options.runs)?;
        if options.keep {
            keep(target)?;
        }
    }
    Ok(true)
}

/// A short run of every target, for `cargo xtask test`; answers how many there are.
pub(crate) fn short() -> Result<usize> {
    let targets = targets()?;
    build(&targets)?;
    targets.iter().try_for_each(|target| fuzz(target, TEST_RUNS))?;
    Ok(targets.len())
}

/// That the targets build, without what they run with: a plain build leaves them out, and whoever
/// changes an interface would not notice.
pub(crate) fn check() -> Result<()> {
    packages::ensure(&[packages::CXX])?;
    // Not the tests: they are those of files that it includes.
    let mut cargo = workspace::cargo(&["check", "--lib", "--bins"]);
    cargo.args(["--manifest-path", "fuzz/Cargo.toml"]).env("CARGO_TARGET_DIR", target_dir());
    process::run(&mut cargo)
}

/// The targets' names: those of their files.
fn targets() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn target_dir() -> PathBuf {
    workspace::target_dir().join("fuzz")
}

fn is_scripted(target: &str) -> bool {
    SCRIPTED.contains(&target)
}

/// Where programs are built with the sanitizer, or without.
fn build_dir(scripted: bool) -> PathBuf {
    if scripted { workspace::target_dir().join("fuzz-scripted") } else { target_dir() }
}

fn build(targets: &[String]) -> Result<()> {
    packages::ensure(&[packages::CXX])?;
    for scripted in [false, true] {
        let these: Vec<_> = targets.iter().filter(|it| is_scripted(it) == scripted).collect();
        if these.is_empty() {
            continue;
        }
        let more = if scripted { String::new() } else { format!(" {COMPARES} {SANITIZER}") };
        let mut cargo = workspace::cargo(&["build", "--release", "--target", TARGET]);
        cargo
            .args(["--manifest-path", "fuzz/Cargo.toml"])
            .args(these.iter().flat_map(|target| ["--bin", target.as_str()]))
            .env("CARGO_TARGET_DIR", build_dir(scripted))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", format!("{COVERAGE}{more}"));
        process::run(&mut cargo)?;
    }
    Ok(())
}

/// A target's program, and its two corpora: what this build directory found, what is committed.
fn prepare(target: &str) -> Result<(std::process::Command, [PathBuf; 2])> {
    let found = target_dir().join("corpus").join(target);
    let committed = workspace::root().join("fuzz/corpus").join(target);
    for dir in [&found, &committed] {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let program = build_dir(is_scripted(target)).join(TARGET).join("release").join(target);
    Ok((std::process::Command::new(program), [found, committed]))
}

fn fuzz(target: &str, runs: u64) -> Result<()> {
    let (mut program, [found, committed]) = prepare(target)?;
    let bytes_max = if is_scripted(target) { SCRIPT_BYTES_MAX } else { INPUT_BYTES_MAX };
    let artifacts = target_dir().join("artifacts").join(target);
    std::fs::create_dir_all(&artifacts).with_context(|| artifacts.display().to_string())?;
    program
        // Where it makes its files: a file system that knows direct I/O, as the build's does.
        .current_dir(target_dir())
        .args([&found, &committed])
        .arg(format!("-runs={runs}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-max_len={bytes_max}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-verbosity=0", "-print_funcs=0"]);
    process::run(&mut program).with_context(|| {
        format!("target {target}; give its program an input of {}", artifacts.display())
    })
}

/// libFuzzer's own merge: into the first corpus goes what adds coverage to it.
fn keep(target: &str) -> Result<()> {
    let (mut program, [found, committed]) = prepare(target)?;
    process::run(program.args(["-set_cover_merge=1", "-verbosity=0"]).args([committed, found]))
}
