//! The simulated xenstored answers as the genuine one does: the same script, run on both, gives the
//! same transcript.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use zerotap_tests::genuine_xenstored::{GenuineGuest, GenuineXenstored};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::simhost::SimHost;
use zerotap_tests::xenstore::Client;
use zerotap_tests::xenstored::socket_path;
use zerotap_tests::xenstored::wire::{kind, terminated};

const DOMID: u16 = 3;

/// A guest that reads and writes with its own rights.
trait Guest {
    fn read(&mut self, path: &str) -> anyhow::Result<String>;
    fn write(&mut self, path: &str, value: &str) -> anyhow::Result<()>;
}

impl Guest for GenuineGuest {
    fn read(&mut self, path: &str) -> anyhow::Result<String> {
        GenuineGuest::read(self, path)
    }
    fn write(&mut self, path: &str, value: &str) -> anyhow::Result<()> {
        GenuineGuest::write(self, path, value)
    }
}

impl Guest for Client {
    fn read(&mut self, path: &str) -> anyhow::Result<String> {
        Client::read(self, path)
    }
    fn write(&mut self, path: &str, value: &str) -> anyhow::Result<()> {
        Client::write(self, path, value)
    }
}

/// What was asked and what came.
struct Transcript(String);

impl Transcript {
    fn note(&mut self, what: &str, result: anyhow::Result<impl std::fmt::Debug>) {
        let came = match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("error {}", error.root_cause()),
        };
        writeln!(self.0, "{what}: {came}").expect("a string takes it");
    }
}

fn events(client: &mut Client, transcript: &mut Transcript, after: &str) {
    // Events come in order: once this one is there, so are those before it.
    let sentinel = format!("sentinel-{after}");
    client.watch("/sentinel", &sentinel).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let event = client.event(deadline).unwrap().expect("the sentinel's event");
        if event.token == sentinel {
            return;
        }
        if !event.token.starts_with("sentinel") {
            transcript.note(after, Ok((event.path, event.token)));
        }
    }
}

fn nodes(dom0: &mut Client, log: &mut Transcript) {
    for (path, value) in [("/a/b/c", "1"), ("/a/b/c", ""), ("/a/d", "x\ty z"), ("relative", "r")] {
        log.note(&format!("write {path}"), dom0.write(path, value));
    }
    for path in
        ["/a", "/a/b", "/a/b/c", "/a/d", "/a/nothing", "/nothing/at/all", "relative", "domid"]
    {
        log.note(&format!("read {path}"), dom0.read(path));
        log.note(&format!("list {path}"), dom0.list(path));
    }
    for path in ["/", "//a", "/a/", "/a//b", "/a b", "", "/a.b", "@nothing"] {
        log.note(&format!("read the odd path {path:?}"), dom0.read(path));
        log.note(&format!("write the odd path {path:?}"), dom0.write(path, "odd"));
    }
    log.note("mkdir anew", dom0.mkdir("/a/new/er"));
    log.note("mkdir again", dom0.mkdir("/a/new/er"));
    log.note("mkdir keeps", dom0.mkdir("/a/d").and_then(|()| dom0.read("/a/d")));
    log.note("remove what is not there", dom0.remove("/a/gone"));
    log.note("remove where nothing is", dom0.remove("/gone/too"));
    log.note("remove the root", dom0.remove("/"));
    log.note("remove a tree", dom0.remove("/a/b").and_then(|()| dom0.read("/a/b/c")));
    log.note("no NUL", dom0.request(kind::READ, b"/a".to_vec()));
    log.note("two NULs", dom0.request(kind::READ, b"/a\0\0".to_vec()));
    log.note("unknown request", dom0.request(99, Vec::new()));
    log.note("path of 5", dom0.request(kind::GET_DOMAIN_PATH, terminated(&["5"])));
    for domid in ["0", "3", "4"] {
        let known = dom0.request(kind::IS_DOMAIN_INTRODUCED, terminated(&[domid]));
        log.note(&format!("is {domid} introduced"), known);
    }
}

