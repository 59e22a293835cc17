//! The whole vocabulary, over both engines: what an operation answers must not tell them apart.

use super::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const KINDS: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Aio];
const BLOCK: usize = 4096;
const IMAGE_BLOCKS: usize = 1024;

/// Memory that direct I/O takes.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK]);

impl Block {
    fn of(byte: u8) -> Box<Self> {
        Box::new(Block([byte; BLOCK]))
    }

    fn vector(&mut self) -> IoVector {
        IoVector { iov_base: self.0.as_mut_ptr().cast(), iov_len: BLOCK }
    }
}

/// An engine and its image, in a directory of their own.
struct Bench {
    engine: Engine,
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new(kind: EngineKind) -> Self {
        Self::opened(kind, OFlags::RDWR | OFlags::DIRECT)
    }

    fn opened(kind: EngineKind, flags: OFlags) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![0; IMAGE_BLOCKS * BLOCK]).unwrap();
        let image = open(&path, flags, Mode::empty()).unwrap();
        // The engine keeps what it needs of it.
        let engine = Engine::new(image.as_fd(), kind).unwrap();
        Bench { engine, path, _directory: directory }
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// The next completions, so many.
    fn wait(&mut self, wanted: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        while completions.len() < wanted {
            self.engine.submit_and_wait(wanted - completions.len(), &mut completions).unwrap();
        }
        assert_eq!(completions.len(), wanted, "{completions:?}");
        completions
    }

    /// The only completion, which must be `tag`'s.
    fn result(&mut self, tag: Tag) -> i32 {
        let completion = self.wait(1)[0];
        assert_eq!(completion.tag, tag);
        completion.result
    }

    fn assert_quiet(&mut self) {
        let mut completions = Vec::new();
        for _ in 0..64 {
            self.engine.submit_and_wait(0, &mut completions).unwrap();
        }
        assert_eq!(completions, []);
    }
}

fn request(slot: u16) -> Tag {
    Tag::Request { slot }
}

#[test]
fn what_is_written_in_any_way_is_read_back() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let (mut one, mut two, mut three) = (Block::of(1), Block::of(2), Block::of(3));
        let (scattered, durable) = ([one.vector(), two.vector()], [three.vector()]);
        // SAFETY: the blocks live until their completions are taken, below.
        unsafe {
            bench.engine.write(&scattered, 0, request(0));
            bench.engine.write_durable(&durable, 2 * BLOCK as u64, request(1));
        }
        let mut completions = bench.wait(2);
        completions.sort_by_key(|completion| completion.result);
        let bytes = i32::try_from(BLOCK).unwrap();
        assert_eq!(completions[0], Completion { tag: request(1), result: bytes });
        assert_eq!(completions[1], Completion { tag: request(0), result: 2 * bytes });
        bench.engine.flush(request(2));
        assert_eq!(bench.result(request(2)), 0);
        let image = bench.image();
        assert_eq!([image[0], image[BLOCK], image[2 * BLOCK], image[3 * BLOCK]], [1, 2, 3, 0]);
        let (mut first, mut last) = (Block::of(9), Block::of(9));
        let vectors = [last.vector(), first.vector()];
        // SAFETY: as above.
        unsafe { bench.engine.read(&vectors, BLOCK as u64, request(3)) };
        assert_eq!(bench.result(request(3)), 2 * bytes);
        assert_eq!((last.0[BLOCK - 1], first.0[0]), (2, 3));
        // SAFETY: as above.
        unsafe { bench.engine.read(&vectors[..1], 0, request(4)) };
        assert_eq!(bench.result(request(4)), bytes);
        assert_eq!(last.0[7], 1);
    }
}

