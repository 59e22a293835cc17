//! What a guest asks of its disks, and what it makes of the answers.

use super::History;
use super::front::Segment;
use super::oracle::{Flush, content};
use super::vdi::{Kind, Pending};
use crate::engine::simulated::SECTOR_BYTES;
use crate::ring::abi::{
    OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, SEGMENTS_INLINE_MAX, STATUS_ERROR,
    STATUS_OKAY,
};
use crate::ring::shared::PAGE_BYTES;
use std::ops::Range;

/// What stands in a page before it is read into.
const CANARY: u8 = 0xc5;
const SECTORS_PER_PAGE: usize = PAGE_BYTES / SECTOR_BYTES;
const BEYOND: u64 = 1 << 40;

impl History<'_> {
    /// One request of the guest's, if there is room for it.
    pub(super) fn ask(&mut self, vdi: usize) {
        let queue = self.random.below(self.vdis[vdi].fronts.len());
        if self.vdis[vdi].fronts[queue].full() {
            return;
        }
        let kind = match self.random.below(100) {
            0..45 => Kind::Write,
            45..70 => Kind::Read,
            70..82 => Kind::Flush,
            82..90 => Kind::Barrier,
            90..97 => Kind::Discard,
            _ => Kind::Wrong,
        };
        self.now += 1;
        self.tally.requests += 1;
        let id = self.now;
        match kind {
            Kind::Flush => self.ask_flush(vdi, queue, id),
            Kind::Discard => self.ask_discard(vdi, queue, id),
            _ => self.ask_data(vdi, queue, id, kind),
        }
    }

    fn remember(&mut self, vdi: usize, kind: Kind, queue: usize, sectors: Range<usize>) {
        let (segments, indirect, asked) = (Vec::new(), None, self.now);
        let pending = Pending { kind, queue, sectors, segments, indirect, asked };
        self.vdis[vdi].pending.insert(asked, pending);
    }

    fn ask_flush(&mut self, vdi: usize, queue: usize, id: u64) {
        self.remember(vdi, Kind::Flush, queue, 0..0);
        self.vdis[vdi].fronts[queue].data(OP_FLUSH_DISKCACHE, id, 0, &[], None);
    }

    fn ask_discard(&mut self, vdi: usize, queue: usize, id: u64) {
        let own = &self.vdis[vdi];
        let (block, blocks) = (own.block_sectors, own.oracle.sectors() / own.block_sectors);
        let first = self.random.below(blocks);
        let count = 1 + self.random.below((blocks - first).min(24));
        let (start, sectors) = (first * block, count * block);
        // What is forgotten: whole units.
        let unit = SECTORS_PER_PAGE;
        let units = start.next_multiple_of(unit)..(start + sectors) / unit * unit;
        let units = units.start..units.end.max(units.start);
        if own.busy(&units) {
            return;
        }
        self.vdis[vdi].oracle.asked(units.clone(), 0, queue, id);
        self.remember(vdi, Kind::Discard, queue, units);
        self.vdis[vdi].fronts[queue].discard(id, start as u64, sectors as u64);
    }

    /// Pieces of pages; the guest's memory may have run out.
    fn segments(&mut self, count: usize, block: usize) -> Option<Vec<Segment>> {
        if self.pages.len() <= count {
            return None;
        }
        let segment = |_| {
            let page = self.pages.swap_remove(self.random.below(self.pages.len()));
            let blocks = SECTORS_PER_PAGE / block;
            let first = if self.random.chance(50) { 0 } else { self.random.below(blocks) };
            let whole = self.random.chance(60);
            let count = if whole { blocks - first } else { 1 + self.random.below(blocks - first) };
            let (first, last) = (first * block, (first + count) * block - 1);
            (page, u8::try_from(first).expect("below 8"), u8::try_from(last).expect("below 8"))
        };
        Some((0..count).map(segment).collect())
    }

    fn ask_data(&mut self, vdi: usize, queue: usize, id: u64, kind: Kind) {
        let count = match kind {
            Kind::Barrier if self.random.chance(30) => 0,
            Kind::Read | Kind::Write if self.random.chance(8) => 8 + self.random.below(12),
            _ => 1 + self.random.below(3),
        };
        let block = self.vdis[vdi].block_sectors;
        let Some(segments) = self.segments(count, block) else { return };
        let length = segments.iter().map(|(_, first, last)| usize::from(last - first) + 1).sum();
        let capacity: usize = self.vdis[vdi].oracle.sectors();
        let start = match capacity.checked_sub(length) {
            Some(room) => self.random.below(room / block + 1) * block,
            None => capacity,
        };
        let sectors = if kind == Kind::Wrong { 0..0 } else { start..start + length };
        if start == capacity || self.vdis[vdi].busy(&sectors) {
            self.pages.extend(segments.iter().map(|segment| segment.0));
            return;
        }
        let data = matches!(kind, Kind::Read | Kind::Write);
        let indirect = (data && (count > SEGMENTS_INLINE_MAX || self.random.chance(10)))
            .then(|| self.pages.pop().expect("one was left"));
        self.fill(vdi, kind, start, &segments, id);
        if matches!(kind, Kind::Write | Kind::Barrier) {
            self.vdis[vdi].oracle.asked(sectors.clone(), id, queue, id);
        }
        let (operation, sector) = match kind {
            Kind::Read => (OP_READ, start as u64),
            Kind::Barrier => (OP_WRITE_BARRIER, start as u64),
            Kind::Wrong => (OP_WRITE, BEYOND),
            _ => (OP_WRITE, start as u64),
        };
        self.vdis[vdi].fronts[queue].data(operation, id, sector, &segments, indirect);
        let pending = Pending { kind, queue, sectors, segments, indirect, asked: id };
        self.vdis[vdi].pending.insert(id, pending);
    }

    /// Puts into the pages what is to be written; before a read, what the disk never holds.
    fn fill(&mut self, vdi: usize, kind: Kind, start: usize, segments: &[Segment], id: u64) {
        let mut sector = start;
        for &(page, first, last) in segments {
            let page = page as usize * PAGE_BYTES;
            self.site.memory.copy_in(page, &[CANARY; PAGE_BYTES]);
            if kind == Kind::Read {
                continue;
            }
            for place in usize::from(first)..=usize::from(last) {
                let bytes = content(vdi as u64, sector, id);
                self.site.memory.copy_in(page + place * SECTOR_BYTES, &bytes);
                sector += 1;
            }
        }
    }

    /// Takes the answers that the guest was told of.
    pub(super) fn collect(&mut self, vdi: usize) -> Result<(), String> {
        let fronts = &mut self.vdis[vdi].fronts;
        let answers: Vec<_> = fronts.iter_mut().flat_map(super::front::Front::answers).collect();
        self.now += 1;
        let mut flushes = Vec::new();
        for (id, status) in answers {
            let Some(pending) = self.vdis[vdi].pending.remove(&id) else {
                return Err(format!("request {id} was answered twice, or never asked"));
            };
            let excused = self.trouble_percent > 0 && status == STATUS_ERROR;
            match (pending.kind, status) {
                (Kind::Wrong, STATUS_ERROR) => {}
                (Kind::Wrong, _) => return Err(format!("request {id} left the disk")),
                (_, STATUS_OKAY) => self.succeeded(vdi, &pending, &mut flushes)?,
                _ if excused => {}
                _ => return Err(format!("{pending:?} was answered {status}")),
            }
            self.pages.extend(pending.segments.iter().map(|segment| segment.0));
            self.pages.extend(pending.indirect);
        }
        for flush in flushes {
            self.vdis[vdi].oracle.flushed(flush);
        }
        Ok(())
    }

    fn succeeded(
        &mut self,
        vdi: usize,
        pending: &Pending,
        flushes: &mut Vec<Flush>,
    ) -> Result<(), String> {
        let (now, asked, sectors) = (self.now, pending.asked, pending.sectors.clone());
        let oracle = &mut self.vdis[vdi].oracle;
        match pending.kind {
            Kind::Write | Kind::Discard => oracle.told(sectors, now),
            Kind::Flush => flushes.push(Flush { asked, barrier: None }),
            Kind::Barrier => {
                oracle.told(sectors, now);
                flushes.push(Flush { asked, barrier: Some(pending.queue) });
            }
            Kind::Read => {
                let bytes = self.taken(&pending.segments)?;
                self.vdis[vdi].oracle.check_read(sectors.start, &bytes)?;
            }
            Kind::Wrong => {}
        }
        Ok(())
    }

    /// What was read into these pieces; nothing may have been written beside them.
    fn taken(&self, segments: &[Segment]) -> Result<Vec<u8>, String> {
        let mut taken = Vec::new();
        for &(page, first, last) in segments {
            let mut bytes = [0; PAGE_BYTES];
            self.site.memory.copy_out(page as usize * PAGE_BYTES, &mut bytes);
            let own = usize::from(first) * SECTOR_BYTES..(usize::from(last) + 1) * SECTOR_BYTES;
            let beside = [&bytes[..own.start], &bytes[own.end..]].concat();
            if beside.iter().any(|byte| *byte != CANARY) {
                return Err(format!("page {page} was written beside what was asked for"));
            }
            taken.extend_from_slice(&bytes[own]);
        }
        Ok(taken)
    }
}
