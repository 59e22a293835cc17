//! The ring's notifications under a model checker: no wake-up is lost, whatever both ends do in
//! whatever order.
//!
//! loom runs every interleaving of a front end and of the real [`BackRing`], with each value that
//! C11's memory model lets a load see. Each end sleeps when it has told the other that it will; an
//! event that should have been sent and was not leaves both asleep, which loom reports.

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Arc, Notify};
use zerotap_datapath::ring::abi::{Abi, OP_FLUSH_DISKCACHE, RING_HEADER_BYTES, entry_bytes};
use zerotap_datapath::ring::back::BackRing;
use zerotap_datapath::ring::shared::{Memory, PAGE_BYTES};
use zerotap_datapath::ring::token::Token;

const REQUESTS: u32 = 2;
/// Where a thread is stopped against its will, at the most; three take ten times as long and found
/// nothing more.
const PREEMPTIONS_MAX: usize = 2;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;

/// A ring's page: its indices, and of each entry the cookie.
struct Page {
    indices: [AtomicU32; 4],
    cookies: [AtomicU32; REQUESTS as usize],
    /// Both ends' event channel ports.
    to_back: Notify,
    to_front: Notify,
}

impl Page {
    /// Empty; both ends begin by asking for the first event.
    fn new() -> Page {
        Page {
            indices: [0, 1, 0, 1].map(AtomicU32::new),
            cookies: [0; REQUESTS as usize].map(AtomicU32::new),
            to_back: Notify::new(),
            to_front: Notify::new(),
        }
    }

    fn cookie(&self, offset: usize) -> &AtomicU32 {
        &self.cookies[(offset - RING_HEADER_BYTES) / entry_bytes(Abi::X86_64)]
    }
}

/// The page as the back end sees it.
struct View {
    page: Arc<Page>,
    fenced: bool,
}

impl Memory for View {
    fn bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn load(&self, offset: usize) -> u32 {
        self.page.indices[offset / 4].load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        self.page.indices[offset / 4].store(value, Ordering::Release);
    }

    fn fence(&self) {
        if self.fenced {
            fence(Ordering::SeqCst);
        }
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut entry = [0; N];
        entry[0] = OP_FLUSH_DISKCACHE;
        let cookie = self.page.cookie(offset).load(Ordering::Relaxed);
        entry[8..12].copy_from_slice(&cookie.to_le_bytes());
        entry
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        let cookie = from.first_chunk().map_or(0, |cookie| u32::from_le_bytes(*cookie));
        self.page.cookie(offset).store(cookie, Ordering::Relaxed);
    }
}

/// Puts request `n` into the ring; true when the back end wants to be woken.
fn send(page: &Page, n: u32) -> bool {
    page.cookies[n as usize].store(n + 1, Ordering::Relaxed);
    page.indices[REQ_PROD].store(n + 1, Ordering::Release);
    fence(Ordering::SeqCst);
    page.indices[REQ_EVENT].load(Ordering::Relaxed) == n + 1
}

/// A front end by the book (xen `public/io/ring.h`): sends all, sleeps until all is answered.
fn front(page: &Page) {
    for n in 0..REQUESTS {
        if send(page, n) {
            page.to_back.notify();
        }
    }
    let mut taken = 0;
    loop {
        while page.indices[RSP_PROD].load(Ordering::Acquire) != taken {
            let cookie = page.cookies[taken as usize].load(Ordering::Relaxed);
            assert_eq!(cookie, 100 + taken + 1, "the answer was not there when it was shown");
            taken += 1;
        }
        if taken == REQUESTS {
            return;
        }
        page.indices[RSP_EVENT].store(taken + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if page.indices[RSP_PROD].load(Ordering::Acquire) == taken {
            page.to_front.wait();
        }
    }
}

/// The back end, as a device uses its ring; it shows answers singly, or all that it has.
fn back(view: View, singly: bool) {
    let page = Arc::clone(&view.page);
    let mut ring = BackRing::new(view, Abi::X86_64, None).expect("no journal");
    let mut answered = 0;
    let show = |ring: &mut BackRing<View>| {
        if ring.push() {
            page.to_front.notify();
        }
    };
    loop {
        while let Some(taken) = ring.take().expect("an honest front end") {
            let request = taken.descriptor;
            answered += 1;
            assert_eq!(request.id, answered, "the request was not there when it was shown");
            ring.answer(Token::new(100 + request.id, request.operation, taken.place), 0);
            if singly {
                show(&mut ring);
            }
        }
        show(&mut ring);
        if answered == u64::from(REQUESTS) {
            return;
        }
        if !ring.sleep().expect("an honest front end") {
            page.to_back.wait();
        }
    }
}

fn check(singly: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(move || {
        let page = Arc::new(Page::new());
        let view = View { page: Arc::clone(&page), fenced: true };
        let back = loom::thread::spawn(move || back(view, singly));
        front(&page);
        back.join().expect("the back end");
    });
}

#[test]
fn no_wake_up_is_lost_when_answers_are_shown_singly() {
    check(true);
}

#[test]
fn no_wake_up_is_lost_when_answers_are_shown_together() {
    check(false);
}

/// One request, and one look of the back end's before it goes to sleep: it sees the request or is
/// woken.
fn one_request(fenced: bool) {
    loom::model(move || {
        let page = Arc::new(Page::new());
        // Nobody has asked yet.
        page.indices[REQ_EVENT].store(0, Ordering::Relaxed);
        let view = View { page: Arc::clone(&page), fenced };
        let back = loom::thread::spawn(move || {
            let mut ring = BackRing::new(view, Abi::X86_64, None).expect("no journal");
            ring.sleep().expect("an honest front end")
        });
        let woken = send(&page, 0);
        let seen = back.join().expect("the back end");
        assert!(seen || woken, "a lost wake-up");
    });
}

#[test]
fn a_back_end_that_goes_to_sleep_sees_the_request_or_is_woken() {
    one_request(true);
}

/// The model finds what it is there to find.
#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_its_fence_it_would_sleep_on() {
    one_request(false);
}
