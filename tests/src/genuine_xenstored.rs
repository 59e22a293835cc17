//! The genuine C xenstored of Debian's Xen packages, run without a hypervisor and without root.
//!
//! The packages are downloaded with apt into a cache below the target directory and unpacked there;
//! nothing is installed. A stand-in for the hypervisor's libraries (`tests/xenstored/standin.c`) is
//! compiled beside them. A test that needs this and cannot have it fails, naming what is missing.

use anyhow::{Context, bail, ensure};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What is downloaded: xenstored, the libraries that it is linked with, and the headers.
const PACKAGES: &[&str] = &[
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxen-dev",
    "libxenevtchn1",
    "libxengnttab1",
    "libxencall1",
    "libxenforeignmemory1",
    "libxentoollog1",
    "libxendevicemodel1",
    "libxentoolcore1",
    "libxenhypfs1",
    "libxenstore4",
];
const START_DEADLINE: Duration = Duration::from_secs(10);
const PAGE_BYTES: usize = 4096;
/// The stand-in's port for «a domain died».
const VIRQ_PORT: u32 = 1;
/// The stand-in's port for domain 0; the others follow.
const DOMAIN_PORT: u32 = 0x100;

/// Files unpacked and compiled once a target directory.
struct Kit {
    unpacked: PathBuf,
    standin: PathBuf,
}

impl Kit {
    /// Makes the kit, or finds it made. One process makes it, others wait.
    fn get() -> anyhow::Result<Self> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| tests.join("../target"), PathBuf::from);
        let cache = target.join("genuine-xenstored");
        fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
        let cache = cache.canonicalize()?;
        let lock = File::create(cache.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let unpacked = cache.join("unpacked");
        if !unpacked.exists() {
            download(&cache).context(
                "the genuine xenstored comes from Debian 12's packages by `apt-get download`; it \
                 needs the network once, and package lists: run `apt-get update` as root",
            )?;
        }
        let standin = compile(&cache, &unpacked, &tests.join("xenstored/standin.c"))?;
        Ok(Kit { unpacked, standin })
    }
}

fn download(cache: &Path) -> anyhow::Result<()> {
    let debs = cache.join("debs");
    fs::create_dir_all(&debs)?;
    run(Command::new("apt-get").arg("download").args(PACKAGES).current_dir(&debs), "apt")?;
    let part = cache.join("unpacked.part");
    let _ = fs::remove_dir_all(&part);
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&part), "dpkg")?;
    }
    fs::rename(part, cache.join("unpacked"))?;
    fs::remove_dir_all(debs)?;
    Ok(())
}

/// Compiles the stand-in, unless what is there is younger than its source.
fn compile(cache: &Path, unpacked: &Path, source: &Path) -> anyhow::Result<PathBuf> {
    let standin = cache.join("standin.so");
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified());
    if modified(&standin).is_ok_and(|made| modified(source).is_ok_and(|wrote| made > wrote)) {
        return Ok(standin);
    }
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall"]).arg("-I").arg(unpacked.join("usr/include"));
    run(cc.arg(source).arg("-o").arg(&standin).arg("-ldl"), "gcc")?;
    Ok(standin)
}