fn large_directory(dom0: &mut Client, log: &mut Transcript) {
    for n in 0..500 {
        dom0.write(&format!("/large/child-{n:04}"), n).unwrap();
    }
    log.note("list what is too long", dom0.list("/large"));
    let mut offset = 0;
    let mut names = Vec::new();
    loop {
        let part = terminated(&["/large", &offset.to_string()]);
        let answer = dom0.request(kind::DIRECTORY_PART, part).unwrap();
        let generation = answer.iter().position(|&byte| byte == 0).unwrap() + 1;
        let last = answer.ends_with(b"\0\0") || answer.len() == generation + 1;
        let end = if last { answer.len() - 1 } else { answer.len() };
        names.extend(zerotap_tests::xenstored::wire::strings(&answer[generation..end]));
        offset += end - generation;
        if last {
            break;
        }
    }
    names.sort();
    log.note("in parts", Ok((names.len(), names.first().cloned(), names.last().cloned())));
    dom0.remove("/large").unwrap();
}

fn permissions(dom0: &mut Client, guest: &mut dyn Guest, log: &mut Transcript) {
    let perms = |dom0: &mut Client, path: &str| {
        let answer = dom0.request(kind::GET_PERMS, terminated(&[path]))?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&answer).replace('\0', " "))
    };
    let home = format!("/local/domain/{DOMID}");
    log.note("guest reads its home", guest.read(&home));
    log.note("guest writes its home", guest.write(&home, "mine"));
    log.note("guest makes a node at home", guest.write("made", "x"));
    log.note("guest reads what is not there", guest.read("absent"));
    dom0.write("/private/node", "p").unwrap();
    log.note("guest reads what is private", guest.read("/private/node"));
    log.note("guest reads what is not there in private", guest.read("/private/absent"));
    log.note("guest writes what is private", guest.write("/private/node", "x"));

    dom0.mkdir(&format!("{home}/own")).unwrap();
    let own = [format!("n{DOMID}"), "r0".to_owned()];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    log.note("give", dom0.set_perms(&format!("{home}/own"), &own));
    log.note("guest writes its own", guest.write("own", "mine"));
    log.note("guest makes below its own", guest.write("own/deep/er", "mine"));
    log.note("dom0 reads it", dom0.read(&format!("{home}/own/deep/er")));
    log.note("inherited", perms(dom0, &format!("{home}/own/deep/er")));
    dom0.write(&format!("{home}/own/dom0s"), "d").unwrap();
    log.note("dom0's below", perms(dom0, &format!("{home}/own/dom0s")));
    log.note("guest writes dom0's below its own", guest.write("own/dom0s", "g"));
    log.note("guest writes too much", guest.write("own/big", &"b".repeat(3000)));
    log.note("a write permission", dom0.set_perms("/private/node", &["n0", "w3"]));
    log.note("guest may write and not read", guest.write("/private/node", "g"));
    log.note("guest may not read", guest.read("/private/node"));
    log.note("odd permissions", dom0.set_perms("/private/node", &["x0"]));
    log.note("permissions of nothing", dom0.set_perms("/private/nothing", &["n0"]));
}

