//! Datapath workers as the daemon sees them: one process a VDI, started, adopted, asked, stopped.
//!
//! A [`WorkerHandle`] is one worker that has said Hello. It never decides when to start or stop:
//! VDI actors do. The VBD side holds handles too, to connect rings.

pub mod client;
pub mod journals;
pub mod process;
pub mod reconcile;
pub mod set;
pub mod spawn;

pub use client::WorkerError;
pub use set::{WorkerNews, Workers};
pub use spawn::Launcher;

use crate::fault;
use crate::state::WorkerRow;
use crate::vdi::VdiId;
use client::{
    CONNECT_DEADLINE, COPY_DEADLINE, Client, DISCONNECT_DEADLINE, RESIZE_DEADLINE,
    SHUTDOWN_DEADLINE, STAT_DEADLINE,
};
use process::Process;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use zerotap_rpc_schema::engine::EngineChoice;
use zerotap_rpc_schema::worker::{
    Answer, Ask, Bounds, Connected, ImageInfo, Journaled, NbdCounters, RingParameters,
    TransferRule, VbdCounters, VbdId,
};

/// How long a worker may take to end once it has said that it will.
const EXIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a process that was killed: it finishes its disk I/O first.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The protocol that journals came with.
const JOURNALS_SINCE: u32 = 2;
/// The protocol that has bounds.
const BOUNDS_SINCE: u32 = 3;
/// The protocol that copies of an image in use came with.
const COPIES_SINCE: u32 = 4;

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Its program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The image as it found it.
    pub image: ImageInfo,
    /// The most segments that an indirect request may have.
    pub indirect_segments_max: u32,
    /// The highest ring order that it maps.
    pub ring_page_order_max: u32,
    /// The most queues that are worth having.
    pub queues_max: u32,
    /// The rings that it serves.
    pub connected: Vec<Connected>,
    /// Whether its image may grow while it serves.
    pub resizes: bool,
    /// How it reaches guests' pages, unless a VBD has a rule of its own; a worker of another
    /// version may know no rules, and keeps grants.
    pub transfer: Option<TransferRule>,
    /// By what it does its I/O.
    pub engine: EngineChoice,
    /// The newest protocol that both speak.
    pub protocol: u32,
    /// Whether it can leave what waits for space to the next worker.
    pub leaves: bool,
}

impl Hello {
    /// Asks.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub async fn ask(client: &Client) -> Result<Hello, WorkerError> {
        let Answer::Hello {
            version,
            pid,
            image,
            indirect_segments_max,
            ring_page_order_max,
            queues_max,
            connected,
            resizes,
            transfer,
            engine,
            protocol,
            leaves,
        } = client.hello().await?
        else {
            return Err(WorkerError::Confused { what: "hello" });
        };
        Ok(Hello {
            version,
            pid,
            image,
            indirect_segments_max,
            ring_page_order_max,
            queues_max,
            connected,
            resizes,
            transfer,
            engine,
            protocol,
            leaves,
        })
    }
}

/// What a guest was offered, as far as its worker goes by it.
#[derive(Debug, Clone, Copy)]
pub struct Offered {
    /// Discards.
    pub discard: bool,
    /// Less than the worker can, if it is less.
    pub bounds: Option<Bounds>,
}

/// What a worker has counted since it started.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Of every VBD that is or was connected.
    pub vbds: Vec<VbdCounters>,
    /// Of its NBD server.
    pub nbd: NbdCounters,
}

/// A worker that has said Hello. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    row: WorkerRow,
    hello: Hello,
    /// The image's capacity: it may have grown since Hello.
    sectors: AtomicU64,
    client: Client,
    process: Arc<Process>,
    launcher: Launcher,
    /// When it became known.
    since: Instant,
    /// Set before it is told to end: its end is no accident then.
    stopping: AtomicBool,
    /// How it ended, once it has.
    end: watch::Receiver<Option<String>>,
}

impl WorkerHandle {
    /// A worker that has said `hello`; its process is watched from now on.
    #[must_use]
    pub fn new(
        row: WorkerRow,
        hello: Hello,
        client: Client,
        process: Process,
        launcher: Launcher,
    ) -> WorkerHandle {
        let process = Arc::new(process);
        let (sender, end) = watch::channel(None);
        let watched = Arc::clone(&process);
        tokio::spawn(async move { sender.send_replace(Some(watched.exited().await)) });
        let (stopping, sectors) = (AtomicBool::new(false), AtomicU64::new(hello.image.sectors));
        let since = Instant::now();
        WorkerHandle(Arc::new(Inner {
            row,
            hello,
            sectors,
            client,
            process,
            launcher,
            since,
            stopping,
            end,
        }))
    }

