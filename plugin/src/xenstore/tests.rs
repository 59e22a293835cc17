//! [`Live`] against the genuine xenstored, and against one that misbehaves.
//!
//! xenstore-rs finds its socket by `XENSTORED_PATH` alone, and a process cannot change its own
//! environment safely: each test runs itself again in a child that has the variable.

use super::live::Live;
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerotap_tests::genuine_xenstored::GenuineXenstored;

/// Runs `test` again in a child with `XENSTORED_PATH` set, or, in that child, answers its value.
pub fn in_child(test: &str) -> Option<PathBuf> {
    if std::env::var_os("ZEROTAP_TEST_CHILD").is_some() {
        return Some(std::env::var_os("XENSTORED_PATH").unwrap().into());
    }
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("ZEROTAP_TEST_CHILD", "1")
        .env("XENSTORED_PATH", directory.path().join("socket"))
        .status();
    assert!(status.unwrap().success(), "{test} failed in its child");
    None
}

/// Runs a genuine xenstored behind `path`.
pub fn genuine(path: &PathBuf) -> GenuineXenstored {
    let xenstored = GenuineXenstored::start().unwrap();
    lead_to(&xenstored, path);
    xenstored
}

/// Makes `path` lead to a xenstored's socket.
pub fn lead_to(xenstored: &GenuineXenstored, path: &PathBuf) {
    let _ = std::fs::remove_file(path);
    std::os::unix::fs::symlink(xenstored.socket(), path).unwrap();
}

/// Runs a test's future, within what a test may take.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let within = async { tokio::time::timeout(Duration::from_secs(50), future).await.unwrap() };
    tokio::runtime::Runtime::new().unwrap().block_on(within)
}

fn counting() -> (Arc<AtomicUsize>, Sink) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let sink: Sink = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    (count, sink)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}");
}

fn missing(path: &str) -> StoreError {
    StoreError::Missing(path.to_owned())
}

#[test]
fn every_verb_works_on_the_genuine_xenstored() {
    let name = "xenstore::tests::every_verb_works_on_the_genuine_xenstored";
    let Some(path) = in_child(name) else { return };
    let xenstored = genuine(&path);
    let guest = xenstored.introduce(7).unwrap();
    block_on(async {
        let store = Live::start();
        store.connected().await;
        assert_eq!(store.read("/local/domain/0/domid").await.unwrap(), "0");
        assert_eq!(store.read("/a/b").await.unwrap_err(), missing("/a/b"));
        store.write("/a/b", "1").await.unwrap();
        assert_eq!(store.read("/a/b").await.unwrap(), "1");
        assert_eq!(store.list("/a").await.unwrap(), ["b"]);
        assert_eq!(store.list("/nothing").await.unwrap(), [""; 0]);
        store.remove("/a").await.unwrap();
        store.remove("/a").await.unwrap();
        assert!(store.introduced(7).await.unwrap() && !store.introduced(8).await.unwrap());

        let mut batch = Batch::default();
        let permissions = Permissions { owner: 0, reader: 7 };
        batch.mkdir("/x", permissions).write("/x/y", 5).remove("/not/there");
        store.transact(&batch).await.unwrap();
        assert_eq!(xenstored.permissions("/x/y").unwrap(), "n0 r7");
        assert_eq!(guest.read("/x/y").unwrap(), "5");
        assert_eq!(guest.write("/x/y", "6").unwrap_err().to_string(), "EACCES");
    });
}

#[test]
fn a_guard_that_does_not_hold_leaves_all_as_it_was() {
    let name = "xenstore::tests::a_guard_that_does_not_hold_leaves_all_as_it_was";
    let Some(path) = in_child(name) else { return };
    let xenstored = genuine(&path);
    block_on(async {
        let store = Live::start();
        store.connected().await;
        xenstored.write("/d/state", "5").unwrap();
        for guard in [
            Guard::Equals("/d/state".into(), "4".into()),
            Guard::Absent("/d/state".into()),
            Guard::Exists("/d/other".into()),
        ] {
            let (Guard::Exists(at) | Guard::Absent(at) | Guard::Equals(at, _)) = guard.clone();
            let mut batch = Batch::default();
            batch.insist(guard).write("/d/state", 6);
            let refused = store.transact(&batch).await.unwrap_err();
            assert_eq!(refused, StoreError::Changed(at));
        }
        let mut batch = Batch::default();
        batch.insist(Guard::Equals("/d/state".into(), "5".into())).write("/d/state", 6);
        store.transact(&batch).await.unwrap();
        assert_eq!(store.read("/d/state").await.unwrap(), "6");
    });
}

