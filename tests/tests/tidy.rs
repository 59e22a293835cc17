//! The house rules that a machine can see.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const LINE_CHARS_MAX: usize = 100;
/// The crates that may hold no copyleft code, and so not depend on those that do.
const PERMISSIVE: &str = "MIT OR Apache-2.0";
const COPYLEFT: &str = "GPL-3.0-only";

/// Where `unsafe` may stand: what touches guests' memory, the kernel's devices and its I/O ring.
const UNSAFE_ROOMS: [&str; 8] = [
    "datapath/src/xen/",
    "datapath/src/ring/shared.rs",
    "datapath/src/engine/",
    // A device lends its buffers to the kernel until the completion.
    "datapath/src/device/",
    // So does an NBD client's connection.
    "datapath/src/nbd/lend.rs",
    // The cycle counter.
    "datapath/src/clock.rs",
    // The descriptors that the daemon left open.
    "datapath/src/inherit.rs",
    // Namespaces of its own, while there is one thread.
    "datapath/src/sandbox",
];

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace member").to_owned()
}

/// All files of the workspace whose names end so.
fn sources(endings: &[&str]) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory of ours") {
            let entry = entry.expect("a directory of ours");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if entry.file_type().expect("a file of ours").is_dir() {
                if !name.starts_with('.') && name != "target" {
                    dirs.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(&path).expect("source is text");
                let path = path.strip_prefix(&root).expect("below the root");
                found.push(Source { path: path.display().to_string(), text });
            }
        }
    }
    assert!(found.len() > 20, "only {} files end in {endings:?}", found.len());
    found
}

/// Fails with all that is wrong at once.
fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn files_and_lines_are_short() {
    let mut wrong = Vec::new();
    for Source { path, text } in sources(&[".rs"]) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{path} has {lines} lines; a file is one noun: split it"));
        }
        for (n, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                wrong.push(format!("{path}:{} is longer than {LINE_CHARS_MAX}", n + 1));
            }
        }
    }
    assert_none("too long", &wrong);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = |source: &Source| (!source.text.starts_with("//!")).then(|| source.path.clone());
    let wrong: Vec<_> = sources(&[".rs"]).iter().filter_map(silent).collect();
    assert_none("a file's first lines say what it is", &wrong);
}

/// A line's code: what stands before a comment, without the text of simple string literals.
fn code(line: &str) -> String {
    let mut parts = line.split('"');
    let mut code = String::new();
    while let Some(outside) = parts.next() {
        code.push_str(outside);
        if outside.contains("//") {
            break;
        }
        parts.next();
    }
    code.split("//").next().unwrap_or_default().to_owned()
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    // Spelt so that this file does not find itself.
    let word = concat!("un", "safe");
    let mut wrong = Vec::new();
    for Source { path, text } in sources(&[".rs"]) {
        if UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let found =
                code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word);
            if found {
                wrong.push(format!("{path}:{}", n + 1));
            }
        }
    }
    assert_none("unsafe outside its rooms", &wrong);
}

#[test]
fn every_room_for_unsafe_code_is_needed() {
    let word = concat!("un", "safe {");
    let sources = sources(&[".rs"]);
    let used = |room: &str| {
        sources.iter().any(|source| source.path.starts_with(room) && source.text.contains(word))
    };
    let unused = UNSAFE_ROOMS.iter().filter(|room| !used(room));
    let wrong: Vec<_> = unused.map(|room| (*room).to_owned()).collect();
    assert_none("rooms without unsafe code", &wrong);
}

/// The clock on the wall steps: it is written down for people, and nothing is decided by it.
#[test]
fn nothing_depends_on_the_time_of_day() {
    let readers = ["plugin/src/state.rs", "plugin/src/events.rs", "plugin/src/cli/"];
    let words = [
        "SystemTime",
        "Timestamp::now",
        "Zoned::now",
        "ClockId::Realtime",
        "CURRENT_TIMESTAMP",
        "unixepoch",
        "julianday",
        "strftime",
    ];
    let mut wrong = Vec::new();
    for Source { path, text } in sources(&[".rs", ".sql"]) {
        let ours = ["plugin/", "datapath/", "rpc-schema/", "migrations/"];
        if !ours.iter().any(|dir| path.starts_with(dir))
            || readers.iter().any(|reader| path.starts_with(reader))
        {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    assert_none("the time of day", &wrong);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut wrong = Vec::new();
    for Source { path, text } in sources(&[".rs", ".sh", ".sql", ".toml", ".md", ".c"]) {
        for (n, line) in text.lines().enumerate() {
            let mut tokens = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if tokens.any(|token| words.contains(&token)) {
                wrong.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    assert_none("leftovers", &wrong);
}

/// The value of `key = "value"` in a manifest.
fn value<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    let line = manifest.lines().find(|line| line.split('=').next().map(str::trim) == Some(key))?;
    line.split('"').nth(1)
}

fn manifest(member: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(root().join(member).join("Cargo.toml")).context(member.to_owned())
}

/// The workspace's own crates that a manifest depends on; what only its tests need does not count.
fn own_dependencies(manifest: &str) -> Vec<&str> {
    let name = |line: &str| line.split(['=', '.', ' ']).next().map(str::to_owned);
    let ours = ["zerotap-rpc-schema", "zerotap-datapath", "zerotap-tests", "zerotap"];
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies") && !line.contains("dev-dependencies");
        } else if in_dependencies {
            let named = name(line.trim());
            found.extend(ours.iter().find(|&&our| named.as_deref() == Some(our)));
        }
    }
    found
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let allowed: [(&str, &[&str]); 3] = [
        ("rpc-schema", &[]),
        ("datapath", &["zerotap-rpc-schema"]),
        ("plugin", &["zerotap-rpc-schema"]),
    ];
    for (member, allowed) in allowed {
        let manifest = manifest(member).unwrap();
        let found = own_dependencies(&manifest);
        assert!(found.iter().all(|it| allowed.contains(it)), "{member} depends on {found:?}");
    }
    let tests = manifest("tests").unwrap();
    assert!(own_dependencies(&tests).contains(&"zerotap-datapath"), "the check finds nothing");
}

#[test]
fn each_crate_has_the_licence_that_its_dependencies_allow() {
    for (member, licence) in
        [("rpc-schema", PERMISSIVE), ("datapath", PERMISSIVE), ("plugin", COPYLEFT)]
    {
        let manifest = manifest(member).unwrap();
        assert_eq!(value(&manifest, "license"), Some(licence), "{member}");
    }
    for file in ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL"] {
        let found = std::fs::read_dir(root())
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(file));
        assert!(found, "{file} is missing beside the workspace's manifest");
    }
}

#[test]
fn the_plugin_forbids_what_the_datapath_needs() {
    let main = std::fs::read_to_string(root().join("plugin/src/main.rs")).unwrap();
    assert!(main.contains(concat!("forbid(un", "safe_code)")), "plugin/src/main.rs");
    let datapath = manifest("datapath").unwrap();
    assert!(!datapath.contains("tokio"), "the worker has one thread and no runtime");
}
