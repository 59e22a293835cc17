//! The directories that xapi-storage-script looks for plugins in: filled aside, moved in whole.
//!
//! It watches `volume/` and `datapath/` and acts on whatever appears there, so nothing half-made
//! may appear; those two directories themselves are never removed. Each method of the table is a
//! symlink to one copy of this program; a method that is not implemented has no file. Called by
//! the command line.

use super::trampoline;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use zerotap_rpc_schema::smapi3::table::SCRIPTS;

/// Where XCP-ng's xapi-storage-script looks.
pub const DEFAULT_ROOT: &str = "/usr/libexec/xapi-storage-script";
/// The volume plugin: its name is the queue's, and its end XenAPI's `SR.type`.
const VOLUME: &str = "volume/org.xen.xapi.storage.zerotap";
/// The datapath plugin: its name is the URIs' scheme.
const DATAPATH: &str = "datapath/zerotap";
/// The copy of this program, in [`VOLUME`].
const PROGRAM: &str = "zerotap";
/// Where directories are filled and taken apart. In the root, which nobody watches.
const ASIDE: &str = ".zerotap-aside";

/// Makes the plugin's directories, or replaces those of another version; answers the methods.
///
/// # Errors
/// Something else is in the way; the file system's.
pub fn install(root: &Path, program: &Path) -> Result<Vec<&'static str>> {
    for dir in ["volume", "datapath"] {
        fs::create_dir_all(root.join(dir)).with_context(|| cannot("make", &root.join(dir)))?;
    }
    let _alone = lock(root)?;
    let aside = clear_aside(root)?;
    let (volume, datapath) = (aside.join("volume"), aside.join("datapath"));
    for dir in [&volume, &datapath] {
        fs::create_dir_all(dir).with_context(|| cannot("make", dir))?;
    }
    copy(program, &volume.join(PROGRAM))?;
    let through = format!("../../{VOLUME}/{PROGRAM}");
    for script in SCRIPTS {
        let make = |target: &str, dir: &Path| {
            let link = dir.join(script.file());
            symlink(target, &link).with_context(|| cannot("make", &link))
        };
        match script.interface() {
            "Plugin" => {
                make(PROGRAM, &volume)?;
                make(&through, &datapath)?;
            }
            "SR" | "Volume" => make(PROGRAM, &volume)?,
            _ => make(&through, &datapath)?,
        }
    }
    // The datapath plugin is asked at once, and leads through the volume plugin's directory.
    move_in(&volume, &root.join(VOLUME))?;
    move_in(&datapath, &root.join(DATAPATH))?;
    clear_aside(root)?;
    Ok(SCRIPTS.iter().map(|script| script.name).collect())
}

/// Takes the plugin's directories away. Succeeds when there are none.
///
/// # Errors
/// They are not ours; the file system's.
pub fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let _alone = lock(root)?;
    let aside = clear_aside(root)?;
    for (dir, name) in [(DATAPATH, "datapath"), (VOLUME, "volume")] {
        let dir = root.join(dir);
        if !dir.exists() {
            continue;
        }
        check_ours(&dir)?;
        fs::create_dir_all(&aside).with_context(|| cannot("make", &aside))?;
        fs::rename(&dir, aside.join(name)).with_context(|| cannot("move away", &dir))?;
    }
    clear_aside(root).map(drop)
}

fn cannot(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

/// One install or remove at a time.
fn lock(root: &Path) -> Result<File> {
    let dir = File::open(root).with_context(|| cannot("open", root))?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).with_context(|| cannot("lock", root))?;
    Ok(dir)
}

fn clear_aside(root: &Path) -> Result<PathBuf> {
    let aside = root.join(ASIDE);
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| cannot("remove", &aside))?;
    }
    Ok(aside)
}

/// Copies the program and gives it the tail that Python can run.
fn copy(program: &Path, to: &Path) -> Result<()> {
    fs::copy(program, to).with_context(|| cannot("copy", program))?;
    let bytes = trampoline::archive();
    let mut file = OpenOptions::new().append(true).open(to).with_context(|| cannot("open", to))?;
    file.write_all(&bytes)
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o755)))
        .and_then(|()| file.sync_all())
        .with_context(|| cannot("write", to))
}

fn move_in(new: &Path, to: &Path) -> Result<()> {
    if !to.exists() {
        return fs::rename(new, to).with_context(|| cannot("make", to));
    }
    check_ours(to)?;
    // At no moment is there none: a call that comes now finds the old one or the new one.
    rustix::fs::renameat_with(CWD, new, CWD, to, RenameFlags::EXCHANGE)
        .with_context(|| cannot("replace", to))
}

fn check_ours(dir: &Path) -> Result<()> {
    let link = dir.join("Plugin.Query");
    let target = fs::read_link(&link).unwrap_or_default();
    ensure!(dir.is_dir(), "{} is in the way: move it elsewhere", dir.display());
    if target.file_name().is_none_or(|name| name != PROGRAM) {
        bail!(
            "{} was not made by `zerotap smapi install`: move it elsewhere, then try again",
            dir.display()
        );
    }
    Ok(())
}
