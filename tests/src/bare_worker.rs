//! A datapath worker without a daemon: this plays the daemon's part towards the worker, and just
//! enough of a back end's towards xenstore that a front end connects.
//!
//! For tests of the worker alone: its control protocol, its rings, its behaviour when it dies.

use crate::blkfront::{Blkfront, Options, state};
use crate::guest::Domain;
use crate::programs::{engine, program};
use crate::simhost::SimHost;
use crate::xenstore::Client;
use anyhow::{Context as _, bail, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zerotap_rpc_schema::worker::{
    Abi, Answer, Ask, DESCRIPTORS_MAX, Discard, ImageInfo, Journaled, PROTOCOL, QUEUES_MAX,
    QueueParameters, Reply, Request, RingParameters, VbdCounters, VbdId,
};

/// How long the worker may take to answer.
const ANSWER_SECONDS_MAX: u64 = 30;
/// What a file system's blocks are.
const DISCARD: Discard = Discard { granularity_bytes: 4096, alignment_bytes: 0 };
/// The first descriptor that the worker inherits beside the standard three.
const FIRST_FD: i32 = 3;

/// A worker process.
#[derive(Debug)]
pub struct BareWorker {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    sim_dir: PathBuf,
}

impl BareWorker {
    /// Starts a worker for `image`; its socket is made in `dir`.
    ///
    /// # Errors
    /// When the program is not built, or the image is not for direct I/O.
    pub fn start(
        host: &SimHost,
        dir: &Path,
        image: &Path,
        read_only: bool,
    ) -> anyhow::Result<BareWorker> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let image = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(direct)
            .open(image)
            .with_context(|| format!("open {} for direct I/O", image.display()))?;
        BareWorker::start_with(host, dir, image, read_only)
    }

    /// The same for an image that is open.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn start_with(
        host: &SimHost,
        dir: &Path,
        image: File,
        read_only: bool,
    ) -> anyhow::Result<BareWorker> {
        BareWorker::start_told(host, dir, image, read_only, None)
    }

    /// The same for a worker whose queues look before they sleep; `stat` tells how idle the host
    /// is.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn start_told(
        host: &SimHost,
        dir: &Path,
        image: File,
        read_only: bool,
        stat: Option<File>,
    ) -> anyhow::Result<BareWorker> {
        let socket = dir.join("worker.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        let given: [OwnedFd; 3] = [listener.into(), image.into(), File::open(host.dir())?.into()];
        let given = given.into_iter().chain(stat.map(OwnedFd::from));
        let mut command = Command::new(program("zerotap-datapath")?);
        command.args(["--id", "bare", "--host", "sim", "--engine", &engine()]);
        command.stdin(Stdio::null());
        if read_only {
            command.arg("--read-only");
        }
        let Discard { granularity_bytes, alignment_bytes } = DISCARD;
        command.args(["--discard", &format!("{granularity_bytes}:{alignment_bytes}")]);
        let names = ["--listener-fd", "--image-fd", "--gntdev-fd", "--stat-fd"];
        let mut mappings = Vec::new();
        for ((name, parent_fd), child_fd) in names.into_iter().zip(given).zip(FIRST_FD..) {
            command.args([name, &child_fd.to_string()]);
            mappings.push(FdMapping { parent_fd, child_fd });
        }
        command.fd_mappings(mappings)?;
        let log = dir.join("worker.log");
        command.stderr(File::create(&log)?);
        let child = command.spawn().context("start zerotap-datapath")?;
        Ok(BareWorker { child, log, socket, sim_dir: host.dir().to_owned() })
    }

    /// A new control connection, greeted.
    ///
    /// # Errors
    /// When the worker does not answer.
    pub fn control(&self) -> anyhow::Result<Control> {
        let mut control = Control::connect(&self.socket)?;
        match control.ask(Ask::Hello { protocol: PROTOCOL })? {
            Answer::Hello { image, .. } => control.image = Some(image),
            other => bail!("{other:?} instead of a hello"),
        }
        Ok(control)
    }

    /// The worker's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it logs to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects a ring in the worker.
    ///
    /// # Errors
    /// What the worker answers.
    pub fn connect(
        &self,
        control: &mut Control,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
    ) -> anyhow::Result<()> {
        self.connect_with(control, vbd, ring, read_only, &[])
    }

    /// The same with journals, one a queue, of rings that nothing was taken of; or with none.
    ///
    /// # Errors
    /// What the worker answers.
    pub fn connect_with(
        &self,
        control: &mut Control,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
        journals: &[File],
    ) -> anyhow::Result<()> {
        let open = |_| File::open(&self.sim_dir);
        let events = ring.queues.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let descriptors: Vec<_> = events.iter().chain(journals).map(File::as_fd).collect();
        let (discard, transfer, bounds) = (!read_only, None, None);
        let journaled = (!journals.is_empty()).then_some(Journaled::Begin);
        let ask = Ask::Connect { vbd, read_only, discard, ring, transfer, bounds, journaled };
        match control.ask_with(ask, &descriptors)? {
            Answer::Done => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// Connects a front end from offer to ring, in this thread.
    ///
    /// # Errors
    /// When either side does not play along.
    pub fn connect_front(
        &self,
        host: &SimHost,
        control: &mut Control,
        domain: Domain,
        options: Options,
        read_only: bool,
    ) -> anyhow::Result<(Blkfront, HandBackend)> {
        let vbd = VbdId { domid: domain.domid(), devid: options.devid };
        let image = control.image().context("say hello first")?;
        let mut backend = HandBackend::offer(host, vbd, &image)?;
        let mut front = Blkfront::announce(domain, options)?;
        front.publish()?;
        self.connect(control, vbd, backend.ring()?, read_only)?;
        backend.set_state(state::CONNECTED)?;
        front.adopt_offer()?;
        Ok((front, backend))
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait().context("wait for the worker")?;
        Ok(())
    }

    /// Waits until it has ended by itself; true when it says that all is well.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(&mut self) -> anyhow::Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(ANSWER_SECONDS_MAX);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            ensure!(Instant::now() < deadline, "the worker does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for BareWorker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("---- log of the worker ----\n{log}----");
        }
    }
}