#[test]
fn what_the_image_refuses_is_the_operations_result() {
    for kind in KINDS {
        let mut bench = Bench::opened(kind, OFlags::RDONLY | OFlags::DIRECT);
        let mut block = Block::of(7);
        let vectors = [block.vector()];
        let end = (IMAGE_BLOCKS * BLOCK) as u64;
        // SAFETY: the block lives until the completion is taken, so in each of these.
        unsafe { bench.engine.write(&vectors, 0, request(0)) };
        assert_eq!(bench.result(request(0)), -libc::EBADF, "{kind}: open for reading");
        // SAFETY: as above.
        unsafe { bench.engine.read(&vectors, end, request(1)) };
        assert_eq!(bench.result(request(1)), 0, "{kind}: behind the end");
        let two = [block.vector(), Block::of(0).vector()];
        // SAFETY: as above; nothing comes for the second one, which is gone.
        unsafe { bench.engine.read(&two, end - BLOCK as u64, request(2)) };
        assert_eq!(bench.result(request(2)), BLOCK as i32, "{kind}: a part is behind the end");
        // SAFETY: as above.
        unsafe { bench.engine.read(&vectors, 1, request(3)) };
        assert_eq!(bench.result(request(3)), -libc::EINVAL, "{kind}: direct I/O at byte 1");
        let nowhere = [IoVector { iov_base: std::ptr::null_mut(), iov_len: BLOCK }];
        // SAFETY: nothing is mapped there, which the kernel finds out.
        unsafe { bench.engine.read(&nowhere, 0, request(4)) };
        assert_eq!(bench.result(request(4)), -libc::EFAULT, "{kind}");
        bench.engine.allocate(Allocation::Hole, 0, 4096, request(5));
        assert_eq!(bench.result(request(5)), -libc::EBADF, "{kind}");
        // SAFETY: as above.
        unsafe { bench.engine.read(&vectors, 0, request(6)) };
        assert_eq!(bench.result(request(6)), BLOCK as i32, "{kind}: the engine goes on");
    }
}

#[test]
fn more_than_the_kernel_takes_at_once_is_done_all_the_same() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let mut blocks: Vec<_> = (0..IMAGE_BLOCKS).map(|n| *Block::of(n as u8)).collect();
        let vectors: Vec<_> = blocks.iter_mut().map(|block| [block.vector()]).collect();
        for (n, vector) in vectors.iter().enumerate() {
            // SAFETY: blocks and vectors live until all is done.
            unsafe { bench.engine.write(vector, (n * BLOCK) as u64, request(n as u16)) };
        }
        let mut slots = Vec::new();
        for completion in bench.wait(IMAGE_BLOCKS) {
            assert_eq!(completion.result, BLOCK as i32);
            let Tag::Request { slot } = completion.tag else { panic!("{completion:?}") };
            slots.push(slot);
        }
        slots.sort_unstable();
        assert!(slots.iter().enumerate().all(|(n, &slot)| n == usize::from(slot)), "{kind}");
        let image = bench.image();
        assert!((0..IMAGE_BLOCKS).all(|n| image[n * BLOCK] == n as u8), "{kind}");
    }
}

#[test]
fn ranges_become_holes_and_zeroes() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        std::fs::write(&bench.path, vec![5; 4 * BLOCK]).unwrap();
        bench.engine.allocate(Allocation::Hole, 0, BLOCK as u64, request(0));
        assert_eq!(bench.result(request(0)), 0);
        bench.engine.allocate(Allocation::Zeroes, 2 * BLOCK as u64, BLOCK as u64, request(1));
        assert_eq!(bench.result(request(1)), 0);
        bench.engine.allocate(Allocation::Zeroes, 0, 0, request(2));
        assert_eq!(bench.result(request(2)), -libc::EINVAL, "{kind}: of no bytes");
        let image = bench.image();
        let at = |block: usize| image[block * BLOCK];
        assert_eq!((image.len(), [at(0), at(1), at(2), at(3)]), (4 * BLOCK, [0, 5, 0, 5]));
    }
}

#[test]
fn a_wait_ends_once_and_only_when_there_is_something() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (one, two) = (eventfd(0, flags).unwrap(), eventfd(0, flags).unwrap());
        let tag = |connection| Tag::Control { connection };
        bench.engine.wait_readable(one.as_fd(), tag(1));
        bench.engine.wait_readable(two.as_fd(), tag(2));
        bench.assert_quiet();
        rustix::io::write(&two, &1u64.to_ne_bytes()).unwrap();
        assert!(bench.result(tag(2)) > 0);
        // It is readable still, and nobody waits.
        bench.assert_quiet();
        bench.engine.wait_readable(two.as_fd(), tag(2));
        assert!(bench.result(tag(2)) > 0);
        rustix::io::write(&one, &1u64.to_ne_bytes()).unwrap();
        assert!(bench.result(tag(1)) > 0);
    }
}