fn watches(dom0: &mut Client, log: &mut Transcript) {
    log.note("watch", dom0.watch("/w", "token"));
    events(dom0, log, "a new watch");
    log.note("watch again", dom0.watch("/w", "token"));
    log.note("watch with another token", dom0.watch("/w/x", "deep"));
    events(dom0, log, "a second watch");
    dom0.write("/w", "1").unwrap();
    events(dom0, log, "write at it");
    dom0.write("/w/x/y/z", "1").unwrap();
    events(dom0, log, "write below, making parents");
    dom0.mkdir("/w/x/m").unwrap();
    dom0.mkdir("/w/x/m").unwrap();
    events(dom0, log, "mkdir twice");
    dom0.set_perms("/w/x", &["n0", "r3"]).unwrap();
    events(dom0, log, "permissions");
    dom0.write("/wx", "1").unwrap();
    events(dom0, log, "a neighbour");
    dom0.remove("/w/absent").unwrap();
    events(dom0, log, "remove what is not there");
    dom0.remove("/w").unwrap();
    events(dom0, log, "remove all");
    let unwatch = terminated(&["/w", "token"]);
    log.note("unwatch", dom0.request(kind::UNWATCH, unwatch.clone()));
    log.note("unwatch again", dom0.request(kind::UNWATCH, unwatch));
    dom0.write("/w", "2").unwrap();
    events(dom0, log, "after unwatch");
    log.note("watch an odd path", dom0.watch("/w/", "odd"));
    log.note("watch @nothing", dom0.watch("@nothing", "odd"));
    log.note("watch a release", dom0.watch("@releaseDomain", "release"));
    events(dom0, log, "a watch of domains");
}

fn transactions(dom0: &mut Client, other: &mut Client, log: &mut Transcript) {
    dom0.write("/t/a", "0").unwrap();
    dom0.watch("/t", "tx").unwrap();
    events(dom0, log, "watch");
    let done = dom0.transaction(|tx| {
        tx.write("/t/a", "1")?;
        tx.write("/t/new/node", "1")?;
        assert_eq!(tx.read("/t/a")?, "1");
        Ok(())
    });
    log.note("commit", done);
    events(dom0, log, "after a commit");
    let given_up = dom0.transaction(|tx| {
        tx.write("/t/a", "2")?;
        anyhow::bail!("no")
    });
    log.note("give up", given_up);
    log.note("then it is", dom0.read("/t/a"));
    events(dom0, log, "after giving up");
    let tries = std::cell::Cell::new(0);
    let other = std::cell::RefCell::new(other);
    let done = dom0.transaction(|tx| {
        let before = tx.read("/t/a")?;
        if tries.replace(tries.get() + 1) == 0 {
            other.borrow_mut().write("/t/a", "3")?;
        }
        tx.write("/t/b", before)
    });
    log.note("commit against a change", done);
    log.note("tries", Ok(tries.get()));
    log.note("read after", dom0.read("/t/b"));
    let tries = std::cell::Cell::new(0);
    let done = dom0.transaction(|tx| {
        if tries.replace(tries.get() + 1) == 0 {
            other.borrow_mut().write("/elsewhere", "x")?;
        }
        tx.write("/t/c", "1")
    });
    log.note("commit beside a change", done);
    log.note("tries", Ok(tries.get()));
    events(dom0, log, "before removing");
    let done = dom0.transaction(|tx| {
        tx.remove("/t/new")?;
        tx.write("/t/new/again", "1")?;
        tx.remove("/t/new/again")?;
        tx.mkdir("/t/last")
    });
    log.note("remove and make", done);
    log.note("what is left", dom0.list("/t/new"));
    events(dom0, log, "after removing");
    log.note("end what is not there", dom0.request(kind::TRANSACTION_END, terminated(&["T"])));
}

/// The same on any xenstored, its two connections of dom0 and a guest.
fn script(dom0: &mut Client, other: &mut Client, guest: &mut dyn Guest) -> String {
    let mut log = Transcript(String::new());
    nodes(dom0, &mut log);
    large_directory(dom0, &mut log);
    permissions(dom0, guest, &mut log);
    watches(dom0, &mut log);
    transactions(dom0, other, &mut log);
    log.0
}

/// What dom0 sees of a domain's death.
fn after_death(dom0: &mut Client) -> String {
    let mut log = Transcript(String::new());
    let deadline = Instant::now() + Duration::from_secs(10);
    while dom0.event(deadline).unwrap().expect("@releaseDomain").token != "release" {}
    let known = dom0.request(kind::IS_DOMAIN_INTRODUCED, terminated(&[&DOMID.to_string()]));
    log.note("introduced", known);
    let home = format!("/local/domain/{DOMID}");
    log.note("what it owned", dom0.read(&format!("{home}/own/deep/er")));
    log.note("what it had", dom0.read(&format!("{home}/own/dom0s")));
    log.note("its home", dom0.list(&home).map(|_| "is there"));
    log.0
}

