//! A link to a switch that is played, and gone mad: whatever it answers costs a bound and ends.

use super::*;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream as Played};

/// A switch that behaves until it is asked for messages, or told that one is done.
async fn link(answer: impl Fn(&mut Played) + Clone + Send + 'static) -> Link {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("switch");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(3) {
            let answer = answer.clone();
            std::thread::spawn(move || play(stream, &answer));
        }
    });
    Link::open(&socket, "queue").await.expect("it behaves as yet")
}

fn play(mut stream: Played, answer: &impl Fn(&mut Played)) {
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor"));
    loop {
        let (mut head, mut bytes) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            if lines.read_line(&mut head).expect("text") == 0 {
                return;
            }
            if let Some((name, value)) = head[from..].split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                bytes = value.trim().parse().expect("a number");
            }
        }
        lines.read_exact(&mut vec![0; bytes]).expect("the body");
        if ["POST /transfer", "GET /ack"].iter().any(|mad| head.starts_with(mad)) {
            return answer(&mut stream);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("it is read");
    }
}

/// Says `head`, then `more` until it is hung up on; how many bytes were taken.
fn endless(stream: &mut Played, head: &str, more: &[u8]) -> usize {
    let mut taken = 0;
    let mut say = |bytes: &[u8]| stream.write_all(bytes).map(|()| taken += bytes.len()).is_ok();
    if say(head.as_bytes()) {
        while say(more) {}
    }
    taken
}

async fn problem(answer: impl Fn(&mut Played) + Clone + Send + 'static) -> String {
    let link = link(answer).await;
    link.transfer(None).await.map(|_| ()).expect_err("no messages")
}

#[tokio::test]
async fn nonsense_is_told_and_ends_the_link() {
    let told: [(&[u8], &str); 5] = [
        (b"\x00\xff\x17 no HTTP at all\r\n\r\n", ""),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nmad!", "500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmad!", "make no sense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"messages\":3}", "make no sense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{\"mess", ""),
    ];
    for (bytes, words) in told {
        let problem = problem(move |stream| drop(stream.write_all(bytes))).await;
        assert!(problem.contains(words), "{:?}: {problem}", String::from_utf8_lossy(bytes));
    }
}

/// The connection is ended by a task of its own, beside this one that waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_end_is_hung_up_on() {
    let (tell, taken) = std::sync::mpsc::channel();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for (head, more, most) in [
        ("HTTP/1.1 200 OK\r\n", "x-endless: header\r\n".to_owned(), 4 << 20),
        (head, body, ANSWER_BYTES_MAX + (4 << 20)),
    ] {
        let tell = tell.clone();
        problem(move |stream| {
            let _ = tell.send(endless(stream, head, more.as_bytes()));
        })
        .await;
        let taken = taken.recv().expect("it was hung up on");
        assert!(taken <= most, "{taken} bytes were taken");
    }
}

#[tokio::test]
async fn silence_ends_in_time() {
    let link = link(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
        // Until it is hung up on.
        let _ = stream.read(&mut [0]);
    })
    .await;
    link.acknowledge(7).await;
    let problem = link.transfer(None).await.map(|_| ()).expect_err("the link is broken");
    assert!(problem.contains("has not answered for 10 s"), "{problem}");
}

#[test]
fn whatever_a_caller_is_called_is_a_path() {
    assert_eq!(encode("xapi:1970"), "xapi:1970");
    assert_eq!(encode("a b/%\u{e4}?#"), "a%20b%2F%25%C3%A4%3F%23");
    let path = format!("/response/{}/q/1", encode("\u{0}\n\u{fffd} \""));
    assert!(Request::builder().uri(path).body(()).is_ok());
}
