//! Guests whose writes are numbered, so that a copy of their disk tells whether it is of a moment.
//!
//! Each block holds the number of the write that it is from. Answers come in any order; but a copy
//! that has a write has all that were answered before that one was sent.

use crate::blkfront::{Blkfront, Io, Op, Options, Piece, state};
use crate::guest::{Domain, FRAME_BYTES};
use crate::harness::nbd::{Client, Place};
use crate::workload::random::Random;
use anyhow::{Context as _, ensure};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a block: whole frames keep it simple.
const BLOCK_BYTES: usize = FRAME_BYTES;
/// Writes of a guest in flight.
const DEPTH: usize = 8;

/// A write, whose number is its place among all, from 1 on.
#[derive(Debug, Clone, Copy)]
struct Write {
    block: usize,
    sent: Instant,
    answered: Option<Instant>,
}

/// All writes of one who writes to a disk.
#[derive(Debug)]
pub struct History(Vec<Write>);

/// Someone who writes, on a thread of their own.
#[derive(Debug)]
pub struct Writer {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<History>>,
}

/// What the thread has of it.
struct Seen {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Writer {
    /// A guest that writes to its disk as soon as that is plugged.
    ///
    /// # Errors
    /// When the domain cannot be made.
    pub fn guest(sim_dir: &Path, domid: u16) -> anyhow::Result<Writer> {
        let (sim_dir, (tell, made)) = (sim_dir.to_owned(), mpsc::channel());
        let guest = Writer::start(move |seen| {
            let domain = Domain::create(&sim_dir, domid, 64 << 20, true)?;
            tell.send(())?;
            write(domain, seen)
        });
        if made.recv().is_err() {
            guest.stop()?;
        } else {
            return Ok(guest);
        }
        anyhow::bail!("the guest ended at once")
    }

    /// An NBD client, one write after the other.
    #[must_use]
    pub fn client(place: Place) -> Writer {
        Writer::start(move |seen| write_over_nbd(&place, seen))
    }

    fn start(body: impl FnOnce(&Seen) -> anyhow::Result<History> + Send + 'static) -> Writer {
        let (over, answered) = (Arc::default(), Arc::default());
        let seen = Seen { over: Arc::clone(&over), answered: Arc::clone(&answered) };
        Writer { over, answered, thread: std::thread::spawn(move || body(&seen)) }
    }