fn run(command: &mut Command, package: &str) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.with_context(|| format!("run {program}: is package {package} installed?"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {said}");
    Ok(())
}

/// A xenstored, running; killed when dropped.
pub struct GenuineXenstored {
    child: Child,
    directory: tempfile::TempDir,
}

impl GenuineXenstored {
    /// Starts one in a directory of its own, empty but for `/local/domain/0/domid`.
    ///
    /// # Errors
    /// What cannot be downloaded, compiled or started, and how to help.
    pub fn start() -> anyhow::Result<Self> {
        let kit = Kit::get()?;
        let directory = tempfile::tempdir()?;
        let world = directory.path();
        fs::write(world.join("xsd_port"), "1")?;
        fs::write(world.join("xsd_kva"), [0; PAGE_BYTES])?;
        let child = Command::new(kit.unpacked.join("usr/lib/xen-4.17/bin/xenstored"))
            .args(["-N", "-F"])
            .arg(world.join("pid"))
            .env("LD_LIBRARY_PATH", kit.unpacked.join("usr/lib/x86_64-linux-gnu"))
            .env("LD_PRELOAD", &kit.standin)
            .env_remove("XENSTORED_PATH")
            .env("XENSTORED_STANDIN", world)
            .env("XENSTORED_RUNDIR", world)
            .env("XENSTORED_ROOTDIR", world)
            .stdin(Stdio::null())
            .stdout(File::create(world.join("out"))?)
            .stderr(File::create(world.join("err"))?)
            .spawn()
            .context("start xenstored")?;
        let mut xenstored = GenuineXenstored { child, directory };
        xenstored.wait_until_ready()?;
        xenstored.write("/local/domain/0/domid", "0")?;
        Ok(xenstored)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while UnixStream::connect(self.socket()).is_err() {
            let world = self.directory.path();
            let said = || fs::read_to_string(world.join("err")).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("xenstored ended, {status}: {}", said());
            }
            ensure!(Instant::now() < deadline, "xenstored does not open its socket: {}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its socket: what `XENSTORED_PATH` should say. Who connects counts as domain 0.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Stops it from answering without closing anything; `false` lets it go on.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("pid 0")?;
        Ok(kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT })?)
    }

    /// Does one request as domain 0, for example `(2, b"/local/domain/0/domid\0")` to read.
    ///
    /// # Errors
    /// When the connection fails, or with xenstored's own word, for example `ENOENT`.
    pub fn request(&self, kind: u32, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.write_all(&message(kind, payload)?)?;
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let mut answer = vec![0; word(&header, 12) as usize];
        stream.read_exact(&mut answer)?;
        accept(word(&header, 0), answer)
    }

    /// Writes a node as domain 0.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn write(&self, path: &str, value: &str) -> anyhow::Result<()> {
        self.request(11, format!("{path}\0{value}").as_bytes()).map(drop)
    }

    /// Removes a node as domain 0.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn remove(&self, path: &str) -> anyhow::Result<()> {
        self.request(13, format!("{path}\0").as_bytes()).map(drop)
    }

    /// Reads a node as domain 0.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn read(&self, path: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.request(2, format!("{path}\0").as_bytes())?)?)
    }

    /// The permissions of a node, for example `n0 r1`.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn permissions(&self, path: &str) -> anyhow::Result<String> {
        let answer = String::from_utf8(self.request(3, format!("{path}\0").as_bytes())?)?;
        Ok(answer.trim_end_matches('\0').replace('\0', " "))
    }

    /// Makes a domain as a toolstack does: it lives, xenstored knows it, it owns nothing but may
    /// read its home.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn introduce(&self, domid: u16) -> anyhow::Result<GenuineGuest> {
        let world = self.directory.path();
        fs::write(world.join(format!("domain.{domid}")), "")?;
        let ring = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(world.join(format!("ring.{domid}")))?;
        ring.write_all_at(&[0; PAGE_BYTES], 0)?;
        let events = UnixDatagram::bind(world.join(format!("events.{domid}")))?;
        events.set_read_timeout(Some(Duration::from_millis(20)))?;
        // Before any permission that names it: xenstored drops those of unknown domains (XSA-322).
        self.request(8, format!("{domid}\x001\x007\0").as_bytes()).context("introduce")?;
        let home = format!("/local/domain/{domid}");
        self.request(12, format!("{home}\0").as_bytes()).context("make its home")?;
        self.request(14, format!("{home}\0n0\0r{domid}\0").as_bytes()).context("permit")?;
        Ok(GenuineGuest { ring, events, xenstored: world.join("events"), domid })
    }

    /// Lets a domain die, closing nothing.
    ///
    /// # Errors
    /// When the stand-in's files cannot be changed.
    pub fn kill_domain(&self, domid: u16) -> anyhow::Result<()> {
        let world = self.directory.path();
        fs::remove_file(world.join(format!("domain.{domid}")))?;
        let bell = UnixDatagram::unbound()?;
        bell.send_to(&VIRQ_PORT.to_ne_bytes(), world.join("events"))?;
        Ok(())
    }
}

