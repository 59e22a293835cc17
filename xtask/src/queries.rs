//! The daemon's SQL against its migrations: every `query!` is compiled once more, this time against
//! a database made from `migrations/`, and what the compiler learns is compared with the committed
//! `.sqlx/`, which all other builds trust.
//!
//! The same that sqlx's own command line does, without having to build that first.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, process, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write what the compiler learns to .sqlx, instead of comparing.
    #[arg(long)]
    renew: bool,
}

/// The command.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.renew {
        renew()?;
    }
    println!("{} queries fit the migrations", check()?);
    Ok(true)
}

/// Checks queries, types and `.sqlx/`; returns the number of queries.
pub(crate) fn check() -> Result<usize> {
    let state = state()?;
    let stamp = room().join("checked");
    // Skipped when nothing has changed since it was right.
    if !fs::read_to_string(&stamp).is_ok_and(|checked| checked == state) {
        let learnt = learn(&state)?;
        if files(&committed())? != files(&learnt)? {
            bail!(
                ".sqlx is not what the queries and the migrations say: run \
                 `cargo xtask queries --renew` and commit it"
            );
        }
        fs::write(stamp, state)?;
    }
    Ok(list(&committed())?.len())
}

fn renew() -> Result<()> {
    let learnt = learn(&state()?)?;
    for stale in list(&committed())? {
        fs::remove_file(stale)?;
    }
    for (name, bytes) in files(&learnt)? {
        fs::write(committed().join(name), bytes)?;
    }
    Ok(())
}

fn room() -> PathBuf {
    workspace::target_dir().join("queries")
}

fn committed() -> PathBuf {
    workspace::root().join(".sqlx")
}

/// Everything that the answer depends on, as one word.
fn state() -> Result<String> {
    let root = workspace::root();
    Ok(format!(
        "{:016x}",
        hash(vec![root.join("migrations"), root.join("plugin/src"), committed()])?
    ))
}

/// Compiles the queries against a database of today and returns the directory of what that taught.
fn learn(state: &str) -> Result<PathBuf> {
    let learnt = room().join("learnt");
    let _ = fs::remove_dir_all(&learnt);
    fs::create_dir_all(&learnt).with_context(|| format!("cannot create {learnt:?}"))?;
    compile(&database(&room())?, &learnt, state)?;
    Ok(learnt)
}

/// A fresh database with every migration applied, in the order of their names.
fn database(room: &Path) -> Result<PathBuf> {
    packages::ensure(&[packages::SQLITE])?;
    let database = room.join("schema.db");
    let _ = fs::remove_file(&database);
    for migration in list(&workspace::root().join("migrations"))? {
        let sql = fs::File::open(&migration)?;
        let mut sqlite = Command::new("sqlite3");
        process::run(sqlite.arg("-bail").arg(&database).stdin(sql))
            .with_context(|| format!("{migration:?} does not apply"))?;
    }
    Ok(database)
}

/// Compiles the daemon with its queries bound to `database`. The cfg is for cargo, which knows of
/// none of the variables: another state is another compilation, and nobody else's is disturbed.
fn compile(database: &Path, learnt: &Path, state: &str) -> Result<()> {
    let mut command = workspace::cargo(&["rustc", "--quiet", "-p", "zerotap", "--bin", "zerotap"]);
    command
        .args(["--profile", "check", "--", "--cap-lints", "allow", "--cfg"])
        .arg(format!("queries=\"{state}\""))
        .env("DATABASE_URL", format!("sqlite://{}", database.display()))
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", learnt);
    process::run(&mut command).context("a query does not fit the migrations")
}

fn files(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let read = |file: PathBuf| Ok((file.file_name().unwrap_or_default().into(), fs::read(file)?));
    list(directory)?.into_iter().map(read).collect()
}

/// Entries of a directory, by name.
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

fn hash(mut waiting: Vec<PathBuf>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(list(&path)?);
        } else {
            path.hash(&mut hasher);
            fs::read(&path)?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}
