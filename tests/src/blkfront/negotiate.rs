//! What front and back end tell each other through xenstore before the first request.
//!
//! Source: xen `public/io/blkif.h` and Linux `drivers/block/xen-blkfront.c`.

use super::ring::FrontRing;
use super::{Blkfront, Queue, state};
use crate::xenstore::{Client, errno};
use crate::xenstored::wire::Errno;
use anyhow::{Context as _, ensure};
use std::ops::Range;
use std::time::{Duration, Instant};
use zerotap_datapath::ring::abi::{Abi, SEGMENTS_INLINE_MAX};
use zerotap_rpc_schema::worker::Discard;

/// How a front end wants to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The device's number.
    pub devid: u32,
    /// Log2 of the ring's pages; less when the back end offers less.
    pub ring_order: u32,
    /// Rings to make; fewer when the back end offers fewer.
    pub queues: usize,
    /// The layout of ring entries.
    pub abi: Abi,
    /// Whether to offer persistent grants.
    pub persistent: bool,
    /// The most segments of a request; above 11 only as indirect ones.
    pub segments_max: usize,
    /// Whether to compare ring slots with what was written there.
    pub checked: bool,
    /// How long a back end may take for a step of the negotiation.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            devid: 51712,
            ring_order: 0,
            queues: 1,
            abi: Abi::X86_64,
            persistent: true,
            segments_max: 256,
            checked: true,
            patience: Duration::from_secs(30),
        }
    }
}

/// What the back end offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    /// The logical sector, bytes.
    pub sector_bytes: u32,
    /// The physical sector, bytes.
    pub physical_sector_bytes: u32,
    /// Whether `info` says read-only.
    pub read_only: bool,
    /// Whether both ends keep grants.
    pub persistent: bool,
    /// The most segments of a request that both ends want.
    pub segments_max: usize,
    /// Log2 of the ring's pages that were used.
    pub ring_order: u32,
    /// Rings that were made.
    pub queues: usize,
    /// Whether flushes are offered.
    pub flush: bool,
    /// Whether barriers are offered.
    pub barrier: bool,
    /// In which units ranges can be forgotten.
    pub discard: Option<Discard>,
}

impl Disk {
    /// Which of `sectors` a discard of them forgets: whole units.
    #[must_use]
    pub fn forgets(&self, sectors: &Range<u64>) -> Range<u64> {
        let Some(Discard { granularity_bytes, alignment_bytes }) = self.discard else {
            return 0..0;
        };
        let (unit, first) = (u64::from(granularity_bytes / 512), u64::from(alignment_bytes / 512));
        let units = (first..sectors.end).step_by(unit.max(1) as usize);
        let mut whole = units.filter(|&at| at >= sectors.start && at + unit <= sectors.end);
        let start = whole.next();
        let last = whole.last().or(start);
        start.zip(last).map_or(0..0, |(start, last)| start..last + unit)
    }
}

/// Where the keys of `count` queues stand in the front end's directory.
#[must_use]
pub fn queue_prefixes(count: usize) -> Vec<String> {
    if count == 1 {
        return vec![String::new()];
    }
    (0..count).map(|number| format!("queue-{number}/")).collect()
}

const INFO_READ_ONLY: u32 = 4;

/// Waits until the toolstack has made the device; answers the back end's directory.
pub(super) fn backend_dir(
    xenstore: &mut Client,
    dir: &str,
    patience: Duration,
) -> anyhow::Result<String> {
    let deadline = Instant::now() + patience;
    xenstore.watch(dir, "device")?;
    loop {
        // Before the directory is the guest's own, looking at it is refused.
        let complete = |xenstore: &mut Client| -> anyhow::Result<String> {
            xenstore.read(&format!("{dir}/state"))?;
            xenstore.read(&format!("{dir}/backend"))
        };
        match complete(xenstore) {
            Ok(backend) => return Ok(backend),
            Err(e) if matches!(errno(&e), Some(Errno::ENOENT | Errno::EACCES)) => {}
            Err(e) => return Err(e),
        }
        xenstore
            .event(deadline)?
            .with_context(|| format!("no {dir} appeared within {patience:?}"))?;
    }
}

/// A directory's state; closed when it is gone.
pub(super) fn read_state(xenstore: &mut Client, dir: &str) -> anyhow::Result<u32> {
    match xenstore.read(&format!("{dir}/state")) {
        Ok(text) => text.parse().with_context(|| format!("{dir}/state is {text:?}")),
        Err(e) if matches!(errno(&e), Some(Errno::ENOENT | Errno::EACCES)) => Ok(state::CLOSED),
        Err(e) => Err(e),
    }
}

fn number<T: std::str::FromStr>(
    xenstore: &mut Client,
    dir: &str,
    key: &str,
    default: Option<T>,
) -> anyhow::Result<T> {
    match xenstore.read_optional(&format!("{dir}/{key}"))? {
        Some(text) => {
            text.parse().ok().with_context(|| format!("the back end's {key} is {text:?}"))
        }
        None => default.with_context(|| format!("the back end did not write {key}")),
    }
}

impl Blkfront {
    /// From both ends in state 1 (or the back end in 2) to both in 4.
    ///
    /// # Errors
    /// When the back end does not play along in time.
    pub fn negotiate(&mut self) -> anyhow::Result<()> {
        self.wait_backend(&[state::INIT_WAIT])?;
        self.publish()?;
        self.wait_backend(&[state::CONNECTED])?;
        self.adopt_offer()?;
        self.set_state(state::CONNECTED)
    }