impl Drop for GenuineXenstored {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

/// A guest's own connection to xenstored, on its ring: with a guest's rights.
pub struct GenuineGuest {
    ring: File,
    events: UnixDatagram,
    xenstored: PathBuf,
    domid: u16,
}

/// Where the ring page holds what (xen/include/public/io/xs_wire.h): two rings of 1024 bytes, then
/// the indices.
const ANSWERS_AT: u64 = 1024;
const REQUEST_CONSUMER_AT: u64 = 2048;
const REQUEST_PRODUCER_AT: u64 = 2052;
const ANSWER_CONSUMER_AT: u64 = 2056;
const ANSWER_PRODUCER_AT: u64 = 2060;
const RING_BYTES: u32 = 1024;
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

impl GenuineGuest {
    /// Writes a node as the guest.
    ///
    /// # Errors
    /// xenstored's own word, for example `EACCES`.
    pub fn write(&self, path: &str, value: &str) -> anyhow::Result<()> {
        self.request(11, format!("{path}\0{value}").as_bytes()).map(drop)
    }

    /// Reads a node as the guest.
    ///
    /// # Errors
    /// xenstored's own word, for example `EACCES`.
    pub fn read(&self, path: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.request(2, format!("{path}\0").as_bytes())?)?)
    }

    fn request(&self, kind: u32, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.send(&message(kind, payload)?)?;
        let header = self.receive(16)?;
        let answer = self.receive(word(&header, 12))?;
        accept(word(&header, 0), answer)
    }

    fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut produced = self.index(REQUEST_PRODUCER_AT)?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        for byte in bytes {
            while produced.wrapping_sub(self.index(REQUEST_CONSUMER_AT)?) == RING_BYTES {
                ensure!(Instant::now() < deadline, "xenstored does not read the ring");
                self.kick()?;
                self.wait();
            }
            self.ring.write_all_at(&[*byte], u64::from(produced % RING_BYTES))?;
            produced = produced.wrapping_add(1);
            self.ring.write_all_at(&produced.to_ne_bytes(), REQUEST_PRODUCER_AT)?;
        }
        self.kick()
    }

    fn receive(&self, count: u32) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut consumed = self.index(ANSWER_CONSUMER_AT)?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        for _ in 0..count {
            while consumed == self.index(ANSWER_PRODUCER_AT)? {
                ensure!(Instant::now() < deadline, "xenstored does not answer on the ring");
                self.wait();
            }
            let mut byte = [0];
            self.ring.read_exact_at(&mut byte, ANSWERS_AT + u64::from(consumed % RING_BYTES))?;
            bytes.push(byte[0]);
            consumed = consumed.wrapping_add(1);
            self.ring.write_all_at(&consumed.to_ne_bytes(), ANSWER_CONSUMER_AT)?;
        }
        self.kick()?;
        Ok(bytes)
    }

    fn index(&self, at: u64) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        self.ring.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn kick(&self) -> anyhow::Result<()> {
        let port = DOMAIN_PORT + u32::from(self.domid);
        self.events.send_to(&port.to_ne_bytes(), &self.xenstored)?;
        Ok(())
    }

    /// Until an event, or for a while: an event says only that looking is worth it.
    fn wait(&self) {
        let _ = self.events.recv(&mut [0; 4]);
    }
}

fn message(kind: u32, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let words = [kind, 1, 0, u32::try_from(payload.len())?];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

fn accept(kind: u32, answer: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    ensure!(kind != 16, "{}", String::from_utf8_lossy(&answer).trim_end_matches('\0'));
    Ok(answer)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_and_knows_guests() {
        let xenstored = GenuineXenstored::start().unwrap();
        let guest = xenstored.introduce(3).unwrap();
        xenstored.write("/local/domain/3/name", "three").unwrap();
        assert_eq!(guest.read("name").unwrap(), "three");
        let refused = guest.write("name", "four").unwrap_err().to_string();
        assert_eq!(refused, "EACCES");
        xenstored.kill_domain(3).unwrap();
    }
}