/// A control connection to a worker.
#[derive(Debug)]
pub struct Control {
    reader: BufReader<UnixStream>,
    last_id: u64,
    image: Option<ImageInfo>,
}

impl Control {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: &Path) -> anyhow::Result<Control> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Control { reader: BufReader::new(stream), last_id: 0, image: None })
    }

    /// What the worker said of its image.
    #[must_use]
    pub fn image(&self) -> Option<ImageInfo> {
        self.image
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the worker hangs up or does not answer in time.
    pub fn ask(&mut self, ask: Ask) -> anyhow::Result<Answer> {
        self.ask_with(ask, &[])
    }

    /// Asks with descriptors.
    ///
    /// # Errors
    /// As [`Control::ask`].
    pub fn ask_with(&mut self, ask: Ask, fds: &[BorrowedFd<'_>]) -> anyhow::Result<Answer> {
        self.last_id += 1;
        let mut line = serde_json::to_vec(&Request { id: self.last_id, ask })?;
        line.push(b'\n');
        self.send(&line, fds)?;
        let reply = self.answer()?.context("the worker hung up")?;
        ensure!(reply.id == self.last_id, "answer {} to request {}", reply.id, self.last_id);
        Ok(reply.answer)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the worker hung up.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "no room");
        }
        let slices = [IoSlice::new(bytes)];
        let sent = sendmsg(self.reader.get_ref(), &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
        ensure!(sent == bytes.len(), "sent {sent} of {} bytes", bytes.len());
        Ok(())
    }

    /// The next answer; none when the worker hung up.
    ///
    /// # Errors
    /// When none comes in time, or it cannot be read.
    pub fn answer(&mut self) -> anyhow::Result<Option<Reply>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(e).context("the worker's answer"),
        }
    }

    /// The counters of one VBD.
    ///
    /// # Errors
    /// When the worker knows no such VBD.
    pub fn counters(&mut self, vbd: VbdId) -> anyhow::Result<VbdCounters> {
        match self.ask(Ask::Stat)? {
            Answer::Stat { vbds, .. } => {
                vbds.into_iter().find(|it| it.vbd == vbd).context("the worker knows no such VBD")
            }
            other => bail!("{other:?} instead of counters"),
        }
    }
}

/// A back end's part in xenstore, played by hand.
#[derive(Debug)]
pub struct HandBackend {
    dom0: Client,
    frontend: String,
    backend: String,
}