    /// Waits until `more` further writes were answered.
    ///
    /// # Errors
    /// When it ended, or they do not come.
    pub fn progresses(&self, more: u64) -> anyhow::Result<()> {
        let from = self.answered.load(Ordering::Acquire);
        let limit = Instant::now() + Duration::from_secs(crate::workload::STALL_SECONDS_MAX);
        while self.answered.load(Ordering::Acquire) < from + more {
            ensure!(!self.thread.is_finished() && Instant::now() < limit, "it does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it; all of its writes.
    ///
    /// # Errors
    /// What it ran into.
    pub fn stop(self) -> anyhow::Result<History> {
        self.over.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}

impl History {
    fn send(&mut self, block: usize) -> [u8; BLOCK_BYTES] {
        self.0.push(Write { block, sent: Instant::now(), answered: None });
        let mut bytes = [0; BLOCK_BYTES];
        for word in bytes.as_chunks_mut::<8>().0 {
            *word = (self.0.len() as u64).to_le_bytes();
        }
        bytes
    }

    fn answered(&mut self, number: usize) {
        self.0[number - 1].answered = Some(Instant::now());
    }

    /// Judges a copy that was made by a call which lasted from `begun` to `ended`.
    ///
    /// # Errors
    /// Why it is of no moment in between.
    ///
    /// # Panics
    /// On a disk that is larger than memory.
    pub fn check(&self, copy: &Path, begun: Instant, ended: Instant) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        std::fs::File::open(copy)?.read_to_end(&mut bytes)?;
        let mut found = Vec::new();
        for (block, bytes) in bytes.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
            let words = bytes.as_chunks::<8>().0;
            ensure!(words.iter().all(|word| word == &words[0]), "block {block} is torn");
            let number = usize::try_from(u64::from_le_bytes(words[0]))?;
            let write = number.checked_sub(1).map(|index| self.0.get(index));
            let is_its_own = write.is_none_or(|write| write.is_some_and(|it| it.block == block));
            ensure!(is_its_own, "block {block} holds {number}, which was never written there");
            found.push(number);
        }
        let sent = |&number: &usize| Some(self.0[number.checked_sub(1)?].sent);
        let newest = found.iter().filter_map(sent).max();
        ensure!(newest.is_none_or(|sent| sent <= ended), "it has what was sent after the call");
        let moment = newest.map_or(begun, |newest| newest.max(begun));
        for (index, write) in self.0.iter().enumerate() {
            let before = write.answered.is_some_and(|answered| answered < moment);
            let (number, there) = (index + 1, found[write.block]);
            ensure!(
                !before || there >= number,
                "block {} holds write {there}; write {number} to it was answered {:?} before the \
                 moment, and is missing",
                write.block,
                write.answered.map(|answered| moment.duration_since(answered))
            );
        }
        Ok(())
    }
}

fn write(domain: Domain, seen: &Seen) -> anyhow::Result<History> {
    let mut front = Blkfront::connect(domain, Options::default())?;
    let blocks = usize::try_from(front.disk().sectors)? * 512 / BLOCK_BYTES;
    let (mut random, mut history) = (Random::new(1), History(Vec::new()));
    let mut frames: Vec<u32> =
        (0..DEPTH).map(|_| front.domain().frame()).collect::<Result<_, _>>()?;
    let mut busy = vec![false; blocks];
    let mut numbers = vec![0; front.room() as usize];
    loop {
        while !seen.over.load(Ordering::Acquire)
            && let Some(frame) = frames.pop()
        {
            let block = loop {
                let block = usize::try_from(random.below(blocks as u64))?;
                if !std::mem::replace(&mut busy[block], true) {
                    break block;
                }
            };
            let bytes = history.send(block);
            front.domain().memory().copy_in(frame as usize * FRAME_BYTES, &bytes);
            let pieces = vec![Piece { frame, first: 0, last: 7 }];
            let slot = front.submit(Io { op: Op::Write, sector: 8 * block as u64, pieces })?;
            numbers[slot] = history.0.len();
            front.push()?;
        }
        if front.in_flight() == 0 {
            break;
        }
        let limit = Instant::now() + Duration::from_secs(crate::workload::STALL_SECONDS_MAX);
        let news = front.wait(1, limit)?;
        ensure!(Instant::now() < limit, "the back end is stuck");
        ensure!(!news || front.backend_state()? == state::CONNECTED, "the back end closed");
        while let Some(done) = front.complete()? {
            ensure!(done.status == 0, "status {} for {:?}", done.status, done.io);
            let number = numbers[done.slot];
            history.answered(number);
            busy[history.0[number - 1].block] = false;
            frames.push(done.io.pieces[0].frame);
            seen.answered.fetch_add(1, Ordering::AcqRel);
        }
    }
    front.close()?;
    Ok(history)
}

fn write_over_nbd(place: &Place, seen: &Seen) -> anyhow::Result<History> {
    const WRITE: u16 = 1;
    let (mut client, size, _) = Client::open(place)?;
    let blocks = size / BLOCK_BYTES as u64;
    let (mut random, mut history) = (Random::new(2), History(Vec::new()));
    while !seen.over.load(Ordering::Acquire) {
        let block = random.below(blocks);
        let bytes = history.send(usize::try_from(block)?);
        let number = history.0.len();
        let at = block * BLOCK_BYTES as u64;
        client.ask(WRITE, number as u64, at, u32::try_from(BLOCK_BYTES)?)?;
        client.say(&[&bytes])?;
        let (error, cookie) = client.reply().context("an answer to a write")?;
        ensure!(error == 0 && cookie == number as u64, "write {number}: {error} for {cookie}");
        history.answered(number);
        seen.answered.fetch_add(1, Ordering::AcqRel);
    }
    Ok(history)
}