    /// Makes a ring, writes what the back end needs and state 3.
    ///
    /// # Errors
    /// When memory or xenstored fail.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        let offered = number(&mut self.xenstore, &self.backend, "max-ring-page-order", Some(0))?;
        let order = self.options.ring_order.min(offered);
        let offered = number(&mut self.xenstore, &self.backend, "multi-queue-max-queues", Some(1))?;
        let count = self.options.queues.min(offered);
        let queues = (0..count).map(|_| self.queue(order)).collect::<anyhow::Result<Vec<_>>>()?;
        self.disk.ring_order = order;
        self.disk.queues = count;
        let entries = queues[0].ring.entries() as usize;
        // Slots of one queue stand together; those taken first are of different queues.
        self.free_slots = (0..entries * count).rev().collect();
        self.free_slots.sort_by_key(|slot| std::cmp::Reverse(slot % entries));
        self.free_slots.retain(|&slot| self.flights.get(slot).is_none_or(Option::is_none));
        self.flights.resize_with(entries * count, || None);

        let (dir, options) = (&self.dir, &self.options);
        self.xenstore.transaction(|xenstore| {
            if order == 0 {
                // As Linux: without the key, one page.
                let _ = xenstore.remove(&format!("{dir}/ring-page-order"));
            } else {
                xenstore.write(&format!("{dir}/ring-page-order"), order)?;
            }
            if count > 1 {
                xenstore.write(&format!("{dir}/multi-queue-num-queues"), count)?;
            }
            for (prefix, queue) in queue_prefixes(count).iter().zip(&queues) {
                let dir = format!("{dir}/{prefix}");
                for (n, gref) in queue.ring_grefs.iter().enumerate() {
                    let name = if order == 0 { String::new() } else { n.to_string() };
                    xenstore.write(&format!("{dir}ring-ref{name}"), gref)?;
                }
                xenstore.write(&format!("{dir}event-channel"), queue.port.number())?;
            }
            let protocol = match options.abi {
                Abi::X86_64 => "x86_64-abi",
                Abi::X86_32 => "x86_32-abi",
            };
            xenstore.write(&format!("{dir}/protocol"), protocol)?;
            let persistent = u32::from(options.persistent);
            xenstore.write(&format!("{dir}/feature-persistent"), persistent)?;
            xenstore.write(&format!("{dir}/state"), state::INITIALISED)
        })?;
        self.queues = queues;
        Ok(())
    }

    /// A ring of 2^`order` pages, granted, and a port.
    fn queue(&mut self, order: u32) -> anyhow::Result<Queue> {
        let frames =
            (0..1 << order).map(|_| self.domain.frame()).collect::<anyhow::Result<Vec<_>>>()?;
        let grant = |frame: &u32| self.domain.grant(*frame, false);
        let ring_grefs = frames.iter().map(grant).collect::<anyhow::Result<Vec<_>>>()?;
        let ring =
            FrontRing::new(self.domain.memory(), frames, self.options.abi, self.options.checked);
        Ok(Queue { ring, ring_grefs, port: self.domain.port()? })
    }

    /// What Linux does when the back end writes its state 4 again: looks at `sectors` alone. True
    /// when the disk has grown.
    ///
    /// # Errors
    /// When it is not there, or the disk has shrunk.
    pub fn notice_growth(&mut self) -> anyhow::Result<bool> {
        let sectors = number(&mut self.xenstore, &self.backend, "sectors", None)?;
        let before = std::mem::replace(&mut self.disk.sectors, sectors);
        ensure!(sectors >= before, "the disk has shrunk from {before} to {sectors} sectors");
        Ok(sectors > before)
    }

    /// Reads what the back end published before state 4.
    ///
    /// # Errors
    /// When something is missing or impossible.
    pub fn adopt_offer(&mut self) -> anyhow::Result<()> {
        let (xenstore, dir) = (&mut self.xenstore, &self.backend);
        let mut flag = |key| Ok::<_, anyhow::Error>(number(xenstore, dir, key, Some(0u32))? != 0);
        let (flush, barrier) = (flag("feature-flush-cache")?, flag("feature-barrier")?);
        let discards = flag("feature-discard")?;
        let persistent = flag("feature-persistent")? && self.options.persistent;
        let info: u32 = number(xenstore, dir, "info", None)?;
        let sector_bytes = number(xenstore, dir, "sector-size", None)?;
        let indirect: usize =
            number(xenstore, dir, "feature-max-indirect-segments", Some(SEGMENTS_INLINE_MAX))?;
        let disk = Disk {
            sectors: number(xenstore, dir, "sectors", None)?,
            sector_bytes,
            physical_sector_bytes: number(
                xenstore,
                dir,
                "physical-sector-size",
                Some(sector_bytes),
            )?,
            read_only: info & INFO_READ_ONLY != 0,
            persistent,
            segments_max: indirect.max(SEGMENTS_INLINE_MAX).min(self.options.segments_max),
            ring_order: self.disk.ring_order,
            queues: self.disk.queues,
            flush,
            barrier,
            discard: discards
                .then(|| {
                    Ok::<_, anyhow::Error>(Discard {
                        granularity_bytes: number(xenstore, dir, "discard-granularity", None)?,
                        alignment_bytes: number(xenstore, dir, "discard-alignment", None)?,
                    })
                })
                .transpose()?,
        };
        let whole = disk.sector_bytes >= 512
            && disk.sector_bytes.is_power_of_two()
            && (disk.sectors * 512).is_multiple_of(u64::from(disk.physical_sector_bytes));
        ensure!(whole, "the back end offers an impossible disk: {disk:?}");
        self.disk = disk;
        Ok(())
    }
}
