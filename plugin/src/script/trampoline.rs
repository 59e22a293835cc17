//! What makes our program runnable by Python too: a zip archive at its end.
//!
//! With an Observer enabled XAPI runs `python3 -m observer <script> --json`, and that does
//! `runpy.run_path(script)`: an ELF as Python source fails. But runpy looks first whether the file
//! is a zip archive with a `__main__.py`, and an archive is found from its end, whatever stands
//! before it. So one file is both; the kernel never looks at its tail, and there is no interpreter
//! to start where there is no Observer. Pure. Called by `install`.

/// Becomes the program again, under the name that it was called by.
const MAIN: &[u8] = b"import os, sys\nos.execv(sys.argv[0], sys.argv)\n";
const NAME: &[u8] = b"__main__.py";
/// 1980-01-01, the first day of zip's time.
const DATE: u16 = 0x21;
/// The version of zip that is needed to read it, times ten.
const VERSION: u16 = 20;

/// The archive: one file, stored.
pub(super) fn archive() -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    // What a file's own header and the directory's entry have in common.
    let mut common = Vec::new();
    for half in [VERSION, 0, 0, 0, DATE] {
        common.extend(half.to_le_bytes());
    }
    for word in [crc32(MAIN), length(MAIN), length(MAIN)] {
        common.extend(word.to_le_bytes());
    }
    common.extend([11, 0, 0, 0]);
    let mut file = b"PK\x03\x04".to_vec();
    file.extend(&common);
    file.extend(NAME);
    file.extend(MAIN);

    let mut entry = b"PK\x01\x02".to_vec();
    entry.extend(VERSION.to_le_bytes());
    entry.extend(&common);
    // No comment, disk 0, no attributes, at offset 0 of the archive.
    entry.extend([0; 14]);
    entry.extend(NAME);

    let mut archive = file;
    let offset = length(&archive);
    archive.extend(&entry);
    archive.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    archive.extend(length(&entry).to_le_bytes());
    archive.extend(offset.to_le_bytes());
    archive.extend([0, 0]);
    archive
}

/// zip's check sum: CRC-32 as in IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sum_is_zips() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(NAME.len(), 11);
    }
}
