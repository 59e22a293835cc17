//! A disk's whole life by the command line alone, as its help tells it.

use serde_json::Value;
use std::time::Duration;
use zerotap_tests::harness::Host;
use zerotap_tests::simguest::{Expect, Guest, Running};

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn zerotap(host: &Host, args: &[&str]) -> Said {
    let output = host.zerotap(args).unwrap().output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap().trim_end().to_owned(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs what must succeed; answers what it printed.
fn done(host: &Host, args: &[&str]) -> String {
    let said = zerotap(host, args);
    assert_eq!(said.code, Some(0), "zerotap {args:?}: {}{}", said.out, said.err);
    said.out
}

fn json(host: &Host, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    let out = done(host, &args);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
}

#[test]
fn a_disk_for_a_domain_and_away_again() {
    let host = Host::start().unwrap();
    let dir = host.data().join("disks");
    std::fs::create_dir(&dir).unwrap();
    let path = format!("path={}", dir.display());
    let sr = done(&host, &["sr", "create", "--name", "local", "--device-config", &path]);
    let create = ["vdi", "create", "--sr", &sr, "--name", "root", "--size", "16M"];
    let vdi = done(&host, &create);
    let of_domain = ["--domid", "5", "--device", "xvda"];
    let vdi_verb = |verb| [&["vdi", verb, &vdi], &of_domain[..]].concat();
    done(&host, &vdi_verb("attach"));
    done(&host, &vdi_verb("activate"));

    let running = Running::start(host.sim().dir(), Guest::new(5), Expect::Fresh).unwrap();
    let vbd_verb = |verb| [&["vbd", verb], &of_domain[..]].concat();
    done(&host, &[&vbd_verb("plug"), &["--vdi", &vdi][..]].concat());
    running.progresses(100, Duration::from_secs(30)).unwrap();

    let shown = done(&host, &vbd_verb("show")).to_lowercase();
    for word in ["xvda", "connected", "iops", "mib/s", "p50", "p99", "mapped", "copied"] {
        assert!(shown.contains(word), "vbd show tells of {word}: {shown}");
    }
    let listed = done(&host, &["vbd", "ls"]);
    assert!(listed.contains("xvda") && listed.contains("connected"), "{listed}");
    assert!(done(&host, &["vdi", "ls"]).contains("root"));
    assert!(done(&host, &["sr", "ls"]).contains(&sr));
    assert!(done(&host, &["worker", "ls"]).contains("serving"));
    assert!(!done(&host, &["diagnostics"]).is_empty());
    assert_eq!(json(&host, &["worker", "ls"]).as_array().map(Vec::len), Some(1));
    assert_eq!(json(&host, &["status"])["vbds"], 1);
    assert_eq!(json(&host, &["vdi", "show", &vdi])["virtual_size"], 16 << 20);

    running.stop().unwrap();
    done(&host, &vbd_verb("unplug"));
    done(&host, &vdi_verb("deactivate"));
    done(&host, &vdi_verb("detach"));
    done(&host, &["vdi", "destroy", &vdi]);
    done(&host, &["sr", "destroy", &sr]);
    assert_eq!(json(&host, &["status"])["srs"], 0);
}

#[test]
fn mistakes_are_told_of_and_have_their_exit_codes() {
    let host = Host::start().unwrap();
    for wrong in [
        &["vdi", "create", "--sr", "x", "--name", "y"][..],
        &["vdi", "create", "--sr", "x", "--name", "y", "--size", "12Q"],
        &["vbd", "plug", "--domid", "-3", "--device", "xvda", "--vdi", "z"],
        &["no", "such", "verb"],
    ] {
        let said = zerotap(&host, wrong);
        assert_eq!(said.code, Some(2), "{wrong:?}: {}", said.err);
        assert!(!said.err.is_empty() && said.out.is_empty());
    }
    for failing in [
        &["vdi", "show", "11111111-2222-3333-4444-555555555555"][..],
        &["sr", "show", "11111111-2222-3333-4444-555555555555"],
        &["vbd", "show", "--domid", "9", "--device", "xvda"],
        &["call", "SR.stat", "{}"],
    ] {
        let said = zerotap(&host, failing);
        assert_eq!(said.code, Some(1), "{failing:?}: {}", said.err);
        assert!(!said.err.is_empty() && said.out.is_empty(), "{failing:?}: {}", said.out);
    }
    let elsewhere = zerotap(&host, &["--socket", "/nonexistent/rpc.sock", "status"]);
    assert_eq!(elsewhere.code, Some(1));
    assert!(elsewhere.err.contains("/nonexistent/rpc.sock"), "{}", elsewhere.err);
}