#[test]
fn a_wait_is_not_forgotten_over_io() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let wake = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let mailbox = Tag::Control { connection: 0 };
        bench.engine.wait_readable(wake.as_fd(), mailbox);
        let mut block = Block::of(0);
        let vectors = [block.vector()];
        let (mut completions, mut rounds) = (Vec::new(), 0);
        while !completions.iter().any(|completion: &Completion| completion.tag == mailbox) {
            // SAFETY: the block lives until all is done: each is awaited below.
            unsafe { bench.engine.read(&vectors, 0, request(0)) };
            let seen = completions.len();
            while !completions[seen..].iter().any(|completion| completion.tag == request(0)) {
                bench.engine.submit_and_wait(0, &mut completions).unwrap();
            }
            rounds += 1;
            assert!(rounds < 100, "{kind}: a busy engine does not look at its descriptors");
        }
    }
}

/// An event channel as the simulated host has it: a FIFO, open both ways, that does not block.
fn channel() -> (OwnedFd, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("channel");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    (open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap(), directory)
}

#[test]
fn an_event_is_read_with_its_completion_and_the_unmasking_written_before() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let (channel, _directory) = channel();
        let mut words = [0u32; 16];
        // SAFETY: words and channel live until the completion was taken, so in each of these.
        unsafe { bench.engine.wait_event(channel.as_fd(), None, &raw mut words, Tag::Event) };
        bench.assert_quiet();
        rustix::io::write(&channel, &7u32.to_ne_bytes()).unwrap();
        assert_eq!((bench.result(Tag::Event), words[0]), (4, 7));
        bench.assert_quiet();
        // What is written comes back by a FIFO, at once.
        let unmask = 9u32;
        let port = Some(&raw const unmask);
        // SAFETY: as above.
        unsafe { bench.engine.wait_event(channel.as_fd(), port, &raw mut words, Tag::Event) };
        assert_eq!((bench.result(Tag::Event), words[0]), (4, 9));
    }
}

#[test]
fn a_wait_for_events_can_be_cancelled_and_fails_with_its_channel() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let (channel, _directory) = channel();
        let mut words = [0u32; 16];
        // SAFETY: words and channel live until the completion was taken, so in each of these.
        unsafe { bench.engine.wait_event(channel.as_fd(), None, &raw mut words, Tag::Event) };
        bench.assert_quiet();
        bench.engine.cancel_event(Tag::Event, Tag::Cancelled);
        let mut completions = bench.wait(2);
        completions.sort_by_key(|completion| completion.tag == Tag::Cancelled);
        assert_eq!(completions[0].tag, Tag::Event, "{kind}");
        assert!(completions[0].result < 0, "{kind}: {completions:?}");
        assert_eq!(completions[1], Completion { tag: Tag::Cancelled, result: 0 }, "{kind}");
        rustix::io::write(&channel, &7u32.to_ne_bytes()).unwrap();
        bench.assert_quiet();
        bench.engine.cancel_event(Tag::Event, Tag::Cancelled);
        assert_eq!(bench.result(Tag::Cancelled), -libc::ENOENT, "{kind}: there is none");
        let (reader, _writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let unmask = 9u32;
        let port = Some(&raw const unmask);
        // SAFETY: as above.
        unsafe { bench.engine.wait_event(reader.as_fd(), port, &raw mut words, Tag::Event) };
        assert_eq!(bench.result(Tag::Event), -libc::EBADF, "{kind}: it takes no unmasking");
        bench.assert_quiet();
    }
}

/// A message of one vector.
fn message(bytes: &mut [u8]) -> Box<(Message, IoVector)> {
    let vector = IoVector { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a message of nothing is all zeroes.
    let mut message = Box::new((unsafe { std::mem::zeroed::<Message>() }, vector));
    message.0.msg_iovlen = 1;
    message.0.msg_iov = &raw mut message.1;
    message
}

#[test]
fn streams_carry_what_is_there_until_their_end() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lane = |lane| Tag::Nbd { client: 0, lane };
        let mut bytes = [0; 64];
        let mut incoming = message(&mut bytes);
        // SAFETY: message and bytes live until the completion was taken, so in each of these.
        unsafe { bench.engine.receive(ours.as_fd(), &raw mut incoming.0, lane(0)) };
        bench.assert_quiet();
        rustix::io::write(&theirs, b"hello").unwrap();
        assert_eq!(bench.result(lane(0)), 5);
        let mut answer = *b"and to you";
        let outgoing = message(&mut answer);
        // SAFETY: as above.
        unsafe { bench.engine.send(ours.as_fd(), &raw const outgoing.0, lane(1)) };
        assert_eq!(bench.result(lane(1)), 10);
        assert_eq!(rustix::io::read(&theirs, &mut [0; 64]).unwrap(), 10);
        // SAFETY: as above.
        unsafe { bench.engine.receive(ours.as_fd(), &raw mut incoming.0, lane(0)) };
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(bench.result(lane(0)), 0, "{kind}: the stream's end");
        drop(theirs);
        // SAFETY: as above. No signal may come of it.
        unsafe { bench.engine.send(ours.as_fd(), &raw const outgoing.0, lane(1)) };
        assert_eq!(bench.result(lane(1)), -libc::EPIPE, "{kind}");
        assert_eq!(&bytes[..5], b"hello");
    }
}