fn on_the_simulated_one(dir: &Path) -> (String, String) {
    let host = SimHost::start(dir).unwrap();
    let domain = Domain::create(dir, DOMID, 1 << 20, false).unwrap();
    let (mut dom0, mut other) = (host.toolstack().unwrap(), host.toolstack().unwrap());
    let mut guest = domain.xenstore().unwrap();
    let first = script(&mut dom0, &mut other, &mut guest);
    Client::connect(&socket_path(dir, 0)).unwrap().release(DOMID).unwrap();
    let second = after_death(&mut dom0);
    assert!(guest.read("domid").is_err(), "a dead domain's connection is closed");
    (first, second)
}

fn on_the_genuine_one() -> (String, String) {
    let xenstored = GenuineXenstored::start().unwrap();
    let connect = || Client::connect(&xenstored.socket()).unwrap();
    let (mut dom0, mut other) = (connect(), connect());
    let mut guest = xenstored.introduce(DOMID).unwrap();
    let first = script(&mut dom0, &mut other, &mut guest);
    xenstored.kill_domain(DOMID).unwrap();
    (first, after_death(&mut dom0))
}

#[test]
fn the_simulated_xenstored_answers_as_the_genuine_one() {
    let dir = tempfile::tempdir().unwrap();
    let simulated = on_the_simulated_one(dir.path());
    let genuine = on_the_genuine_one();
    for (simulated, genuine) in [(simulated.0, genuine.0), (simulated.1, genuine.1)] {
        let pairs = simulated.lines().zip(genuine.lines());
        let different: Vec<_> = pairs.filter(|(s, g)| s != g).collect();
        assert!(different.is_empty(), "(simulated, genuine): {different:#?}");
        assert_eq!(simulated, genuine);
    }
}

#[test]
fn a_guest_cannot_take_more_than_its_share() {
    use zerotap_tests::xenstored::{NODES_PER_DOMAIN_MAX, WATCHES_PER_DOMAIN_MAX};
    let dir = tempfile::tempdir().unwrap();
    let host = SimHost::start(dir.path()).unwrap();
    let domain = Domain::create(dir.path(), DOMID, 1 << 20, false).unwrap();
    let mut dom0 = host.toolstack().unwrap();
    let own = format!("/local/domain/{DOMID}/own");
    dom0.mkdir(&own).unwrap();
    dom0.set_perms(&own, &[&format!("n{DOMID}"), "r0"]).unwrap();
    let mut guest = domain.xenstore().unwrap();
    let mut made = 1;
    while guest.write(&format!("own/{made}"), "x").is_ok() {
        made += 1;
    }
    assert_eq!(made, NODES_PER_DOMAIN_MAX);
    let mut watched = 0;
    while guest.watch(&format!("own/{watched}"), "t").is_ok() {
        watched += 1;
    }
    assert_eq!(watched, WATCHES_PER_DOMAIN_MAX);
    destroy(dir.path(), DOMID).unwrap();
    assert!(dom0.read(&own).is_err(), "a dead guest's nodes are gone");
}

#[test]
fn it_goes_away_and_comes_back_with_its_tree() {
    let dir = tempfile::tempdir().unwrap();
    let host = SimHost::start(dir.path()).unwrap();
    let mut before = host.toolstack().unwrap();
    before.write("/kept", "yes").unwrap();
    host.xenstored().pause();
    assert!(before.read("/kept").is_err(), "the connection is gone");
    assert!(host.toolstack().is_err(), "nobody listens");
    host.xenstored().resume().unwrap();
    assert_eq!(host.toolstack().unwrap().read("/kept").unwrap(), "yes");
}