impl HandBackend {
    /// Makes both directories as a toolstack does, and offers `image` as a back end does: state 2.
    ///
    /// # Errors
    /// When xenstored refuses.
    pub fn offer(host: &SimHost, vbd: VbdId, image: &ImageInfo) -> anyhow::Result<HandBackend> {
        let (domid, devid) = (vbd.domid, vbd.devid);
        let frontend = format!("/local/domain/{domid}/device/vbd/{devid}");
        let backend = format!("/local/domain/0/backend/zerotap/{domid}/{devid}");
        let mut dom0 = host.toolstack()?;
        dom0.mkdir(&backend)?;
        dom0.set_perms(&backend, &["n0", &format!("r{domid}")])?;
        let info = 0;
        let discard = image.discard.unwrap_or(DISCARD);
        let offers = [
            ("max-ring-page-order", 4),
            ("multi-queue-max-queues", QUEUES_MAX as u64),
            ("feature-max-indirect-segments", 256),
            ("feature-persistent", 1),
            ("feature-flush-cache", 1),
            ("feature-barrier", 1),
            ("feature-discard", u64::from(image.discard.is_some())),
            ("discard-granularity", discard.granularity_bytes.into()),
            ("discard-alignment", discard.alignment_bytes.into()),
            ("info", info),
            ("sectors", image.sectors),
            ("sector-size", u64::from(image.sector_bytes)),
            ("physical-sector-size", u64::from(image.physical_sector_bytes)),
            ("state", u64::from(state::INIT_WAIT)),
        ];
        for (key, value) in offers {
            dom0.write(&format!("{backend}/{key}"), value)?;
        }
        dom0.mkdir(&frontend)?;
        dom0.set_perms(&frontend, &[&format!("n{domid}"), "r0"])?;
        dom0.write(&format!("{frontend}/backend"), &backend)?;
        dom0.write(&format!("{frontend}/backend-id"), 0)?;
        dom0.watch(&format!("{frontend}/state"), "front")?;
        dom0.write(&format!("{frontend}/state"), state::INITIALISING)?;
        Ok(HandBackend { dom0, frontend, backend })
    }

    /// Waits for the front end's state.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_front(&mut self, wanted: u32) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(ANSWER_SECONDS_MAX);
        while self.dom0.read(&format!("{}/state", self.frontend))? != wanted.to_string() {
            let event = self.dom0.event(deadline)?;
            event.with_context(|| format!("the front end does not reach state {wanted}"))?;
        }
        Ok(())
    }

    /// What the front end published.
    ///
    /// # Errors
    /// When it published nothing sensible.
    pub fn ring(&mut self) -> anyhow::Result<RingParameters> {
        let dir = self.frontend.clone();
        let mut read = |key: &str| self.dom0.read_optional(&format!("{dir}/{key}"));
        let order: Option<u32> = read("ring-page-order")?.map(|it| it.parse()).transpose()?;
        let count = read("multi-queue-num-queues")?.map_or(Ok(1), |it| it.parse::<usize>())?;
        let mut queues = Vec::new();
        for prefix in crate::blkfront::negotiate::queue_prefixes(count) {
            let mut number = |key: &str| -> anyhow::Result<u32> {
                let key = format!("{prefix}{key}");
                Ok(read(&key)?.with_context(|| format!("no {key}"))?.parse()?)
            };
            let ring_refs = match order {
                None => vec![number("ring-ref")?],
                Some(order) => (0..1 << order)
                    .map(|n| number(&format!("ring-ref{n}")))
                    .collect::<anyhow::Result<_>>()?,
            };
            queues.push(QueueParameters { ring_refs, port: number("event-channel")? });
        }
        let mut read = |key: &str| self.dom0.read(&format!("{dir}/{key}"));
        let protocol = match read("protocol")?.as_str() {
            "x86_64-abi" => Abi::X86_64,
            _ => Abi::X86_32,
        };
        let persistent = read("feature-persistent")? == "1";
        Ok(RingParameters { queues, protocol, persistent })
    }

    /// Writes the back end's state.
    ///
    /// # Errors
    /// When xenstored refuses.
    pub fn set_state(&mut self, state: u32) -> anyhow::Result<()> {
        self.dom0.write(&format!("{}/state", self.backend), state)
    }
}
