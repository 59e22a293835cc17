//! Documents that go stale in silence: what a machine can compare with the tree, it compares.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE.md",
    "docs/architecture.md",
    "docs/dependencies.md",
    "docs/observability.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/reliability.md",
];
const MEMBERS: [&str; 5] = ["rpc-schema", "plugin", "datapath", "tests", "xtask"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace member").to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names that stand in a manifest's tables of dependencies, our own crates left out.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut in_dependencies = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies]");
        } else if in_dependencies && line.starts_with(|first: char| first.is_ascii_lowercase()) {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if !name.starts_with("zerotap-") {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_dependency_has_its_reason_and_no_other() {
    let text = read("docs/dependencies.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let reasons: BTreeSet<String> = rows
        .filter(|names| *names != "crate")
        .flat_map(|names| names.split(", "))
        .map(str::to_owned)
        .collect();
    let manifests = MEMBERS.map(|member| dependencies(&read(&format!("{member}/Cargo.toml"))));
    let used: BTreeSet<String> = manifests.into_iter().flatten().collect();
    assert!(used.len() > 10, "{used:?}");
    assert_eq!(reasons, used, "docs/dependencies.md on the left, the manifests on the right");
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn links_lead_to_files() {
    let mut dead = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let dir = root().join(document).parent().expect("a directory").to_owned();
        for target in links(&text).filter(|target| !target.starts_with("http")) {
            let file = target.split('#').next().unwrap_or_default();
            if !dir.join(file).exists() {
                dead.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:?}");
}

/// Words in backquotes that are paths of ours: with a slash and an ending, or a directory's slash.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let ours =
            ["plugin/", "datapath/", "rpc-schema/", "tests/", "xtask/", "migrations/", "docs/"];
        plain && ours.iter().any(|dir| word.starts_with(dir))
    })
}

#[test]
fn files_that_are_named_exist() {
    let mut gone = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        gone.extend(
            paths(&text)
                .filter(|path| !root().join(path).exists())
                .map(|path| format!("{document}: {path}")),
        );
    }
    assert!(gone.is_empty(), "{gone:?}");
}

/// The values of every key of this name, however deep.
fn values_of(json: &serde_json::Value, wanted: &str) -> Vec<String> {
    match json {
        serde_json::Value::Object(pairs) => {
            let own = pairs.get(wanted).and_then(|it| it.as_str()).map(str::to_owned);
            let below = pairs.values().flat_map(|value| values_of(value, wanted));
            own.into_iter().chain(below).collect()
        }
        serde_json::Value::Array(items) => {
            items.iter().flat_map(|value| values_of(value, wanted)).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard = read("packaging/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let text = read("docs/observability.md");
    let queries = ["expr", "query"].map(|key| values_of(&dashboard, key)).concat();
    let words = queries.iter().flat_map(|it| it.split(|c: char| !c.is_alphanumeric() && c != '_'));
    let names: BTreeSet<&str> = words.filter(|word| word.starts_with("zerotap_")).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let family = ["_total", "_bucket"].iter().find_map(|end| name.strip_suffix(end));
        let family = family.unwrap_or(name);
        assert!(text.contains(&format!("| `{family}` |")), "{name} is not documented");
    }
}

/// What the daemon warns of or calls an error: the words of each such line of the log, in pieces
/// between what differs.
fn complaints(dir: &Path, found: &mut BTreeSet<Vec<String>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            complaints(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let calls = ["tracing::warn!(", "tracing::error!("].map(|call| text.split(call).skip(1));
        for call in calls.into_iter().flatten() {
            let call = call.split(");").flat_map(|it| it.split("),\n")).next().unwrap_or_default();
            // The message is the last literal.
            let literal = call.split('"').rev().nth(1).unwrap_or_default();
            let literal: String = literal.split("\\\n").map(str::trim_start).collect();
            let pieces = literal.split('{').map(|piece| piece.split('}').next_back());
            let pieces = pieces.flatten().map(|piece| piece.trim_matches([' ', ':', '.', '(']));
            let words: Vec<_> = pieces.filter(|it| it.len() > 5).map(str::to_owned).collect();
            if !words.is_empty() {
                found.insert(words);
            }
        }
    }
}

#[test]
fn every_complaint_of_the_log_is_explained() {
    let mut found = BTreeSet::new();
    complaints(&root().join("plugin/src"), &mut found);
    assert!(found.len() > 50, "{found:?}");
    let text = read("docs/operations.md");
    let told = text.split('`').skip(1).step_by(2);
    let told: Vec<&str> = told.map(|it| it.trim_matches(':')).filter(|it| it.len() > 5).collect();
    let is_told = |it: &String| told.iter().any(|told| it.contains(told) || told.contains(&**it));
    let unexplained: Vec<_> = found.iter().filter(|words| !words.iter().any(is_told)).collect();
    assert!(unexplained.is_empty(), "docs/operations.md does not tell of {unexplained:#?}");
}
