//! What the fuzz targets share: the daemon's parsers, which are in no library, and an NBD export.

pub mod tree;

/// The daemon's reading of xenstore directories, file by file as it is.
#[path = "../../plugin/src/vbd"]
pub mod vbd {
    pub mod address;
    pub mod backend;
    pub mod device;
    pub mod frontend;
    pub mod offer;
    pub mod publish;
    pub mod reading;
    pub mod xenbus;
}

/// What a VDI is called.
#[path = "../../plugin/src/vdi"]
pub mod vdi {
    mod id;
    pub use id::VdiId;
}

#[path = "../../plugin/src/xenstore/mod.rs"]
pub mod xenstore;

/// Named by what is above; nothing is left of it in the release build that fuzzing is.
#[path = "../../plugin/src/fault.rs"]
mod fault;

/// The tolerant reading of RPC parameters.
#[path = "../../plugin/src/rpc"]
pub mod rpc {
    mod tolerant;

    /// Reads a method's parameters as XAPI's own reader would.
    ///
    /// # Errors
    /// What serde says.
    pub fn read_tolerantly<M: zerotap_rpc_schema::Method>(
        value: serde_json::Value,
    ) -> Result<M::Params, serde_json::Error> {
        tolerant::read(value)
    }
}

use rustix::fs::{Mode, OFlags, ftruncate, open, unlink};
use zerotap_datapath::image::Image;
use zerotap_datapath::nbd::export::Export;

/// An export named `disk` of this many bytes, on an unlinked file.
///
/// # Panics
/// When no file for direct I/O can be made below the working directory.
#[must_use]
pub fn export(bytes: u64, read_only: bool) -> Export {
    let path = format!("zerotap-fuzz-{}-{bytes}", std::process::id());
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).expect("a file for direct I/O");
    unlink(&path).expect("a file of ours");
    ftruncate(&file, bytes).expect("room for a sparse file");
    let image = Image::new(file).expect("a regular file is an image");
    Export::new("disk".to_owned(), &image, read_only).expect("an open image")
}
