//! `cargo xtask dist`: static programs, a .deb and an .rpm; each package is unpacked into an empty
//! directory and a disk is served by what came out of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::packages::{self, CPIO, RPM};
use crate::sim_host::SimHost;
use crate::{process, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HOMEPAGE: &str = env!("CARGO_PKG_REPOSITORY");
const LIBEXEC: &str = "usr/libexec/zerotap";

pub(crate) fn run(_: &Options) -> Result<bool> {
    make_and_try().map(|()| true)
}

/// Makes the packages and tries them.
pub(crate) fn make_and_try() -> Result<()> {
    packages::ensure(&[RPM, CPIO])?;
    process::run(&mut workspace::build_static())?;
    for program in ["zerotap", "zerotap-datapath"] {
        has_no_fault_points(&workspace::static_dir().join(program))?;
    }
    let work = workspace::target_dir().join("dist");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let tree = work.join("tree");
    lay_out(&tree)?;
    let deb = build_deb(&work, &tree)?;
    let rpm = build_rpm(&work, &tree)?;
    for (package, unpack) in
        [(&deb, unpack_deb as fn(&Path, &Path) -> Result<()>), (&rpm, unpack_rpm)]
    {
        let root = work.join("root");
        fs::create_dir_all(&root)?;
        unpack(package, &root)?;
        serves_a_disk(&root).with_context(|| format!("what {} holds", package.display()))?;
        fs::remove_dir_all(&root)?;
        println!("{}: unpacked, started, served a disk", package.display());
    }
    Ok(())
}

/// What a program with fault points asks its environment for.
const FAULT_DIR: &str = "ZEROTAP_FAULT_DIR";
/// And a worker that plays an older one.
const WORKER_PROTOCOL: &str = "ZEROTAP_WORKER_PROTOCOL";

/// They are for debug builds: on a host a daemon dies at nobody's order, and no worker pretends.
fn has_no_fault_points(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    for name in [FAULT_DIR, WORKER_PROTOCOL] {
        let found = bytes.windows(name.len()).any(|window| window == name.as_bytes());
        ensure!(!found, "{} obeys {name}: it is a debug build's", program.display());
    }
    Ok(())
}

/// The files as they stand on a host.
fn lay_out(tree: &Path) -> Result<()> {
    let packaging = workspace::root().join("packaging");
    let docs = "usr/share/doc/zerotap";
    let root = workspace::root();
    let built = workspace::static_dir();
    let files = [
        (built.join("zerotap"), format!("{LIBEXEC}/zerotap"), 0o755),
        (built.join("zerotap-datapath"), format!("{LIBEXEC}/zerotap-datapath"), 0o755),
        (packaging.join("zerotap.toml"), "etc/zerotap.toml".into(), 0o644),
        (packaging.join("zerotap.service"), "usr/lib/systemd/system/zerotap.service".into(), 0o644),
        (root.join("README.md"), format!("{docs}/README.md"), 0o644),
        (root.join("CHANGELOG.md"), format!("{docs}/CHANGELOG.md"), 0o644),
        (root.join("LICENSE.md"), format!("{docs}/LICENSE.md"), 0o644),
        (root.join("LICENSE-GPL-3.0"), format!("{docs}/LICENSE-GPL-3.0"), 0o644),
        (root.join("docs/operations.md"), format!("{docs}/operations.md"), 0o644),
    ];
    for (from, to, mode) in files {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
    }
    fs::create_dir_all(tree.join("usr/bin"))?;
    // The worker is found beside the program that the link leads to.
    symlink("../libexec/zerotap/zerotap", tree.join("usr/bin/zerotap"))?;
    Ok(())
}

/// A template with this version's words.
fn filled_in(template: &str) -> Result<String> {
    let path = workspace::root().join("packaging").join(template);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.replace("@VERSION@", VERSION).replace("@HOMEPAGE@", HOMEPAGE))
}

