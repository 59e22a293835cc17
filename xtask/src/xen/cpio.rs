//! A root file system in memory, and its one file form: the "newc" cpio archive that Linux unpacks
//! at boot. Writing it here needs neither root (for owners) nor a staging directory that could go
//! stale.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What stands at one path.
enum Node {
    Directory,
    Link(String),
    Text {
        bytes: Vec<u8>,
        mode: u32,
    },
    /// Read when the archive is written, so that large files are in memory one at a time.
    Copy {
        from: PathBuf,
        mode: u32,
    },
}

/// Paths without a leading slash. Sorted, so that a directory comes before what it holds.
#[derive(Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    pub(crate) fn directory(&mut self, path: &str) {
        if !path.is_empty() {
            self.put(path, Node::Directory);
        }
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link(target.to_owned()));
    }

    pub(crate) fn text(&mut self, path: &str, text: impl Into<Vec<u8>>) {
        self.put(path, Node::Text { bytes: text.into(), mode: 0o644 });
    }

    pub(crate) fn script(&mut self, path: &str, text: &str) {
        self.put(path, Node::Text { bytes: text.into(), mode: 0o755 });
    }

    pub(crate) fn copy(&mut self, path: &str, from: &Path, mode: u32) {
        self.put(path, Node::Copy { from: from.to_owned(), mode });
    }

    fn put(&mut self, path: &str, node: Node) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.nodes.contains_key(parent)
        {
            self.directory(parent);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the archive to `file`, uncompressed: an emulated CPU inflates more slowly than it
    /// copies.
    pub(crate) fn pack(&self, file: &Path) -> Result<()> {
        let target = fs::File::create(file).with_context(|| format!("cannot create {file:?}"))?;
        let mut out = io::BufWriter::with_capacity(1 << 20, target);
        for (number, (path, node)) in self.nodes.iter().enumerate() {
            // Inode numbers only tell hard links apart; 0 is taken by the trailer.
            let ino = number as u32 + 1;
            match node {
                Node::Directory => entry(&mut out, ino, 0o040_755, path, &[])?,
                Node::Link(target) => entry(&mut out, ino, 0o120_777, path, target.as_bytes())?,
                Node::Text { bytes, mode } => {
                    entry(&mut out, ino, 0o100_000 | mode, path, bytes)?;
                }
                Node::Copy { from, mode } => {
                    let bytes = fs::read(from).with_context(|| format!("cannot read {from:?}"))?;
                    entry(&mut out, ino, 0o100_000 | mode, path, &bytes)?;
                }
            }
        }
        entry(&mut out, 0, 0, "TRAILER!!!", &[])?;
        out.flush().with_context(|| format!("cannot write {file:?}"))
    }
}

/// One header of thirteen hexadecimal fields, the name, the data; the last two padded to four
/// bytes.
fn entry(out: &mut impl Write, ino: u32, mode: u32, name: &str, data: &[u8]) -> io::Result<()> {
    const HEADER_BYTES: usize = 110;
    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
    let name_size = name.len() as u32 + 1;
    let (owner, group, links, modified, device, checksum) = (0, 0, 1, 0, [0; 4], 0);
    let fields = [ino, mode, owner, group, links, modified, size]
        .into_iter()
        .chain(device)
        .chain([name_size, checksum]);
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    pad(out, HEADER_BYTES + name.len() + 1)?;
    out.write_all(data)?;
    pad(out, data.len())
}

fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_padded_after_name_and_data() {
        let mut out = Vec::new();
        entry(&mut out, 1, 0o100_644, "bin/a", b"hello").unwrap();
        assert_eq!(&out[..14], b"07070100000001");
        assert_eq!(&out[110..116], b"bin/a\0");
        assert_eq!(out.len(), 116 + 8);
    }

    #[test]
    fn parents_come_first_and_once() {
        let mut tree = Tree::default();
        tree.text("a/b/c", "x");
        tree.text("a/b/d", "y");
        assert_eq!(tree.nodes.keys().collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/b/d"]);
    }
}
