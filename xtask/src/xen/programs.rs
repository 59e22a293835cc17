//! Dynamic programs of this machine and of Xen's packages, copied with the libraries that they
//! need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Tree;
use super::debian::Debian;
use crate::process;

/// Where libraries go in a tree; both inits name it to the loader.
pub(crate) const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Copies programs into trees.
pub(crate) struct Programs<'a> {
    pub(crate) debian: &'a Debian,
    /// For what is made on the way; it lives as long as the boot.
    pub(crate) work: &'a Path,
}

impl Programs<'_> {
    /// Puts `file` into `bin`, the loader, and the libraries that the loader would find for it
    /// here.
    pub(crate) fn put(&self, tree: &mut Tree, file: &Path) -> Result<()> {
        let name = file.file_name().with_context(|| format!("{file:?} names no program"))?;
        let about = fs::metadata(file).with_context(|| format!("no program {file:?}"))?;
        let mode = about.permissions().mode() & 0o777;
        tree.copy(&format!("bin/{}", name.to_string_lossy()), file, mode);
        tree.copy(LOADER.trim_start_matches('/'), Path::new(LOADER), 0o755);
        let mut ldd = Command::new("ldd");
        let listing =
            process::output(ldd.arg(file).env("LD_LIBRARY_PATH", self.debian.libraries()))?;
        for line in listing.lines() {
            // "\tname => path (address)"; the loader and the vdso have no arrow.
            let Some((library, found)) = line.trim().split_once(" => ") else { continue };
            let path = found.split_whitespace().next().unwrap_or_default();
            if !path.starts_with('/') {
                bail!(
                    "{file:?} needs {library}, which neither this machine nor Xen's packages have"
                );
            }
            let path = self.stand_in(library)?.unwrap_or_else(|| path.into());
            tree.copy(&format!("{LIBRARY_DIR}/{library}"), &path, 0o755);
        }
        Ok(())
    }

    /// A third of all that fio drags in is the Unicode tables behind an XML parser that it never
    /// calls; in two trees they cost every boot ten seconds. An empty library of the same name will
    /// do.
    fn stand_in(&self, library: &str) -> Result<Option<PathBuf>> {
        let Some(version) = library.strip_prefix("libicudata.so.") else { return Ok(None) };
        let file = self.work.join(library);
        if !file.exists() {
            let source = self.work.join("icudata.c");
            fs::write(&source, format!("const char icudt{version}_dat[1];\n"))?;
            let mut compile = Command::new("cc");
            compile.args(["-shared", "-o"]).arg(&file).arg(format!("-Wl,-soname,{library}"));
            process::run(compile.arg(&source))?;
        }
        Ok(Some(file))
    }
}