fn build_deb(work: &Path, tree: &Path) -> Result<PathBuf> {
    let root = work.join("deb");
    process::run(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::write(control.join("control"), filled_in("debian/control")?)?;
    fs::write(control.join("conffiles"), "/etc/zerotap.toml\n")?;
    let packaging = workspace::root().join("packaging");
    for (script, name) in [("after-install.sh", "postinst"), ("before-remove.sh", "prerm")] {
        fs::copy(packaging.join(script), control.join(name))?;
        fs::set_permissions(control.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let package = work.join(format!("zerotap_{VERSION}_amd64.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(&root).arg(&package);
    process::output(&mut build)?;
    Ok(package)
}

fn build_rpm(work: &Path, tree: &Path) -> Result<PathBuf> {
    let spec = work.join("zerotap.spec");
    fs::write(&spec, filled_in("rpm/zerotap.spec")?)?;
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--target", "x86_64"]);
    let packaging = workspace::root().join("packaging");
    for (name, value) in
        [("_topdir", work.join("rpm")), ("tree", tree.into()), ("scripts", packaging)]
    {
        build.arg("--define").arg(format!("{name} {}", value.display()));
    }
    process::output(build.arg(&spec))?;
    let package = work.join(format!("zerotap-{VERSION}-1.x86_64.rpm"));
    let made = work.join(format!("rpm/RPMS/x86_64/zerotap-{VERSION}-1.x86_64.rpm"));
    fs::rename(&made, &package).with_context(|| format!("rpmbuild made no {}", made.display()))?;
    Ok(package)
}

fn unpack_deb(package: &Path, root: &Path) -> Result<()> {
    process::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(root))
}

fn unpack_rpm(package: &Path, root: &Path) -> Result<()> {
    let unpack = "rpm2cpio \"$0\" | cpio --quiet -id -D \"$1\"";
    process::run(Command::new("sh").args(["-ec", unpack]).arg(package).arg(root))
}

/// Starts the daemon that was unpacked, beside a simulated host, and takes a disk into use: that
/// needs its worker, its configuration's defaults and its migrations. Then the executables.
fn serves_a_disk(root: &Path) -> Result<()> {
    let config = root.join("etc/zerotap.toml");
    let host = SimHost::start_from("dev", &root.join("usr/bin"), Some(&config))?;
    let sr = "5ca1ab1e-0000-4000-8000-000000000d15";
    let device_config = json!({ "path": host.storage() });
    let params = json!({ "sr": sr, "name_label": "dist", "name_description": "",
                         "device_config": device_config });
    host.call("SR.create", &params)?;
    let info = json!({ "name_label": "dist", "virtual_size": 1 << 20 });
    let made = host.call("VDI.create", &json!({ "sr": sr, "vdi_info": info }))?;
    let mut place = json!({ "dp": "dist", "sr": sr, "vdi": made["vdi"], "vm": "0" });
    place["read_write"] = json!(true);
    host.call("VDI.attach3", &place)?;
    place.as_object_mut().context("an object")?.remove("read_write");
    host.call("VDI.activate3", &place)?;
    let workers = host.call("Worker.list", &json!({}))?;
    let worker = workers[0]["pid"].as_u64().context("a worker serves the disk")?;
    let program = fs::read_link(format!("/proc/{worker}/exe"))?;
    ensure!(program == root.join(LIBEXEC).join("zerotap-datapath"), "the worker is {program:?}");
    host.call("VDI.deactivate", &place)?;
    host.call("VDI.detach", &place)?;
    let scripts = root.join("scripts");
    fs::create_dir(&scripts)?;
    let mut install = host.zerotap(&["smapi", "install", "--root"]);
    process::output(install.arg(&scripts))?;
    let query = scripts.join("volume/org.xen.xapi.storage.zerotap/Plugin.Query");
    ensure!(query.exists(), "smapi install left no {}", query.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_fault_points_is_not_packed() {
        let source = include_str!("../../plugin/src/fault.rs");
        assert!(source.contains(&format!("var_os(\"{FAULT_DIR}\")")), "it is known by its name");
        let elder = include_str!("../../datapath/src/elder.rs");
        assert!(elder.contains(&format!("var(\"{WORKER_PROTOCOL}\")")), "so is this");
        let dir = std::env::temp_dir().join(format!("zerotap-dist-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let program = dir.join("program");
        for (bytes, packed) in [
            ("\0ZEROTAP_FAULT_DIR\0", false),
            ("\0ZEROTAP_WORKER_PROTOCOL\0", false),
            ("\0ZEROTAP_SOCKET\0", true),
        ] {
            fs::write(&program, bytes).unwrap();
            assert_eq!(has_no_fault_points(&program).is_ok(), packed);
        }
        assert!(has_no_fault_points(&dir.join("none")).is_err(), "unread is not unarmed");
        fs::remove_dir_all(&dir).unwrap();
    }
}
