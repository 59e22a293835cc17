//! A client against a worker that is played: answers in any order, descriptors, silence, nonsense.

use super::*;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::os::unix::net::{UnixListener, UnixStream as Played};
use zerotap_rpc_schema::worker::{Abi, QueueParameters, RingParameters, VbdId};

const SOON: Duration = Duration::from_secs(5);

async fn played(worker: impl FnOnce(Played) + Send + 'static) -> Client {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("w.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || worker(listener.accept().expect("the client").0));
    Client::connect(&socket).await.expect("a listener")
}

fn ask(lines: &mut impl BufRead) -> Request {
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    serde_json::from_str(&line).expect("a request")
}

fn answer(mut stream: &Played, id: u64, answer: Answer) {
    let mut line = serde_json::to_vec(&Reply { id, answer }).expect("JSON");
    line.push(b'\n');
    stream.write_all(&line).expect("the client reads");
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let client = played(|stream| {
        let mut lines = BufReader::new(&stream);
        let (first, second) = (ask(&mut lines), ask(&mut lines));
        answer(&stream, 77, Answer::Done);
        answer(&stream, second.id, Answer::Error { text: "no".into() });
        answer(&stream, first.id, Answer::Done);
    })
    .await;
    let first = client.done("first", Ask::Shutdown, Vec::new(), SOON);
    let second = client.done("second", Ask::Shutdown, Vec::new(), SOON);
    let (first, second) = tokio::join!(first, second);
    first.expect("done");
    assert!(matches!(second, Err(WorkerError::Refused(text)) if text == "no"));
    // The played worker has gone.
    let gone = client.done("third", Ask::Stat, Vec::new(), SOON).await;
    assert!(matches!(gone, Err(WorkerError::Gone)), "{gone:?}");
    let gone = client.done("fourth", Ask::Stat, Vec::new(), SOON).await;
    assert!(matches!(gone, Err(WorkerError::Gone)), "{gone:?}");
}

#[tokio::test]
async fn a_descriptor_goes_with_the_first_byte_of_its_line() {
    let client = played(|stream| {
        let (mut text, mut space) = ([0; 4096], [MaybeUninit::uninit(); 64]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text[..1])];
        rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::empty())
            .expect("a byte");
        let received = control.drain().any(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.count() == 1,
            _ => false,
        });
        let mut line = String::from("{");
        BufReader::new(&stream).read_line(&mut line).expect("the rest");
        let request: Request = serde_json::from_str(&line).expect("a request");
        assert!(received && matches!(request.ask, Ask::Connect { .. }));
        answer(&stream, request.id, Answer::Done);
    })
    .await;
    let queues = vec![QueueParameters { ring_refs: vec![8; 16], port: 1 }];
    let ring = RingParameters { queues, protocol: Abi::X86_64, persistent: true };
    let vbd = VbdId { domid: 1, devid: 51712 };
    let (read_only, discard, transfer, bounds, journaled) = (false, false, None, None, None);
    let connect = Ask::Connect { vbd, read_only, discard, ring, transfer, bounds, journaled };
    let descriptor = std::fs::File::open("/dev/null").expect("it is there").into();
    client.done("connect", connect, vec![descriptor], SOON).await.expect("done");
}

#[tokio::test]
async fn silence_and_nonsense_end_in_time() {
    let silent = played(|stream| {
        ask(&mut BufReader::new(&stream));
        std::thread::sleep(SOON);
    })
    .await;
    let short = Duration::from_millis(20);
    let late = silent.done("stat", Ask::Stat, Vec::new(), short).await;
    assert!(matches!(late, Err(WorkerError::Deadline { what: "stat", .. })), "{late:?}");
    assert!(silent.waiting.lock().expect("unpoisoned").as_ref().expect("open").is_empty());

    let mad = played(|mut stream| {
        ask(&mut BufReader::new(&stream));
        // The client may hang up in the middle.
        let _ = stream.write_all(b"nonsense\n");
        std::thread::sleep(SOON);
    })
    .await;
    assert!(matches!(mad.done("stat", Ask::Stat, Vec::new(), SOON).await, Err(WorkerError::Gone)));

    let endless = played(|mut stream| {
        ask(&mut BufReader::new(&stream));
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    })
    .await;
    assert!(matches!(
        endless.done("stat", Ask::Stat, Vec::new(), SOON).await,
        Err(WorkerError::Gone)
    ));

    let stranger = played(|stream| {
        let request = ask(&mut BufReader::new(&stream));
        answer(&stream, request.id, Answer::Done);
    })
    .await;
    assert!(matches!(stranger.hello().await, Err(WorkerError::Confused { .. })));
}