#[test]
fn transactions_that_collide_are_tried_again() {
    let name = "xenstore::tests::transactions_that_collide_are_tried_again";
    let Some(path) = in_child(name) else { return };
    let _xenstored = genuine(&path);
    block_on(async {
        let stores = [Live::start(), Live::start()];
        for store in &stores {
            store.connected().await;
        }
        let bump = async |store: &Live| {
            for _ in 0..100 {
                loop {
                    let now = store.read("/n").await.unwrap_or_else(|_| "0".to_owned());
                    let next = now.parse::<u32>().unwrap() + 1;
                    let mut batch = Batch::default();
                    if next > 1 {
                        batch.insist(Guard::Equals("/n".into(), now));
                    } else {
                        batch.insist(Guard::Absent("/n".into()));
                    }
                    match store.transact(batch.write("/n", next)).await {
                        Ok(()) => break,
                        Err(StoreError::Changed(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        };
        tokio::join!(bump(&stores[0]), bump(&stores[1]));
        assert_eq!(stores[0].read("/n").await.unwrap(), "200");
    });
}

#[test]
fn a_snapshot_is_of_one_moment() {
    let name = "xenstore::tests::a_snapshot_is_of_one_moment";
    let Some(path) = in_child(name) else { return };
    let _xenstored = genuine(&path);
    block_on(async {
        let stores = [Live::start(), Live::start()];
        for store in &stores {
            store.connected().await;
        }
        let write = async {
            for n in 0..300 {
                // Never equal but between two writes of a transaction, which nobody may see.
                let mut batch = Batch::default();
                stores[0].transact(batch.write("/a", n).write("/b", n + 1)).await.unwrap();
            }
        };
        let paths = ["/a", "/b", "/none"].map(str::to_owned);
        let read = async {
            for _ in 0..300 {
                let values = match stores[1].snapshot(&paths).await {
                    Ok(values) => values,
                    Err(StoreError::Refused { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                let number = |at: usize| values[at].as_deref().map_or(0, |v| v.parse().unwrap());
                let (a, b): (u32, u32) = (number(0), number(1));
                assert!(b == a + 1 || (a, b) == (0, 0), "{values:?}");
                assert_eq!(values[2], None);
            }
        };
        tokio::join!(write, read);
    });
}

#[test]
fn a_directory_longer_than_a_message_is_listed_whole() {
    let name = "xenstore::tests::a_directory_longer_than_a_message_is_listed_whole";
    let Some(path) = in_child(name) else { return };
    let _xenstored = genuine(&path);
    block_on(async {
        let store = Live::start();
        store.connected().await;
        for n in 0..900 {
            store.write(&format!("/many/name-{n}"), "").await.unwrap();
        }
        let mut names = store.list("/many").await.unwrap();
        names.sort_by_key(|name| name[5..].parse::<u32>().unwrap());
        assert_eq!(names.len(), 900);
        assert_eq!((&*names[0], &*names[899]), ("name-0", "name-899"));
    });
}

#[test]
fn a_flood_of_watch_events_stops_nothing() {
    let name = "xenstore::tests::a_flood_of_watch_events_stops_nothing";
    let Some(path) = in_child(name) else { return };
    let xenstored = genuine(&path);
    let guest = xenstored.introduce(2).unwrap();
    block_on(async {
        let store = Live::start();
        store.connected().await;
        let mut batch = Batch::default();
        batch.mkdir("/local/domain/2/device", Permissions { owner: 2, reader: 0 });
        store.transact(&batch).await.unwrap();
        let (count, sink) = counting();
        let watch = store.watch("/local/domain/2/device", sink);
        until("no first event", || count.load(Ordering::Relaxed) == 1).await;
        let flood = tokio::task::spawn_blocking(move || {
            for n in 0..500 {
                guest.write("device/state", &n.to_string()).unwrap();
            }
        });
        for _ in 0..500 {
            store.write("/local/domain/2/device/ours", "x").await.unwrap();
        }
        flood.await.unwrap();
        // xenstored itself leaves out what repeats an event that waits, so fewer than 1000 come.
        let before = count.load(Ordering::Relaxed);
        store.write("/local/domain/2/device/last", "x").await.unwrap();
        until("the last event is missing", || count.load(Ordering::Relaxed) > before).await;
        drop(watch);
        until("the watch lives on", || {
            let before = count.load(Ordering::Relaxed);
            xenstored.write("/local/domain/2/device/more", "x").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            count.load(Ordering::Relaxed) == before
        })
        .await;
    });
}

#[test]
fn it_comes_back_when_xenstored_does() {
    let name = "xenstore::tests::it_comes_back_when_xenstored_does";
    let Some(path) = in_child(name) else { return };
    let mut xenstored = genuine(&path);
    block_on(async {
        let store = Live::start();
        store.connected().await;
        let (count, sink) = counting();
        let _watch = store.watch("/w", sink);
        until("no first event", || count.load(Ordering::Relaxed) == 1).await;
        xenstored.kill().unwrap();
        until("its death went unnoticed", || !store.alive()).await;
        let asked = std::time::Instant::now();
        let error = store.read("/w").await.unwrap_err();
        assert!(matches!(error, StoreError::Away(_)), "{error}");
        assert!(asked.elapsed() < Duration::from_millis(500));
        let xenstored = genuine(&path);
        store.connected().await;
        until("the watch was not set again", || count.load(Ordering::Relaxed) >= 2).await;
        let before = count.load(Ordering::Relaxed);
        xenstored.write("/w", "1").unwrap();
        until("the watch is dead", || count.load(Ordering::Relaxed) > before).await;
        assert_eq!(store.read("/w").await.unwrap(), "1");
    });
}

#[test]
fn a_xenstored_that_falls_silent_is_given_up() {
    let name = "xenstore::tests::a_xenstored_that_falls_silent_is_given_up";
    let Some(path) = in_child(name) else { return };
    let xenstored = genuine(&path);
    block_on(async {
        let store = Live::start();
        store.connected().await;
        xenstored.freeze(true).unwrap();
        let error = store.read("/a").await.unwrap_err();
        assert!(matches!(error, StoreError::Away(_)), "{error}");
        until("it still counts as alive", || !store.alive()).await;
        xenstored.freeze(false).unwrap();
        store.connected().await;
        assert_eq!(store.read("/local/domain/0/domid").await.unwrap(), "0");
    });
}

/// Answers the first request of each connection, then does `act` with the connection.
fn fake(path: &PathBuf, act: impl Fn(std::os::unix::net::UnixStream) + Send + Clone + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, act) = (stream.unwrap(), act.clone());
            std::thread::spawn(move || {
                let mut header = [0; 16];
                if stream.read_exact(&mut header).is_err() {
                    return;
                }
                let length = u32::from_ne_bytes(header[12..].try_into().unwrap());
                let _ = stream.read_exact(&mut vec![0; length as usize]);
                header[12..].copy_from_slice(&1u32.to_ne_bytes());
                let _ = stream.write_all(&header).and_then(|()| stream.write_all(b"0"));
                act(stream);
            });
        }
    });
}

#[test]
fn a_connection_closed_in_the_middle_of_a_call_fails_the_call() {
    let name = "xenstore::tests::a_connection_closed_in_the_middle_of_a_call_fails_the_call";
    let Some(path) = in_child(name) else { return };
    fake(&path, |mut stream| {
        // It takes a request and goes: this is where xenstore-rs alone waits for ever.
        let _ = stream.read(&mut [0; 1]);
    });
    block_on(async {
        let store = Live::start();
        store.connected().await;
        let asked = std::time::Instant::now();
        let error = store.read("/a").await.unwrap_err();
        assert!(matches!(error, StoreError::Away(_)), "{error}");
        assert!(asked.elapsed() <= CALL_DEADLINE + Duration::from_millis(500));
        until("it still counts as alive", || !store.alive()).await;
    });
}

#[test]
fn garbage_from_the_socket_does_no_harm() {
    let name = "xenstore::tests::garbage_from_the_socket_does_no_harm";
    let Some(path) = in_child(name) else { return };
    fake(&path, |mut stream| {
        for n in 0..1000u32 {
            let event = [[15, n, 0, 4].map(u32::to_ne_bytes).concat(), b"a\0b\0".to_vec()].concat();
            if stream.write_all(&event).is_err() {
                return;
            }
        }
        let _ = stream.write_all(&[0xff; 4096]);
    });
    block_on(async {
        let store = Live::start();
        for _ in 0..3 {
            store.connected().await;
            let error = store.transact(&Batch::default()).await.unwrap_err();
            assert!(matches!(error, StoreError::Away(_)), "{error}");
        }
    });
}
