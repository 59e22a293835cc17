//! `zerotap smapi`: the SMAPIv3 executables that XAPI runs, put in place and taken away.
//!
//! Talks to no daemon: it works on a directory, also on the root of a package that is being built.

use super::context::Context;
use super::failure::Failure;
use crate::config::{DEFAULT_FILE, no_scripts_in};
use crate::script::install::{self, DEFAULT_ROOT};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What to do with the executables.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Put them where xapi-storage-script finds them; replaces those of another version
    #[command(after_help = AFTER_INSTALL)]
    Install(Installation),
    /// Take them away again
    Remove(Place),
}

/// Where, and what may keep them from it.
#[derive(Debug, clap::Args)]
pub(crate) struct Installation {
    #[command(flatten)]
    place: Place,
    /// The daemon's configuration: the type must not be served by the message switch
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
}

/// Where.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The directory that holds volume/ and datapath/
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    root: PathBuf,
}

const AFTER_INSTALL: &str = "\
Then let XAPI see the new SR type and make an SR:
  xe-toolstack-restart
  xe sr-create type=zerotap name-label=disks device-config:path=/srv/disks";

/// Does it.
pub(crate) fn run(verb: &Verb, context: &Context) -> Result<(), Failure> {
    let failed = |error: anyhow::Error| Failure::plain(format!("{error:#}"));
    match verb {
        Verb::Install(Installation { place: Place { root }, config }) => {
            check_queue(root, config)?;
            let program = std::env::current_exe().map_err(|error| failed(error.into()))?;
            let methods = install::install(root, &program).map_err(failed)?;
            if context.json {
                println!("{}", json!({ "root": root, "methods": methods }));
            } else {
                println!("{} methods installed in {}", methods.len(), root.display());
            }
        }
        Verb::Remove(Place { root }) => {
            install::remove(root).map_err(failed)?;
            if context.json {
                println!("null");
            } else {
                println!("removed from {}", root.display());
            }
        }
    }
    Ok(())
}

/// With both the next start of the daemon would be refused.
fn check_queue(root: &Path, config: &Path) -> Result<(), Failure> {
    let queue = no_scripts_in(config).map_err(|error| Failure::plain(format!("{error:#}")))?;
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    if queue.is_none_or(|scripts| real(&scripts) != real(root)) {
        return Ok(());
    }
    Err(Failure::plain(format!(
        "the message switch serves the type ([message_switch] in {}): the executables would take \
         calls from the same queue. Set enabled = false and restart the daemon first",
        config.display()
    )))
}
