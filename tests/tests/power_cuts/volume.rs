//! What a volume may hold: of all that was written, what was flushed or snapshot must be there.

use anyhow::ensure;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use zerotap_tests::workload::model::mix;

/// Bytes that are written at a time.
pub(crate) const BLOCK: usize = 4096;

/// A volume, as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    /// Its key in the SR.
    pub(crate) key: String,
    /// By block the writes that it may hold, from the durable one on; 0 is none.
    blocks: Vec<Vec<u64>>,
    /// A size that it may have instead, by blocks: it was being resized.
    pub(crate) or_blocks: Option<usize>,
}

impl Volume {
    pub(crate) fn new(key: String, blocks: usize) -> Volume {
        Volume { key, blocks: vec![vec![0]; blocks], or_blocks: None }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }

    /// It has another size by now; what is new is zeroes.
    pub(crate) fn resize(&mut self, blocks: usize) {
        self.blocks.resize(blocks, vec![0]);
    }

    /// A write was answered, and not flushed.
    pub(crate) fn written(&mut self, block: usize, stamp: u64) {
        self.blocks[block].push(stamp);
    }

    /// What was answered is durable.
    pub(crate) fn flushed(&mut self) {
        for versions in &mut self.blocks {
            versions.drain(..versions.len() - 1);
        }
    }

    /// A durable copy of what was answered.
    pub(crate) fn copy(&self, key: String) -> Volume {
        let mut copy = Volume { key, ..self.clone() };
        copy.flushed();
        copy
    }

    /// Compares with what stands in a file, and takes that for what is there from now on.
    pub(crate) fn check(&mut self, data: &Path, bytes: u64) -> anyhow::Result<()> {
        if self.or_blocks.take().is_some_and(|blocks| bytes == (blocks * BLOCK) as u64) {
            self.resize(usize::try_from(bytes)? / BLOCK);
        }
        let (name, size) = (data.display(), self.bytes());
        ensure!(bytes == size, "{name} is told to have {bytes} bytes, not {size}");
        let mut file = File::open(data)?;
        ensure!(file.metadata()?.len() == size, "{name}: {} bytes", file.metadata()?.len());
        let mut found = vec![0; BLOCK];
        for (block, versions) in self.blocks.iter_mut().enumerate() {
            file.read_exact(&mut found)?;
            let holds = |stamp: &&u64| content(block, **stamp) == found;
            let Some(&stamp) = versions.iter().rev().find(holds) else {
                let first = u64::from_le_bytes(found[..8].try_into()?);
                anyhow::bail!("{name}, block {block}: {first:#x}.., not one of {versions:?}");
            };
            *versions = vec![stamp];
        }
        Ok(())
    }
}

/// A block as a write leaves it. No two writes are alike, of whatever volume.
pub(crate) fn content(block: usize, stamp: u64) -> Vec<u8> {
    let word = |n: usize| match n {
        _ if stamp == 0 => 0,
        0 => stamp,
        _ => mix(stamp ^ (block as u64) << 32 ^ (n as u64) << 48),
    };
    (0..BLOCK / 8).flat_map(|n| word(n).to_le_bytes()).collect()
}
