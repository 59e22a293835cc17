//! A disk as NBD clients see it, and the smallest client: for what well-behaved ones never send.

use super::{Disk, Rpc};
use anyhow::Context as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use zerotap_rpc_schema::smapi2::Implementation;
use zerotap_rpc_schema::table;

/// How long a client waits for the server.
const DEADLINE: Duration = Duration::from_secs(20);
const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";

/// Where a disk is served.
#[derive(Debug, Clone)]
pub struct Place {
    /// The socket.
    pub socket: PathBuf,
    /// The export's name.
    pub name: String,
}

impl Place {
    /// As QEMU writes it, and as attach answers it.
    #[must_use]
    pub fn qemu(&self) -> String {
        format!("nbd:unix:{}:exportname={}", self.socket.display(), self.name)
    }

    /// As libnbd writes it (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, self.socket.display())
    }
}

impl Disk {
    /// Where it is served, as the attach answered.
    ///
    /// # Errors
    /// What the daemon answers, or that there is no NBD among it.
    pub fn nbd(&self, rpc: &Rpc) -> anyhow::Result<Place> {
        let backend = rpc.call::<table::DpAttachInfo>(&self.params())?;
        let uri = backend.implementations.iter().find_map(|way| match way {
            Implementation::Nbd(nbd) => Some(nbd.uri.clone()),
            _ => None,
        });
        let uri = uri.context("no Nbd among the implementations")?;
        let parts: Vec<&str> = uri.split(':').collect();
        let [_, _, socket, name] = parts[..] else { anyhow::bail!("{uri}: not four parts") };
        let name = name.strip_prefix("exportname=").context("no export's name")?;
        Ok(Place { socket: socket.into(), name: name.into() })
    }

    /// The counters of its worker's NBD server.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn nbd_counters(
        &self,
        rpc: &Rpc,
    ) -> anyhow::Result<zerotap_rpc_schema::worker::NbdCounters> {
        self.worker(rpc)?.nbd.context("a worker that serves tells its NBD counters")
    }
}

/// A client by hand.
#[derive(Debug)]
pub struct Client(pub UnixStream);

impl Client {
    /// Connects, and is greeted.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(place: &Place) -> anyhow::Result<Client> {
        let stream = UnixStream::connect(&place.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut client = Client(stream);
        anyhow::ensure!(&client.take::<8>()? == b"NBDMAGIC" && client.take::<8>()? == *IHAVEOPT);
        client.take::<2>()?;
        Ok(client)
    }

    /// Connects and chooses the export with EXPORT_NAME; answers its size and flags too.
    ///
    /// # Errors
    /// When the server does not serve it.
    pub fn open(place: &Place) -> anyhow::Result<(Client, u64, u16)> {
        let mut client = Client::connect(place)?;
        // Fixed newstyle, no zeroes.
        client.say(&[&3u32.to_be_bytes()])?;
        client.option(1, place.name.as_bytes())?;
        let size = u64::from_be_bytes(client.take()?);
        let flags = u16::from_be_bytes(client.take()?);
        Ok((client, size, flags))
    }

    /// Sends an option.
    ///
    /// # Errors
    /// When the server takes nothing.
    pub fn option(&mut self, option: u32, data: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(data.len())?.to_be_bytes();
        self.say(&[IHAVEOPT, &option.to_be_bytes(), &length, data])
    }

    /// Sends a request's header.
    ///
    /// # Errors
    /// When the server takes nothing.
    pub fn ask(&mut self, command: u16, cookie: u64, from: u64, bytes: u32) -> anyhow::Result<()> {
        let magic = 0x2560_9513u32.to_be_bytes();
        let flags_and_command = [0u16.to_be_bytes(), command.to_be_bytes()].concat();
        let place = [&cookie.to_be_bytes()[..], &from.to_be_bytes(), &bytes.to_be_bytes()].concat();
        self.say(&[&magic, &flags_and_command, &place])
    }

    /// Takes a simple reply: its error and cookie.
    ///
    /// # Errors
    /// When there is none.
    pub fn reply(&mut self) -> anyhow::Result<(u32, u64)> {
        anyhow::ensure!(u32::from_be_bytes(self.take()?) == 0x6744_6698, "a simple reply");
        Ok((u32::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?)))
    }

    /// Sends.
    ///
    /// # Errors
    /// When the server takes nothing.
    pub fn say(&mut self, parts: &[&[u8]]) -> anyhow::Result<()> {
        self.0.write_all(&parts.concat()).map_err(Into::into)
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// When they do not come.
    pub fn take<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the server has hung up: waits for it.
    #[must_use]
    pub fn is_hung_up_on(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
