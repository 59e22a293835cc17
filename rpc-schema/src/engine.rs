//! I/O engines: by which of the kernel's interfaces a worker does its I/O.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// io_uring, of Linux 5.11 or later.
    IoUring,
    /// Linux AIO (io_submit), for kernels without io_uring.
    Aio,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::IoUring => "io_uring",
            EngineKind::Aio => "aio",
        })
    }
}

/// The configuration's `engine`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineSetting {
    /// io_uring where it will do, else AIO.
    #[default]
    Auto,
    /// io_uring, or refuse to start.
    IoUring,
    /// AIO, or refuse to start.
    Aio,
}

impl fmt::Display for EngineSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineSetting::Auto => "auto",
            EngineSetting::IoUring => "io_uring",
            EngineSetting::Aio => "aio",
        })
    }
}

impl std::str::FromStr for EngineSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(EngineSetting::Auto),
            "io_uring" => Ok(EngineSetting::IoUring),
            "aio" => Ok(EngineSetting::Aio),
            _ => Err(format!("an engine is auto, io_uring or aio, not {text}")),
        }
    }
}

/// Which engine a worker uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EngineChoice {
    /// Which.
    pub kind: EngineKind,
    /// Why this one, for people.
    pub why: String,
}