    /// What it serves.
    #[must_use]
    pub fn vdi(&self) -> &VdiId {
        &self.0.row.vdi
    }

    /// Its id: the name of its socket.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.row.id
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.row.pid
    }

    /// All that is remembered of it.
    #[must_use]
    pub fn row(&self) -> &WorkerRow {
        &self.0.row
    }

    /// Its program's version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.0.row.version
    }

    /// How long it has been known.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.since.elapsed()
    }

    /// Whether the image is open read-only: a VBD that may write must be refused then.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.0.row.read_only
    }

    /// The image as the worker serves it.
    #[must_use]
    pub fn image(&self) -> ImageInfo {
        ImageInfo { sectors: self.0.sectors.load(Ordering::Acquire), ..self.0.hello.image }
    }

    /// Whether its image may grow while it serves: one that an older daemon started does not know
    /// how.
    #[must_use]
    pub fn resizes(&self) -> bool {
        self.0.hello.resizes
    }

    /// By what it does its I/O, and why.
    #[must_use]
    pub fn engine(&self) -> &EngineChoice {
        &self.0.hello.engine
    }

    /// Whether another can go on with what it took, should it die.
    #[must_use]
    pub fn keeps_journals(&self) -> bool {
        self.0.hello.protocol >= JOURNALS_SINCE
    }

    /// Whether it can copy its image while it serves.
    #[must_use]
    pub fn copies(&self) -> bool {
        self.0.hello.protocol >= COPIES_SINCE
    }

    /// Has it copy its image, as it is at one moment, to an empty file of the same file system.
    ///
    /// # Errors
    /// `Refused` where extents cannot be shared. After any error it may still be at work on `to`.
    pub async fn copy(&self, to: OwnedFd) -> Result<(), WorkerError> {
        self.0.client.done("copy", Ask::Copy, vec![to], COPY_DEADLINE).await
    }

    /// Has it serve an image that has grown, to its new end.
    ///
    /// # Errors
    /// `Refused` when the image is shorter than that, or was served further already.
    pub async fn resize(&self, sectors: u64) -> Result<(), WorkerError> {
        let ask = Ask::Resize { sectors };
        self.0.client.done("resize", ask, vec![], RESIZE_DEADLINE).await?;
        self.0.sectors.fetch_max(sectors, Ordering::AcqRel);
        Ok(())
    }

    /// How it reaches guests' pages; none from one that knows no rules.
    #[must_use]
    pub fn transfer(&self) -> Option<TransferRule> {
        self.0.hello.transfer
    }

    /// The most segments that an indirect request may have.
    #[must_use]
    pub fn indirect_segments_max(&self) -> u32 {
        self.0.hello.indirect_segments_max
    }

    /// The highest ring order that it maps.
    #[must_use]
    pub fn ring_page_order_max(&self) -> u32 {
        self.0.hello.ring_page_order_max
    }

    /// The most queues that are worth having.
    #[must_use]
    pub fn queues_max(&self) -> u32 {
        self.0.hello.queues_max
    }

    /// The rings that it serves now.
    ///
    /// # Errors
    /// [`WorkerError`]; so with the calls below.
    pub async fn connected(&self) -> Result<Vec<Connected>, WorkerError> {
        Ok(Hello::ask(&self.0.client).await?.connected)
    }

    /// Has it serve a VBD. Opens an event channel device and a journal for each of its queues.
    ///
    /// # Errors
    /// `Refused` when the ring can't be mapped, the port not be bound, or the journal not be taken
    /// up.
    pub async fn connect(
        &self,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
        offered: Offered,
        transfer: Option<TransferRule>,
        how: Journaled,
    ) -> Result<(), WorkerError> {
        let launcher = &self.0.launcher;
        let open = |_| launcher.host.open_events();
        let descriptors = ring.queues.iter().map(open).collect::<Result<Vec<_>, _>>();
        let mut descriptors = descriptors.map_err(WorkerError::Io)?;
        let journaled = self.keeps_journals().then_some(how);
        match (journaled, how) {
            (Some(how), _) => {
                let journals = launcher.journals.open(vbd, &ring, how);
                descriptors.extend(journals.map_err(WorkerError::Io)?);
            }
            // What it takes is in no journal, and what is in one is not true any more.
            (None, Journaled::Begin) => launcher.journals.remove(vbd),
            (None, Journaled::Resume) => {
                let text = format!("a worker of version {} knows no journals", self.version());
                return Err(WorkerError::Refused(text));
            }
        }
        let Offered { discard, bounds } = offered;
        // One that does not know them takes more than was offered, as it always did.
        let bounds = bounds.filter(|_| self.0.hello.protocol >= BOUNDS_SINCE);
        let ask = Ask::Connect { vbd, read_only, discard, ring, transfer, bounds, journaled };
        self.0.client.done("connect", ask, descriptors, CONNECT_DEADLINE).await
    }

    /// Whether it can leave what waits for space to the next worker.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.0.hello.leaves
    }

    /// Has it finish what it took off a ring and let go of the guest. What waits for space fails,
    /// or with `leave` is left to the next worker; only one that `leaves` is asked for that. True
    /// when all was answered.
    ///
    /// # Errors
    /// `Deadline` when the disk does not answer.
    pub async fn disconnect(&self, vbd: VbdId, leave: bool) -> Result<bool, WorkerError> {
        let ask = Ask::Disconnect { vbd, leave };
        match self.0.client.call("disconnect", ask, Vec::new(), DISCONNECT_DEADLINE).await? {
            Answer::Done => Ok(true),
            Answer::Left => Ok(false),
            _ => Err(WorkerError::Confused { what: "disconnect" }),
        }
    }

    /// All that it took of a ring is answered, and it will end. Should the daemon die before
    /// another serves the ring, the next one finds a journal in which nothing was taken.
    pub fn conclude(&self, vbd: VbdId, ring: &RingParameters) {
        if self.keeps_journals() {
            return;
        }
        fault::point!("a worker without journals has answered all that it took");
        if let Err(problem) = self.0.launcher.journals.open(vbd, ring, Journaled::Begin) {
            tracing::warn!(%vbd, "a restart of the daemon now would strand its guest: {problem}");
        }
        fault::point!("journals are made in which nothing was taken");
    }

    /// What it counted of its VBDs.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub async fn stat(&self) -> Result<Vec<VbdCounters>, WorkerError> {
        Ok(self.counted().await?.vbds)
    }

    /// The counters of its NBD server.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub async fn nbd(&self) -> Result<NbdCounters, WorkerError> {
        Ok(self.counted().await?.nbd)
    }

    /// All that it counted.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub async fn counted(&self) -> Result<Counted, WorkerError> {
        match self.0.client.call("stat", Ask::Stat, Vec::new(), STAT_DEADLINE).await? {
            Answer::Stat { vbds, nbd } => Ok(Counted { vbds, nbd }),
            _ => Err(WorkerError::Confused { what: "stat" }),
        }
    }

    /// How it ended, for people; `None` while it lives.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.0.end.borrow().clone()
    }

    /// Waits for its end; the answer tells how.
    pub async fn ended(&self) -> String {
        let mut end = self.0.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            Err(_) => "it is not watched any more".into(),
        }
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// Ends it: politely, then by force. The answer tells whether it ended by itself, all of its
    /// I/O done; after a kill the kernel may still be at it, so wait for the image's fence.
    ///
    /// # Errors
    /// It does not die: the kernel holds it in an I/O.
    pub async fn stop(&self) -> Result<bool, String> {
        self.0.stopping.store(true, Ordering::Release);
        let asked =
            self.0.client.done("shutdown", Ask::Shutdown, Vec::new(), SHUTDOWN_DEADLINE).await;
        fault::point!("a worker is told to end");
        let polite = match asked {
            Ok(()) => tokio::time::timeout(EXIT_DEADLINE, self.ended()).await.is_ok(),
            Err(error) => {
                if self.end().is_none() {
                    tracing::warn!(worker = self.id(), "does not shut down: {error}; it is killed");
                }
                false
            }
        };
        if !polite {
            self.0.process.kill();
            if tokio::time::timeout(KILL_DEADLINE, self.ended()).await.is_err() {
                return Err(format!(
                    "worker {} (pid {}) does not end: the kernel holds it in an I/O that does not \
                     come back. See what is wrong with the storage below (dmesg)",
                    self.id(),
                    self.pid()
                ));
            }
        }
        fault::point!("a worker has ended");
        spawn::remove_socket(Path::new(&self.0.row.socket));
        Ok(polite)
    }
}