#[test]
fn what_a_socket_has_no_room_for_is_sent_once_it_has() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut bytes = vec![3; 4 << 20];
        let total = bytes.len();
        let reader = std::thread::spawn(move || {
            let (mut seen, mut buffer) = (0, vec![0; 64 << 10]);
            while seen < total {
                seen += rustix::io::read(&theirs, &mut buffer).unwrap();
            }
            assert!(buffer.iter().all(|&byte| byte == 3));
        });
        let tag = Tag::Nbd { client: 0, lane: 1 };
        let mut sent = 0;
        while sent < total {
            let outgoing = message(&mut bytes[sent..]);
            // SAFETY: message and bytes live until the completion was taken.
            unsafe { bench.engine.send(ours.as_fd(), &raw const outgoing.0, tag) };
            let result = bench.result(tag);
            assert!(result > 0, "{kind}: {result}");
            sent += usize::try_from(result).unwrap();
        }
        reader.join().unwrap();
    }
}

/// Looks at descriptors are spared while I/O goes on; what completes beside such a look must not be
/// slept through.
#[test]
fn what_completes_between_two_looks_wakes() {
    const ROUNDS: u16 = 10_000;
    for kind in KINDS {
        let (done, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bench = Bench::new(kind);
            let mut completions = Vec::new();
            for round in 0..ROUNDS {
                // As many looks in all, more and more of them after the submission.
                for look in 0..16 {
                    if look == round % 17 {
                        bench.engine.flush(request(round));
                    }
                    bench.engine.submit_and_wait(0, &mut completions).unwrap();
                }
                if round % 17 == 16 {
                    bench.engine.flush(request(round));
                }
                if completions.is_empty() {
                    bench.engine.submit_and_wait(1, &mut completions).unwrap();
                }
                assert_eq!(completions.pop().map(|it| it.tag), Some(request(round)));
            }
            done.send(()).unwrap();
        });
        told.recv_timeout(std::time::Duration::from_secs(85)).expect("an engine that sleeps");
    }
}

#[test]
fn registered_memory_serves_like_any_other() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        let memory = SharedMapping::anonymous(2 * BLOCK).unwrap();
        let at = |block: usize, bytes| {
            [IoVector { iov_base: memory.address(block * BLOCK, bytes).cast(), iov_len: bytes }]
        };
        let (first, second) = (at(0, BLOCK), at(1, BLOCK));
        memory.copy_in(0, &[5; BLOCK]);
        bench.engine.register(&memory);
        // SAFETY: the memory lives until the completions are taken, so in each of these.
        unsafe { bench.engine.write(&first, 0, request(0)) };
        assert_eq!(bench.result(request(0)), BLOCK as i32, "{kind}");
        // SAFETY: as above.
        unsafe { bench.engine.read(&second, 0, request(1)) };
        assert_eq!(bench.result(request(1)), BLOCK as i32, "{kind}");
        assert_eq!(memory.read::<8>(BLOCK), [5; 8], "{kind}");
        if kind == EngineKind::IoUring {
            // The kernel goes by the pages that it holds, not by what is there now.
            memory.forget();
            // SAFETY: as above.
            unsafe { bench.engine.read(&second, 0, request(2)) };
            assert_eq!(bench.result(request(2)), BLOCK as i32);
            assert_eq!(memory.read::<8>(BLOCK), [0; 8]);
        }
        bench.engine.unregister();
        memory.forget();
        // SAFETY: as above.
        unsafe { bench.engine.read(&second, 0, request(3)) };
        assert_eq!(bench.result(request(3)), BLOCK as i32, "{kind}");
        assert_eq!(memory.read::<8>(BLOCK), [5; 8], "{kind}: no longer registered");
    }
}
