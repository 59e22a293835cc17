//! The guest pages of one request: where the data stands, and red zones around it.

use super::model::{Model, SECTOR_BYTES};
use super::random::Random;
use crate::blkfront::{Io, Piece};
use crate::guest::{Domain, FRAME_BYTES};
use zerotap_datapath::ring::shared::SharedMapping;

const SECTORS_PER_FRAME: u8 = 8;
/// What stands where nobody should write.
const RED: u8 = 0xa5;
/// What stands where a read should write.
const JUNK: u8 = 0x5a;

/// Spreads `sectors` over fresh frames, in units of `unit` sectors, in at most `pieces_max` pieces;
/// answers fewer sectors than asked for when that many pieces do not hold them.
pub(super) fn lay_out(
    domain: &mut Domain,
    random: &mut Random,
    sectors: u64,
    unit: u8,
    pieces_max: usize,
) -> anyhow::Result<Vec<Piece>> {
    // Most requests begin somewhere in a page and fill the next ones; some are in shreds.
    let shreds = unit < SECTORS_PER_FRAME && random.chance(12);
    let offset = |random: &mut Random| {
        let units = u64::from(SECTORS_PER_FRAME / unit);
        u8::try_from(random.below(units)).unwrap_or(0) * unit
    };
    let mut pieces = Vec::new();
    let mut left = sectors;
    while left > 0 && pieces.len() < pieces_max {
        let first =
            if shreds || (pieces.is_empty() && random.chance(40)) { offset(random) } else { 0 };
        let mut length = u64::from(SECTORS_PER_FRAME - first).min(left);
        if shreds {
            length = length.min(u64::from(unit) * (1 + random.below(3)));
        }
        let last = first + u8::try_from(length)? - 1;
        pieces.push(Piece { frame: domain.frame()?, first, last });
        left -= length;
    }
    Ok(pieces)
}

/// Fills the frames: red zones, and data to write or junk to be overwritten.
pub(super) fn fill(memory: &SharedMapping, model: &Model, io: &Io, write: Option<u32>) {
    let mut sector = io.sector;
    let mut frame = [0; FRAME_BYTES];
    for piece in &io.pieces {
        frame.fill(RED);
        for n in usize::from(piece.first)..=usize::from(piece.last) {
            let bytes: &mut [u8; SECTOR_BYTES] =
                frame[n * SECTOR_BYTES..].first_chunk_mut().expect("eight to a frame");
            match write {
                Some(generation) => model.stamp(sector, generation, bytes),
                None => bytes.fill(JUNK),
            }
            sector += 1;
        }
        memory.copy_in(piece.frame as usize * FRAME_BYTES, &frame);
    }
}

/// Checks the frames after the answer. A write must have left them alone; a read that succeeded
/// must have brought what the model says; nothing may have touched the red zones.
pub(super) fn check(
    memory: &SharedMapping,
    model: &mut Model,
    io: &Io,
    write: Option<u32>,
    success: bool,
) -> Result<(), String> {
    let mut sector = io.sector;
    let mut frame = [0; FRAME_BYTES];
    let mut stamp = [0; SECTOR_BYTES];
    for piece in &io.pieces {
        memory.copy_out(piece.frame as usize * FRAME_BYTES, &mut frame);
        for (n, bytes) in frame.chunks_exact(SECTOR_BYTES).enumerate() {
            let bytes: &[u8; SECTOR_BYTES] = bytes.first_chunk().expect("exact chunks");
            if !(usize::from(piece.first)..=usize::from(piece.last)).contains(&n) {
                if bytes.iter().any(|&byte| byte != RED) {
                    return Err(format!(
                        "sector {n} of a page is outside {piece:?} and was written"
                    ));
                }
                continue;
            }
            match write {
                Some(generation) => {
                    model.stamp(sector, generation, &mut stamp);
                    if *bytes != stamp {
                        return Err(format!("the data of a write changed: sector {sector}"));
                    }
                }
                None if success => model.check(sector, bytes)?,
                None => {}
            }
            sector += 1;
        }
    }
    Ok(())
}
