//! `zerotap smapi`: the SMAPIv3 executables that XAPI runs, put in place and taken away.
//!
//! Talks to no daemon: it works on a directory, also on the root of a package that is being built.

use super::context::Context;
use super::failure::Failure;
use crate::script::install::{self, DEFAULT_ROOT};
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;

/// What to do with the executables.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Put them where xapi-storage-script finds them; replaces those of another version
    #[command(after_help = AFTER_INSTALL)]
    Install(Place),
    /// Take them away again
    Remove(Place),
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
        Verb::Install(Place { root }) => {
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
